# SPDX-License-Identifier: Apache-2.0
"""`python -m dipod_ros.cli.bench_fresh`: a fresh student beside a flow that learns.

One fine-tuning run; after each update every variant of a fresh student takes its steps on the very
same rollouts. Every few updates the flow, the students and a student distilled from scratch meet
the same episodes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipod_ros.learning.students.fresh_student import FreshConfig

WORLDS = 256


def variants(seed: int = 0) -> dict[str, FreshConfig]:
    """Return the settings that are compared, by name."""
    from dipod_ros.learning.students.fresh_student import FreshConfig

    base = FreshConfig(seed=seed)
    return {
        'default': base,
        'rollout only': replace(base, new_pairs=0, use_rollout=True),
        'both': replace(base, use_rollout=True),
        'both, 20 steps': replace(base, use_rollout=True, train_steps=20),
    }


def follow_run(
    initial: Path,
    *,
    control_steps: int = 60_000,
    every: int = 4,
    episodes: int = 512,
    rollout_episodes: int = 64,
    seed: int = 0,
    students: dict[str, FreshConfig] | None = None,
    distil: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune `initial` with fresh students beside it.

    Returns `update_cpu_s` (mean of an update without students), for each student `cpu_s` (mean of
    an update after the first, saving a checkpoint included), `first_cpu_s` and `share` (cpu_s over
    update_cpu_s), and `points`: every `every` updates the success of each policy.
    """
    import tempfile

    import numpy as np

    from dipod_ros.cli.bench_distill import distance
    from dipod_ros.learning.algorithms.dipod import DipodConfig
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.learner import Learner
    from dipod_ros.learning.learner_state import LearnerConfig
    from dipod_ros.learning.rollout import collect_episodes
    from dipod_ros.learning.seeding import numpy_rng
    from dipod_ros.learning.students.distill import DistillConfig, distill
    from dipod_ros.learning.students.fresh_student import FreshStudent
    from dipod_ros.policy.flow import load_policy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    flow = load_policy(initial)
    spec = flow.spec
    config = LearnerConfig(algorithm=DipodConfig(beta=0.0), gap_every=0, seed=seed)
    learner = Learner(flow, config)
    fresh = {n: FreshStudent(flow, c) for n, c in (students or variants(seed)).items()}
    env = ChunkVectorEnv(spec.task, rollout_episodes, spec.robot, seed=seed, autoreset=False)
    worlds = ChunkVectorEnv(spec.task, min(WORLDS, episodes), spec.robot, seed=0, autoreset=False)
    costs: dict[str, list[float]] = {name: [] for name in ('update', *fresh)}
    points: list[dict[str, Any]] = []
    seen = []
    with tempfile.TemporaryDirectory(prefix='dipod_bench_') as folder:
        while learner.control_steps < control_steps:
            rng = numpy_rng(seed, 'rollout', learner.updates)
            rollout = collect_episodes(
                env,
                learner.policy.act,
                spec.noise_size,
                rng,
                seed=int(rng.integers(2**31)),
                version=learner.version,
            )
            seen.append(rollout.observations)
            start = time.process_time()
            learner.update(rollout)
            costs['update'].append(time.process_time() - start)
            for name, student in fresh.items():
                start = time.process_time()
                student.update(learner.policy, rollout)
                student.policy.save(Path(folder) / name, kind='student', overwrite=True)
                costs[name].append(time.process_time() - start)
            done = learner.control_steps >= control_steps
            if not done and (learner.updates - 1) % every:
                continue
            policies = {'flow': learner.policy} | {n: s.policy for n, s in fresh.items()}
            if distil:
                taught = DistillConfig(seed=seed)
                policies['distilled'] = distill(learner.policy, np.concatenate(seen), taught)
            point: dict[str, Any] = {
                'control_steps': learner.control_steps,
                'version': learner.version,
            }
            for name, policy in policies.items():
                rate = evaluate_policy(worlds, policy, episodes=episodes).success
                away = distance(policy, learner.policy, rollout.observations, 2048)
                point[name] = {'success': rate, 'rms': away}
            points.append(point)
            progress(str(point))
    update = sum(costs['update'][1:]) / max(1, len(costs['update']) - 1)
    result: dict[str, Any] = {'update_cpu_s': update, 'updates': learner.updates}
    for name in fresh:
        later = costs[name][1:]
        mean = sum(later) / max(1, len(later))
        result[name] = {'first_cpu_s': costs[name][0], 'cpu_s': mean, 'share': mean / update}
    return result | {'points': points}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `follow_run` on the given flow and print what it says."""
    from dipod_ros.cli.arguments import find_checkpoint, set_threads
    from dipod_ros.cli.bench_report import machine_facts
    from dipod_ros.cli.output import add_json_argument, write_json

    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('checkpoint', help='flow: a shipped name or a folder')
    parser.add_argument('--control-steps', type=int, default=60_000, help='default %(default)s')
    parser.add_argument('--episodes', type=int, default=512, help='default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    set_threads(1)
    results = follow_run(
        find_checkpoint(args.checkpoint),
        control_steps=args.control_steps,
        episodes=args.episodes,
        seed=args.seed,
        progress=lambda line: print(line, flush=True),
    )
    for name, value in results.items():
        if name != 'points':
            print(f'{name}: {value}')
    if args.json:
        print(write_json(args.json, {'machine': machine_facts(), 'fresh': results}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
