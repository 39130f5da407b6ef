# SPDX-License-Identifier: Apache-2.0
"""`dipod demos`: scripted, imperfect demonstrations of a task, to a dataset."""

from __future__ import annotations

import argparse

from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'record scripted demonstrations of a task'
# Episodes simulated at a time; each finished batch is a step of the progress bar.
BATCH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('task', help='task to demonstrate, e.g. pillar_reach')
    parser.add_argument('--robot', default='arm7', help='robot file or shipped name (%(default)s)')
    parser.add_argument('--episodes', type=int, default=300, help='default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument(
        '--out', metavar='FILE', help='default runs/demos/TASK.safetensors; replaced when there'
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Record and save; prints how often the demonstrator succeeded."""
    import numpy as np
    from tqdm import tqdm

    from dipod_ros.errors import UserError
    from dipod_ros.learning.dataset import Demonstrations, require_space
    from dipod_ros.learning.evaluate import wilson_interval
    from dipod_ros.learning.task_spec import spec_for
    from dipod_ros.sim.demonstrations import collect
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    if args.episodes < 1:
        raise UserError(f'--episodes must be at least 1, got {args.episodes}')
    out = args.out or f'runs/demos/{args.task}.safetensors'
    env = ChunkVectorEnv(args.task, 1, args.robot, seed=args.seed)
    spec = spec_for(env)
    require_space(spec, args.episodes * max(1, env.task.decisions))
    parts, offset = [], 0
    with tqdm(total=args.episodes, unit='episode', desc='demonstrating') as bar:
        while offset < args.episodes:
            count = min(BATCH, args.episodes - offset)
            batch_seed = int(np.random.default_rng([args.seed, offset]).integers(2**31))
            part = collect(args.task, count, seed=batch_seed, robot=args.robot)
            parts.append((part, offset))
            offset += count
            bar.update(count)
    demonstrations = Demonstrations(
        spec=spec,
        observations=np.concatenate([p.observations for p, _ in parts]).astype(np.float32),
        actions=np.concatenate([p.actions for p, _ in parts]).astype(np.float32),
        episodes=np.concatenate([p.episodes + start for p, start in parts]),
        success=np.concatenate([p.success for p, _ in parts]),
        seed=args.seed,
        images=_joined([p.images for p, _ in parts]),
        privileged=_joined([p.privileged for p, _ in parts]),
    )
    demonstrations.save(out)
    successes = int(demonstrations.success.sum())
    low, high = wilson_interval(successes, args.episodes)
    print(
        f'{out}: {len(demonstrations.observations)} decisions of {args.episodes} episodes, '
        f'success {successes / args.episodes:.3f} [{low:.3f}, {high:.3f}]'
    )
    if args.json:
        write_json(
            args.json,
            {
                'task': args.task,
                'file': out,
                'episodes': args.episodes,
                'decisions': len(demonstrations.observations),
                'success': successes / args.episodes,
                'ci_low': low,
                'ci_high': high,
                'seed': args.seed,
            },
        )
    return 0


def _joined(parts):
    import numpy as np

    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
