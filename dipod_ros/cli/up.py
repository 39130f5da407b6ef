# SPDX-License-Identifier: Apache-2.0
"""`dipod up FILE.launch.yaml`: runs a launch file, also where only pip is and no `ros2 launch`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from pathlib import Path

from dipod_ros.errors import UserError

HELP = 'run a *.launch.yaml, as `ros2 launch` does'

SUFFIX = '.launch.yaml'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        'file', metavar='FILE', help='a launch file, or the name of a shipped one, such as sim'
    )
    parser.add_argument(
        'arguments',
        metavar='NAME:=VALUE',
        nargs='*',
        default=[],
        help='arguments of the launch file',
    )
    parser.add_argument(
        '-s', '--show-args', action='store_true', help='list the arguments of the file and end'
    )
    parser.add_argument(
        '-n', '--dry-run', action='store_true', help='print the command of each node and end'
    )
    parser.add_argument(
        '--keep-going', action='store_true', help='let the other nodes run on when one fails'
    )


def run(args: argparse.Namespace) -> int:
    """Run the file until its nodes end or a signal comes; return the first failure's exit code."""
    path, given = find_launch_file(args.file), parse_arguments(args.arguments)
    if args.show_args:
        _show_arguments(path, given)
        return 0
    from dipod_ros.ros.launch_runner import LaunchRunner
    from dipod_ros.ros.launch_runner.in_vain import set_in_vain

    runner = LaunchRunner(path, given, keep_going=args.keep_going)
    for node in runner.nodes:
        for line in set_in_vain(node):
            print(f'warning: {line}', file=sys.stderr)
    if args.dry_run:
        for node in runner.nodes:
            print(f'# {node.label}\n{node.describe()}')
        return 0
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    asked = 0

    def on_signal(_number: int, _frame: object) -> None:
        # The first asks politely; each further one means that it took too long.
        nonlocal asked
        asked += 1

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in handled}
    try:
        runner.start()
        answered = 0
        while (code := runner.poll()) is None:
            if answered < asked:
                answered += 1
                runner.escalate()
            runner.pause()
        return code
    finally:
        runner.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def find_launch_file(name: str) -> Path:
    """Return a launch file by path, or by the name of a shipped one; raises UserError."""
    from dipod_ros.resources import share_dir

    given = Path(name).expanduser()
    shipped = share_dir() / 'launch'
    for candidate in (given, shipped / name, shipped / f'{name}{SUFFIX}'):
        if candidate.is_file():
            return candidate
    names = ', '.join(sorted(p.name for p in shipped.glob(f'*{SUFFIX}')))
    raise UserError(f'no launch file {name!r}: give the path of one, or a shipped one: {names}')


def parse_arguments(words: list[str]) -> dict[str, str]:
    """Turn NAME:=VALUE words into a dict; the last one wins. Raises UserError."""
    given = {}
    for word in words:
        name, separator, value = word.partition(':=')
        if not separator or not name:
            raise UserError(f'{word!r} is no launch argument: write NAME:=VALUE')
        given[name] = value
    return given


def _show_arguments(path: Path, given: dict[str, str]) -> None:
    from dipod_ros.ros.launch_runner.arguments import declared_arguments

    print("Arguments (pass arguments as '<name>:=<value>'):")
    for argument in declared_arguments(path, given):
        note = '' if not argument.conditional else '  (used under a condition only)'
        print(f'\n    {argument.name}{note}')
        text = argument.description or 'no description given'
        print(textwrap.fill(text, 92, initial_indent=' ' * 8, subsequent_indent=' ' * 8))
        if argument.choices:
            print(f'        (one of: {", ".join(argument.choices)})')
        if argument.default is None:
            print('        (required)')
        else:
            print(f'        (default: {argument.default!r})')
