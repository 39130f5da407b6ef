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
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from dipod_ros.cli.checks import require_finite, require_outputs
from dipod_ros.errors import UserError

COMMANDS = (
    'demo',
    'up',
    'doctor',
    'robot-file',
    'inspect',
    'export',
    'demos',
    'pretrain',
    'distill',
    'finetune',
    'eval',
    'drift',
    'toys',
    'models',
    'bench',
    'gpu-check',
)
"""In the order of `dipod --help`; one whose module is not installed is not listed."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_TERMINATED = 143  # 128 + SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dipod` with argv (default: the process's own) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    before = _end_cleanly_on_sigterm()
    try:
        if argv and argv[0] in available():
            return call(importlib.import_module(_module(argv[0])), argv[1:])
        parser = _list_parser()
        parser.parse_args(argv)  # ends here with help, version or an unknown command
        parser.print_help()
        return EXIT_USER_ERROR
    except UserError as error:
        if _debug():
            raise
        from dipod_ros.cli.output import printable

        print('dipod:', printable(str(error), keep='\n'), file=sys.stderr)
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
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def available() -> list[str]:
    """Return the subcommands that are installed."""
    return [name for name in COMMANDS if importlib.util.find_spec(_module(name)) is not None]


def call(module: ModuleType, argv: Sequence[str]) -> int:
    """Run one subcommand's module with argv; also for commands that are made of others."""
    name = module.__name__.rsplit('.', 1)[-1].replace('_', '-')
    # No abbreviations: --seed would be taken for --seeds where there is only that.
    parser = argparse.ArgumentParser(
        prog=f'dipod {name}', description=module.HELP, allow_abbrev=False
    )
    module.add_arguments(parser)
    # Intermixed: options may stand between the words of a list, as in `up sim -n task:=reach`.
    args = parser.parse_intermixed_args(list(argv))
    require_finite(args)
    require_outputs(args)
    return int(module.run(args) or 0)


def _list_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='dipod',
        allow_abbrev=False,
        description='Diffusion policies on robots: train, inspect, launch and improve them.',
        epilog='dipod COMMAND --help explains one. DIPOD_DEBUG=1 shows the traceback of an error.',
    )
    parser.add_argument('--version', action='version', version=f'dipod {_version()}')
    commands = parser.add_subparsers(metavar='COMMAND')
    for name in available():
        commands.add_parser(name, help=importlib.import_module(_module(name)).HELP)
    return parser


def _end_cleanly_on_sigterm():
    """Let `kill` run the `finally` blocks: a demo has nodes to end. Return the handler before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))


def _module(name: str) -> str:
    return f'dipod_ros.cli.{name.replace("-", "_")}'


def _version() -> str:
    try:
        return version('dipod_ros')
    except PackageNotFoundError:  # run from a checkout that is not installed
        return 'unknown'


def _debug() -> bool:
    return os.environ.get('DIPOD_DEBUG', '') not in ('', '0')


if __name__ == '__main__':
    raise SystemExit(main())
