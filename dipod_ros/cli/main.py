# SPDX-License-Identifier: Apache-2.0
"""The `dipod` command: finds the subcommand, runs it, turns its failures into one line.

Each subcommand is a module of this package with `HELP`, `add_arguments(parser)` and
`run(args) -> int | None`. Modules import heavy libraries inside `run`, so that help is instant;
this file never imports torch, rclpy or mujoco.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from dipod_ros.errors import UserError

COMMANDS = (
    'demo',
    'up',
    'doctor',
    'inspect',
    'demos',
    'pretrain',
    'distill',
    'finetune',
    'eval',
    'models',
    'bench',
)
"""In the order of `dipod --help`; one whose module is not installed is not listed."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dipod` with argv (default: the process's own) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv).parse_args(argv)
        if args.command is None:
            _parser([]).print_help()
            return EXIT_USER_ERROR
        return int(args.run(args) or 0)
    except UserError as error:
        if _debug():
            raise
        print(f'dipod: {error}', file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if _debug():
            raise
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `dipod inspect ... | head`: the reader has enough. Python would complain once more while
        # flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def available() -> list[str]:
    """Return the subcommands that are installed."""
    return [name for name in COMMANDS if importlib.util.find_spec(_module(name)) is not None]


def call(module: ModuleType, argv: Sequence[str]) -> int:
    """Run one subcommand's module with argv, for commands that are made of others."""
    parser = argparse.ArgumentParser(prog=f'dipod {module.__name__.rsplit(".", 1)[-1]}')
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(list(argv))) or 0)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='dipod',
        description='Diffusion policies on robots: train, inspect, launch and improve them.',
        epilog='DIPOD_DEBUG=1 shows the traceback of an error.',
    )
    parser.add_argument('--version', action='version', version=f'dipod {_version()}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND')
    # Only the command that is asked for is imported; all of them only for the list.
    names = available()
    wanted = next((word for word in argv if not word.startswith('-')), None)
    for name in [wanted] if wanted in names else names:
        module = importlib.import_module(_module(name))
        sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def _module(name: str) -> str:
    return f'dipod_ros.cli.{name}'


def _version() -> str:
    try:
        return version('dipod_ros')
    except PackageNotFoundError:  # run from a checkout that is not installed
        return 'unknown'


def _debug() -> bool:
    return os.environ.get('DIPOD_DEBUG', '') not in ('', '0')


if __name__ == '__main__':
    raise SystemExit(main())
