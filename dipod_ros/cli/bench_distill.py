# SPDX-License-Identifier: Apache-2.0
"""`dipod bench distill`: few-step students by every method, beside their teacher.

Each student gets the same architecture, observations, gradient steps and batch; all meet the same
episodes. Also `python -m dipod_ros.cli.bench_distill CHECKPOINT ... --json FILE`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipod_ros.cli.bench_measure import Options
from dipod_ros.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from dipod_ros.learning.students.distill import DistillConfig
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

WORLDS = 256
TEACHER_EPISODES = 1024  # their observations are what students are taught on
HELD_OUT = 2048  # pairs (observation, noise) that measure the distance to the teacher


def measure(options: Options) -> dict[str, Any]:
    """Return `compare` for the flow of `options`; quick is one seed and hardly any training."""
    from dipod_ros.learning.students.distill import DistillConfig

    config = DistillConfig()
    if options.quick:
        config = replace(config, train_steps=20, pairs=512, batch=64)
    return compare(
        [options.flow],
        config=config,
        steps=(1,) if options.quick else (1, 2, 4),
        seeds=options.pick(3, 1),
        episodes=options.pick(512, 32),
        teacher_episodes=options.pick(TEACHER_EPISODES, 32),
    )


def compare(
    flows: Sequence[Path],
    *,
    config: DistillConfig,
    methods: Sequence[str] = (),
    steps: Sequence[int] = (1, 2, 4),
    seeds: int = 3,
    episodes: int = 512,
    teacher_episodes: int = TEACHER_EPISODES,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Return, for each flow, its own figures and those of its students.

    Keys of a policy: `success` and `success_zero` (noise, and zero noise), over all seeds;
    for students also `rms` (root mean square distance to the teacher's normalised action for the
    same noise, over held-out pairs), `cpu_s` (seconds of one core for paths and training) and one
    value per seed under `..._seeds`. Raises UserError for a checkpoint that is not a flow.
    """
    from dipod_ros.learning.students.few_step import METHODS
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.policy.spec import SamplerSpec
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    results: dict[str, Any] = {
        'train_steps': config.train_steps,
        'batch': config.batch,
        'seeds': seeds,
        'episodes': episodes,
    }
    for path in flows:
        checkpoint = ckpt.load(path)
        if checkpoint.manifest.kind != 'flow':
            raise UserError(f'{path} is a {checkpoint.manifest.kind}: give the flow it came from')
        teacher = FlowPolicy.from_checkpoint(checkpoint)
        spec = teacher.spec
        worlds = min(WORLDS, episodes)
        env = ChunkVectorEnv(spec.task, worlds, spec.robot, seed=0, autoreset=False)
        see_with(env, teacher)
        observations = _observations(env, teacher, teacher_episodes)
        rows: dict[str, Any] = {}
        for sampler in (spec.sampler, SamplerSpec('midpoint', 25)):
            rows[f'teacher {sampler}'] = _success(env, teacher.with_sampler(sampler), episodes)
        progress(f'{Path(path).name}: {rows}')
        for method in methods or METHODS:
            for count in steps:
                name = f'{method} euler-{count}'
                taught = [
                    _teach(
                        env,
                        teacher,
                        observations,
                        replace(config, method=method, solver='euler', steps=count, seed=seed),
                        episodes,
                    )
                    for seed in range(seeds)
                ]
                rows[name] = _over_seeds(taught)
                progress(f'{Path(path).name}: {name}: {rows[name]}')
        results[str(path)] = {'sha256': checkpoint.manifest.sha256} | rows
    return results


def _observations(env: ChunkVectorEnv, teacher: FlowPolicy, episodes: int) -> np.ndarray:
    """Return the observations [M, O] of at least `episodes` episodes of the teacher."""
    import numpy as np

    from dipod_ros.learning.rollout import collect_episodes
    from dipod_ros.learning.seeding import numpy_rng

    parts = []
    for batch in range(-(-episodes // env.num_envs)):
        rng = numpy_rng(0, 'bench-distill', batch)
        seed = int(rng.integers(2**31))
        rollout = collect_episodes(env, teacher.act, teacher.spec.noise_size, rng, seed=seed)
        parts.append(rollout.observations)
    return np.concatenate(parts)


def _success(env: ChunkVectorEnv, policy: FlowPolicy, episodes: int) -> dict[str, float]:
    from dipod_ros.learning.evaluate import evaluate_policy

    return {
        'success': evaluate_policy(env, policy, episodes=episodes).success,
        'success_zero': evaluate_policy(env, policy, episodes=episodes, zero_noise=True).success,
    }


def _teach(
    env: ChunkVectorEnv,
    teacher: FlowPolicy,
    observations: np.ndarray,
    config: DistillConfig,
    episodes: int,
) -> dict[str, float]:
    from dipod_ros.learning.students.distill import distill

    # Processor time, not time: other programs on the machine are not the method's cost.
    start = time.process_time()
    student = distill(teacher, observations, config)
    seconds = time.process_time() - start
    return {
        **_success(env, student, episodes),
        'rms': distance(student, teacher, observations, HELD_OUT),
        'cpu_s': seconds,
    }


def distance(
    student: FlowPolicy, teacher: FlowPolicy, observations: np.ndarray, count: int, seed: int = 0
) -> float:
    """Return the root mean square of student minus teacher, normalised, for the same noise."""
    import torch

    from dipod_ros.learning.seeding import torch_rng

    rng = torch_rng(seed, 'held-out')
    rows = torch.randint(len(observations), (count,), generator=rng)
    o = teacher.normalizer.observation(torch.from_numpy(observations)[rows])
    z = torch.randn(count, teacher.spec.action_size, generator=rng)
    with torch.no_grad():
        return float((student.sample(o, z) - teacher.sample(o, z)).square().mean().sqrt())


def _over_seeds(taught: Sequence[dict[str, float]]) -> dict[str, Any]:
    mean = {k: sum(row[k] for row in taught) / len(taught) for k in taught[0]}
    each = {f'{k}_seeds': [row[k] for row in taught] for k in ('success', 'success_zero', 'rms')}
    return mean | each


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the methods on the given flows; prints a line for each, and a table."""
    from dipod_ros.cli.arguments import find_checkpoint, set_threads
    from dipod_ros.cli.bench_report import machine_facts, table
    from dipod_ros.cli.output import add_json_argument, write_json
    from dipod_ros.learning.students.distill import DistillConfig

    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('checkpoints', nargs='+', help='flows: shipped names or folders')
    parser.add_argument('--seeds', type=int, default=3, help='default %(default)s')
    parser.add_argument('--episodes', type=int, default=512, help='default %(default)s')
    parser.add_argument('--train-steps', type=int, help='gradient steps of each student')
    parser.add_argument('--methods', nargs='+', default=(), help='default: all')
    parser.add_argument(
        '--student-steps', nargs='+', type=int, default=(1, 2, 4), help='default: 1 2 4'
    )
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    set_threads(1)
    config = DistillConfig()
    if args.train_steps:
        config = replace(config, train_steps=args.train_steps)
    flows = [find_checkpoint(name) for name in args.checkpoints]
    results = compare(
        flows,
        config=config,
        methods=args.methods,
        steps=args.student_steps,
        seeds=args.seeds,
        episodes=args.episodes,
        progress=lambda line: print(line, flush=True),
    )
    print(table('distill', results))
    if args.json:
        print(write_json(args.json, {'machine': machine_facts(), 'distill': results}))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
