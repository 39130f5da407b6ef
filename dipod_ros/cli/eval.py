# SPDX-License-Identifier: Apache-2.0
"""`dipod eval`: success of a checkpoint with a confidence interval, as text, plot and video."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.cli.arguments import (
    add_threads_argument,
    find_checkpoint,
    parse_sampler,
    set_threads,
)
from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'measure the success of a checkpoint in simulation'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('checkpoint', help='a shipped name or a folder')
    parser.add_argument('--task', help='another task than the one of the checkpoint')
    parser.add_argument('--episodes', type=int, default=512, help='default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument(
        '--samplers',
        metavar='LIST',
        help="other samplers to compare, e.g. euler-1,midpoint-2; default is the checkpoint's own",
    )
    parser.add_argument('--zero-noise', action='store_true', help='start every sample from zeros')
    parser.add_argument('--plot', metavar='FILE', help='write a bar chart (PNG)')
    parser.add_argument('--video', metavar='FILE', help='write a video of some episodes (MP4)')
    parser.add_argument('--video-episodes', type=int, default=6, help='default %(default)s')
    add_threads_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate with a progress bar, then write what was asked for."""
    from tqdm import tqdm

    from dipod_ros.errors import UserError
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy.flow import load_policy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    set_threads(args.threads)
    if args.episodes < 1:
        raise UserError(f'--episodes must be at least 1, got {args.episodes}')
    policy = load_policy(find_checkpoint(args.checkpoint))
    task = args.task or policy.spec.task
    samplers = [policy.spec.sampler]
    if args.samplers:
        samplers = [parse_sampler(text) for text in args.samplers.split(',')]
    worlds = min(256, args.episodes)
    env = ChunkVectorEnv(task, worlds, policy.spec.robot, seed=0, autoreset=False)
    if (env.joints, env.horizon) != (policy.spec.joints, policy.spec.horizon) or tuple(
        s.name for s in env.streams
    ) != tuple(s.name for s in policy.spec.streams):
        raise UserError(
            f'{args.checkpoint} was made for {policy.spec.task}; its joints, streams or horizon '
            f'do not fit task {task}'
        )
    see_with(env, policy)
    rates = {}
    with tqdm(total=args.episodes * len(samplers), unit='episode', desc='evaluating') as bar:
        for i, sampler in enumerate(samplers):
            rates[str(sampler)] = evaluate_policy(
                env,
                policy.with_sampler(sampler),
                episodes=args.episodes,
                seed=args.seed,
                zero_noise=args.zero_noise,
                progress=lambda n, i=i: bar.update(i * args.episodes + n - bar.n),
            )
    for name, rate in rates.items():
        print(f'{task}  {name:28} success {rate}')
    if args.plot:
        from dipod_ros.learning.plots import plot_evaluations

        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
        plot_evaluations(Path(args.plot), rates, f'{args.checkpoint} on {task}')
        print(f'plot: {args.plot}')
    if args.video:
        from dipod_ros.cli.video import record_video

        record_video(Path(args.video), policy, task, args.video_episodes, args.seed)
        print(f'video: {args.video}')
    if args.json:
        write_json(
            args.json,
            {
                'checkpoint': args.checkpoint,
                'task': task,
                'seed': args.seed,
                'zero_noise': args.zero_noise,
                'results': {name: rate.to_dict() for name, rate in rates.items()},
            },
        )
    return 0
