# SPDX-License-Identifier: Apache-2.0
"""`dipod finetune`: the trainer's DiPOD update on the vectorised simulator, without ROS."""

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
from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'improve a flow policy by DiPOD updates in simulation, without ROS'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('checkpoint', help='flow policy to start from: a shipped name or a folder')
    parser.add_argument(
        '--run-dir', required=True, metavar='DIR', help='folder; resumed when there'
    )
    parser.add_argument('--control-steps', type=int, default=100_000, help='default %(default)s')
    parser.add_argument('--episodes', type=int, default=64, help='per update (default %(default)s)')
    parser.add_argument(
        '--sampler',
        metavar='SOLVER-STEPS',
        help="learn and act with it, such as midpoint-5, instead of the checkpoint's own; the "
        'checkpoints of the run have it',
    )
    parser.add_argument('--beta', type=float, default=0.1, help='default %(default)s')
    parser.add_argument('--epochs', type=int, default=40, help='default %(default)s')
    parser.add_argument('--clip', type=float, default=0.2, help='default %(default)s')
    parser.add_argument('--trust-region', choices=('ppo', 'aspo'), default='ppo')
    parser.add_argument('--learning-rate', type=float, default=1e-3, help='default %(default)s')
    parser.add_argument(
        '--ema',
        type=float,
        default=0.95,
        help='decay per gradient step of the weights averaged over an update; 0 is none '
        '(default %(default)s)',
    )
    parser.add_argument(
        '--dense-reward',
        action='store_true',
        help='for rewards at every decision: the values of what is remembered are computed anew '
        'in each update, and advantages beyond three times their root mean square are cut there '
        'before they are scaled',
    )
    parser.add_argument(
        '--precision',
        choices=('float32', 'bfloat16'),
        default='float32',
        help='default %(default)s',
    )
    parser.add_argument(
        '--gap-target',
        type=float,
        default=0.0,
        metavar='NATS',
        help="above 0: beta adapts until the ELBO gap is so much above the initial policy's",
    )
    parser.add_argument(
        '--burst-every',
        type=int,
        default=0,
        metavar='UPDATES',
        help='self-distillation between updates (Algorithm 1); 0 is none',
    )
    parser.add_argument(
        '--demos',
        metavar='PATH',
        help='demonstrations (a file, or a folder of them) for the Q critic, and to imitate',
    )
    parser.add_argument(
        '--demo-weight',
        type=float,
        default=0.0,
        help='above 0 every gradient step imitates them: of their flow-matching loss, x RMS of the '
        'advantage (default %(default)s)',
    )
    parser.add_argument(
        '--demo-decay', type=float, default=1.0, help='of that, per update (default %(default)s)'
    )
    parser.add_argument(
        '--q-critic',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='an off-policy critic of chunks beside the usual one; it learns from --demos, too '
        '(default: on)',
    )
    parser.add_argument('--gap-every', type=int, default=10, help='default %(default)s')
    parser.add_argument(
        '--student',
        choices=('off', 'final', 'fresh'),
        default='final',
        help='fresh: one follows with every checkpoint (default %(default)s)',
    )
    parser.add_argument('--eval-episodes', type=int, default=512, help='default %(default)s')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='-1 draws one for a new run, and keeps that of a resumed one (default %(default)s)',
    )
    add_threads_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Learn with a progress bar; prints success before, after and of the student."""
    import time

    from tqdm import tqdm

    from dipod_ros.learning import parallel
    from dipod_ros.learning.algorithms.self_distillation import InterleavedConfig
    from dipod_ros.learning.critic import CriticConfig
    from dipod_ros.learning.dense_reward import DENSE_CRITIC, DENSE_UPDATE
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.imitation import imitation_config
    from dipod_ros.learning.learner_state import LearnerConfig
    from dipod_ros.learning.q_critic import QCriticConfig
    from dipod_ros.learning.rollout import collect_episodes
    from dipod_ros.learning.run import RunConfig, TrainingRun
    from dipod_ros.learning.run_log import read_metrics
    from dipod_ros.learning.run_seed import seed_of_run
    from dipod_ros.learning.seeding import numpy_rng
    from dipod_ros.learning.students.fresh_student import FreshConfig
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy.checkpoint import read_manifest
    from dipod_ros.policy.flow import load_policy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    set_threads(args.threads)
    # Under torchrun every process simulates the same, and they share the work of the gradients.
    parallel.join()
    require_at_least(args, episodes=1, control_steps=1, eval_episodes=1, gap_every=0, seed=-1)
    sampler = parse_sampler(args.sampler) if args.sampler else None
    drawn = args.seed < 0
    # Several processes would draw several: the first one's is for all.
    args.seed = int(parallel.broadcast(str(seed_of_run(Path(args.run_dir), args.seed)).encode()))
    config = LearnerConfig(
        algorithm=InterleavedConfig(
            beta=args.beta,
            gap_target=args.gap_target,
            burst_every=args.burst_every,
            precision=args.precision,
            epochs=args.epochs,
            clip=args.clip,
            trust_region=args.trust_region,
            learning_rate=args.learning_rate,
            ema=args.ema,
            **(DENSE_UPDATE if args.dense_reward else {}),
        ),
        critic=CriticConfig(**(DENSE_CRITIC if args.dense_reward else {})),
        imitation=imitation_config(args.demo_weight, args.demo_decay),
        q_critic=QCriticConfig() if args.q_critic else None,
        gap_every=args.gap_every,
        seed=args.seed,
    )
    initial = find_checkpoint(args.checkpoint)
    require_simulated(read_manifest(initial).spec.task)
    training = TrainingRun(
        Path(args.run_dir),
        initial,
        RunConfig(
            learner=config,
            fresh=FreshConfig() if args.student == 'fresh' else None,
            demonstrations=Path(args.demos) if args.demos else None,
            sampler=sampler,
        ),
    )
    spec, learner = training.initial.spec, training.learner
    env = ChunkVectorEnv(spec.task, args.episodes, spec.robot, seed=args.seed, autoreset=False)
    see_with(env, learner.policy)
    start = time.monotonic()
    silent = parallel.rank() > 0
    if drawn and not silent:
        print(f'seed {args.seed} ({"of the resumed run" if training.resumed else "drawn"})')
    with tqdm(total=args.control_steps, unit='step', desc='learning', disable=silent) as bar:
        bar.update(min(learner.control_steps, args.control_steps))
        while learner.control_steps < args.control_steps:
            rng = numpy_rng(args.seed, 'rollout', learner.updates)
            rollout = collect_episodes(
                env,
                learner.policy.act,
                learner.policy.spec.noise_size,
                rng,
                seed=int(rng.integers(2**31)),
                version=learner.version,
            )
            metrics, _ = training.update(rollout)
            bar.set_postfix(
                success=f'{metrics["success_rate"]:.2f}',
                version=int(metrics['version']),
                cfm=f'x{metrics["cfm_ratio"]:.2f}',
                std=f'x{metrics["action_std_ratio"]:.2f}',
                refresh=False,
            )
            bar.update(rollout.control_steps)
    seconds = time.monotonic() - start
    parallel.leave()
    if silent:
        return 0
    policies = {'before': load_policy(initial), 'after': learner.policy.clone()}
    where = {'before': initial, 'after': training.latest.path}
    if args.student == 'final' and training.has_observations:
        manifest = training.make_student()
        policies['student'] = load_policy(manifest.path)
        where['student'] = manifest.path
    elif training.student is not None:
        policies['student'] = load_policy(training.student.path)
        where['student'] = training.student.path
    training.close()
    count = min(256, args.eval_episodes)
    worlds = ChunkVectorEnv(spec.task, count, spec.robot, seed=0, autoreset=False)
    see_with(worlds, learner.policy)
    results = {}
    for name, policy in policies.items():
        rate = evaluate_policy(worlds, policy, episodes=args.eval_episodes, seed=args.seed)
        results[name] = rate.to_dict() | {
            'sampler': str(policy.spec.sampler),
            'checkpoint': where[name],
        }
        print(f'{name:8} {policy.spec.sampler!s:28} success {rate}  {where[name]}')
    if args.json:
        write_json(
            args.json,
            {
                'task': spec.task,
                'control_steps': learner.control_steps,
                'updates': learner.updates,
                'seconds': seconds,
                'alarms': learner.alarms,
                'config': vars(args) | {'run': None},
                'results': results,
                'curve': read_metrics(training.run_dir),
            },
        )
    return 0
