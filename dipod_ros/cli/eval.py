# SPDX-License-Identifier: Apache-2.0
"""`dipod eval`: success of a checkpoint with a confidence interval, as text, plot and video."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.cli.arguments import (
    add_threads_argument,
    find_checkpoint,
    parse_sampler,
    require_at_least,
    require_simulated,
    set_threads,
)
from dipod_ros.cli.output import add_json_argument, write_json, writing

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
    parser.add_argument(
        '--min-success',
        type=float,
        metavar='SHARE',
        help="end with exit code 1 where the success with the policy's own sampler is below",
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
    require_at_least(args, episodes=1, video_episodes=1, seed=0)
    policy = load_policy(find_checkpoint(args.checkpoint))
    if args.task is None:
        require_simulated(policy.spec.task)
    task = args.task or policy.spec.task
    samplers = [policy.spec.sampler]
    if args.samplers:
        samplers = [parse_sampler(text) for text in args.samplers.split(',')]
    if args.min_success is not None:
        if not 0 <= args.min_success <= 1:
            raise UserError(f'--min-success must be within 0..1, got {args.min_success}')
        if policy.spec.sampler not in samplers:
            raise UserError(
                f"--min-success is about the policy's own sampler, {policy.spec.sampler.solver}-"
                f'{policy.spec.sampler.steps}: name it in --samplers too, or leave that out'
            )
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
    if args.json:
        write_json(
            args.json,
            {
                'checkpoint': args.checkpoint,
                'task': task,
                'seed': args.seed,
                'zero_noise': args.zero_noise,
                'sampler': str(policy.spec.sampler),
                'results': {name: rate.to_dict() for name, rate in rates.items()},
            },
        )
    if args.plot:
        from dipod_ros.learning.plots import plot_evaluations

        with writing(args.plot) as path:
            plot_evaluations(path, rates, f'{args.checkpoint} on {task}')
        print(f'plot: {args.plot}')
    if args.video:
        from dipod_ros.cli.video import record_video

        record_video(Path(args.video), policy, task, args.video_episodes, args.seed)
        print(f'video: {args.video}')
    if args.min_success is None:
        return 0
    reached = rates[str(policy.spec.sampler)].success
    enough = reached >= args.min_success
    print(
        f'success {reached:.3f} of its own sampler is {"not " if enough else ""}below '
        f'--min-success {args.min_success:g}'
    )
    return 0 if enough else 1
