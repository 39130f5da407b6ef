# SPDX-License-Identifier: Apache-2.0
"""`dipod bench`: how fast the parts are on this machine, each beside a baseline of the same run.

The benchmarks themselves are bench_engine.py, bench_sim.py and so on: modules with
`measure(options) -> dict`. What they measure, and every key, is in docs/benchmarks.md.
`dipod bench learn` is bench_learn.py: it takes hours, so `all` does not include it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

from dipod_ros.cli import bench_learn
from dipod_ros.cli.output import add_json_argument, write_json
from dipod_ros.errors import UserError

HELP = 'measure latency, throughput and learning beside their baselines'

# Those of a run without a name; the others take minutes or hours.
BENCHES = ('engine', 'sim', 'serve')
LONGER = ('swap', 'realtime', 'train', 'distill', 'delay')
REALTIME = ('swap', 'realtime')  # in which the operating system's scheduler matters
MODULES = {'realtime': 'streams'}  # where the file has another name
# These play the robot themselves, and have no camera to show a policy.
BLIND = ('sim', 'serve', 'swap', 'delay')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        'what',
        nargs='?',
        choices=(*BENCHES, *LONGER, 'all', 'learn'),
        help='engine: ONNX Runtime and PyTorch; sim: physics alone and through ROS; serve: from '
        'observation to command; swap: policies swapped under a stream of commands; realtime: a '
        'command stream, alone and beside a trainer; train: what an update costs; distill: '
        'few-step students; delay: motion and success when inference takes long; learn: methods of '
        'online learning, for hours; without this the first three, quickly',
    )
    parser.add_argument(
        '--checkpoint',
        default='pillar_reach_flow',
        help='the policy of many steps (default %(default)s)',
    )
    parser.add_argument(
        '--student',
        default='pillar_reach_student',
        help='the policy of few steps (default %(default)s)',
    )
    parser.add_argument(
        '--sampler',
        metavar='SOLVER-STEPS',
        help='run both with this sampler instead of their own, e.g. euler-4',
    )
    parser.add_argument(
        '--quick', action='store_true', help='few repetitions: shows that it works, not how fast'
    )
    parser.add_argument(
        '--realtime-priority',
        type=int,
        default=0,
        metavar='N',
        help='swap and realtime: run what commands, and the bare stream beside it, with SCHED_FIFO '
        'priority N, where that is permitted',
    )
    add_json_argument(parser)
    bench_learn.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for, print one table each, then write everything at once."""
    # Before torch is imported: more threads on shared cores are slower, and not what is compared.
    os.environ['OMP_NUM_THREADS'] = '1'
    if args.what == 'learn':
        return bench_learn.run(args)
    if bench_learn.given(args):
        raise UserError(f'{bench_learn.given(args)[0]} belongs to `dipod bench learn`')
    if args.realtime_priority and args.what not in REALTIME:
        raise UserError(
            f'--realtime-priority belongs to `dipod bench {"` and `dipod bench ".join(REALTIME)}`'
        )
    from dipod_ros.cli.bench_measure import Options
    from dipod_ros.cli.bench_report import machine_facts, table

    results: dict[str, Any] = {'machine': machine_facts()}
    with tempfile.TemporaryDirectory(prefix='dipod_bench_') as folder:
        options = Options(
            flow=_checkpoint(args.checkpoint, args.sampler, Path(folder) / 'flow'),
            student=_checkpoint(args.student, args.sampler, Path(folder) / 'student'),
            quick=args.quick or args.what is None,
            realtime_priority=args.realtime_priority,
        )
        names = BENCHES if args.what in (None, 'all') else (args.what,)
        _require_blind(names, options.flow, options.student)
        for name in names:
            file = MODULES.get(name, name)
            module = importlib.import_module(f'dipod_ros.cli.bench_{file}')
            results[name] = {'quick': options.quick, **module.measure(options)}
            print(table(name, results[name]))
    print('machine: ' + ', '.join(f'{k} {v}' for k, v in results['machine'].items()))
    if args.json:
        print(f'results: {write_json(args.json, results)}')
    return 0


def _require_blind(names: tuple[str, ...], *paths: Path) -> None:
    """Raise UserError where a policy that looks through a camera would be measured without one."""
    from dipod_ros.policy.checkpoint import read_manifest

    blind = [name for name in names if name in BLIND]
    for path in paths if blind else ():
        cameras = [stream.name for stream, _ in read_manifest(path).spec.images]
        if cameras:
            raise UserError(
                f'bench {blind[0]} shows no pictures, and {path.name} looks at stream '
                f'{cameras[0]}: use `dipod bench engine` (encoder_onnx_us), `dipod bench realtime` '
                f'(camera_core_share) or `dipod eval {path.name}`'
            )


def _checkpoint(name: str, sampler: str | None, folder: Path) -> Path:
    """Return the checkpoint to measure; with another sampler, a copy of it in `folder`."""
    from dipod_ros.cli.arguments import find_checkpoint, parse_sampler
    from dipod_ros.policy.checkpoint import read_manifest

    path = find_checkpoint(name).resolve()
    if sampler is None:
        return path
    from dipod_ros.policy.flow import load_policy

    copy = folder / f'{path.name}_{sampler}'
    kind = read_manifest(path).kind
    load_policy(path).with_sampler(parse_sampler(sampler)).save(copy, kind=kind)
    return copy
