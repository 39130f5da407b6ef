# SPDX-License-Identifier: Apache-2.0
"""`dipod distill`: a one- to four-step student of a flow policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.cli.arguments import (
    add_threads_argument,
    find_checkpoint,
    parse_sampler,
    require_at_least,
    require_simulated,
    require_teacher,
    set_threads,
)
from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'distil a flow policy into a one- to four-step student'
MAX_STEPS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('checkpoint', help='teacher: a shipped name or a folder')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the student')
    parser.add_argument('--sampler', default='euler-1', help='of the student (default %(default)s)')
    parser.add_argument(
        '--method',
        choices=('reflow', 'trajectory', 'consistency'),
        default='trajectory',
        help='default %(default)s; see docs/few_steps.md',
    )
    parser.add_argument('--steps', type=int, default=600, help='default %(default)s')
    parser.add_argument(
        '--episodes', type=int, default=1024, help='teacher episodes to distil on (%(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument('--overwrite', action='store_true', help='replace --out when it exists')
    add_threads_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Collect the teacher's observations, distil, save."""
    import time

    import numpy as np
    from tqdm import tqdm

    from dipod_ros.errors import UserError
    from dipod_ros.learning.rollout import collect_episodes
    from dipod_ros.learning.seeding import numpy_rng
    from dipod_ros.learning.students.distill import DistillConfig, distill
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.policy.writable import require_writable
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    set_threads(args.threads)
    require_at_least(args, steps=1, episodes=1, seed=0)
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise ckpt.CheckpointError(f'{out} exists already; choose another --out or add --overwrite')
    require_writable(out, folder=True)
    sampler = parse_sampler(args.sampler)
    if sampler.steps > MAX_STEPS:
        raise UserError(
            f'--sampler {args.sampler}: a student has at most {MAX_STEPS} steps; the flow itself '
            'is for more'
        )
    config = DistillConfig(
        method=args.method,
        solver=sampler.solver,
        steps=sampler.steps,
        train_steps=args.steps,
        seed=args.seed,
    )
    path = find_checkpoint(args.checkpoint)
    require_teacher(path)
    checkpoint = ckpt.load(path)
    teacher = FlowPolicy.from_checkpoint(checkpoint)
    require_simulated(teacher.spec.task)
    start = time.monotonic()
    worlds = min(256, args.episodes)
    env = ChunkVectorEnv(teacher.spec.task, worlds, teacher.spec.robot, seed=0, autoreset=False)
    see_with(env, teacher)
    observations = []
    with tqdm(total=args.episodes, unit='episode', desc='teacher') as bar:
        for batch in range(-(-args.episodes // worlds)):
            rng = numpy_rng(args.seed, 'distill-rollout', batch)
            rollout = collect_episodes(
                env,
                teacher.act,
                teacher.spec.noise_size,
                rng,
                seed=int(rng.integers(2**31)),
            )
            observations.append(rollout.observations)
            bar.update(rollout.episodes)
    with tqdm(total=config.train_steps, unit='step', desc='distilling') as bar:

        def progress(done: int, loss: float) -> None:
            bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
            bar.update(done - bar.n)

        student = distill(teacher, np.concatenate(observations), config, progress=progress)
    manifest = student.save(
        out,
        kind='student',
        version=checkpoint.manifest.version,
        lineage={
            'method': config.method,
            'teacher': checkpoint.manifest.sha256,
            'teacher_sampler': str(teacher.spec.sampler),
            'steps': config.train_steps,
            'episodes': args.episodes,
            'seed': args.seed,
        },
        overwrite=args.overwrite,
    )
    print(f'{out}: {manifest.sha256[:12]}, {student.spec.sampler}')
    if args.json:
        write_json(
            args.json,
            {
                'checkpoint': str(out),
                'sha256': manifest.sha256,
                'teacher': checkpoint.manifest.sha256,
                'method': config.method,
                'sampler': str(student.spec.sampler),
                'seconds': time.monotonic() - start,
            },
        )
    return 0
