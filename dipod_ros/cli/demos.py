# SPDX-License-Identifier: Apache-2.0
"""`dipod demos`: scripted, imperfect demonstrations of a task, to a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.cli.arguments import require_at_least
from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'record scripted demonstrations of a task'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('task', help='task to demonstrate, e.g. pillar_reach')
    parser.add_argument('--robot', default='arm7', help='robot file or shipped name (%(default)s)')
    parser.add_argument('--episodes', type=int, default=300, help='default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument('--out', metavar='FILE', help='default runs/demos/TASK.safetensors')
    parser.add_argument('--overwrite', action='store_true', help='replace a file that is there')
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Record and save; prints how often the demonstrator succeeded."""
    from tqdm import tqdm

    from dipod_ros.errors import UserError
    from dipod_ros.learning.demonstrations.scripted import record
    from dipod_ros.learning.evaluate import wilson_interval
    from dipod_ros.policy.writable import require_writable
    from dipod_ros.sim.tasks.registry import make_task

    require_at_least(args, episodes=1, seed=0)
    make_task(args.task, args.robot)  # not known: said before there is a bar
    out = Path(args.out or f'runs/demos/{args.task}.safetensors')
    if out.exists() and not args.overwrite:
        raise UserError(f'{out} is there already; choose another --out or add --overwrite')
    require_writable(out)
    with tqdm(total=args.episodes, unit='episode', desc='demonstrating') as bar:
        demonstrations = record(args.task, args.episodes, args.seed, args.robot, bar.update)
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
