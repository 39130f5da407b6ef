# SPDX-License-Identifier: Apache-2.0
"""Life of a node's process: start, spin, stop on Ctrl-C, exit code. Knows no particular node."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from dipod_ros.errors import UserError

try:  # rclpy 7.1.4 (Jazzy) and later; Humble has none.
    from rclpy.experimental import EventsExecutor
except ImportError:
    EventsExecutor = None

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER_ERROR = 2

# EventsExecutor.spin() without a timeout dispatches nothing in rclpy 7.1.6, and Python runs its
# signal handlers only between two of these waits, so this bounds how long Ctrl-C takes.
SPIN_SLICE_S = 0.05

# One Ctrl-C can arrive twice: from the terminal, and forwarded by whoever started the node.
SAME_SIGNAL_S = 1.0


class Closeable(Protocol):
    """What a node may offer besides rclpy's interface."""

    def close(self) -> None:
        """Stop threads and say goodbye on topics; the context still works."""


class _Stop:
    """Why and with which exit code this process ends; set from any thread."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.code = EXIT_OK
        self.message = ''
        self.spinning = False
        self.signalled_s = 0.0

    def request(self, code: int = EXIT_OK, message: str = '') -> None:
        if not self.event.is_set():  # the first reason is the one to report
            self.code, self.message = code, message
            self.event.set()

    def fail(self, code: int, message: str) -> None:
        """Report that the end itself went wrong, unless there is a failure to report already."""
        if self.code == EXIT_OK:
            self.code, self.message = code, message
        self.event.set()

    def on_signal(self, signum: int, _frame: object) -> None:
        now = time.monotonic()
        if self.event.is_set():
            # Another one a while later means that the polite way takes too long. Not by an
            # exception: raised inside a C++ destructor it would abort the process with a dump.
            if now - self.signalled_s > SAME_SIGNAL_S:
                os._exit(self.code or 128 + signum)
            return
        self.signalled_s = now
        if not self.spinning:
            raise KeyboardInterrupt  # while the node is being built nobody polls the event
        self.request()


_stop = _Stop()


def request_exit(code: int = EXIT_OK, message: str = '') -> None:
    """Ask the process of `run_node` to end, from any thread; `message` goes to stderr."""
    _stop.request(code, message)


def steady_clock() -> Clock:
    """Return a ROS clock that no /clock and no system time change can stop, for timers."""
    return Clock(clock_type=ClockType.STEADY_TIME)


def make_executor(context: Context | None = None) -> Executor:
    """Return the best executor of this distribution: events-based, else single-threaded.

    Never the multi-threaded one: it spins busily (ros2/rclpy#1452).
    """
    best = SingleThreadedExecutor if EventsExecutor is None else EventsExecutor
    return best(context=context)


def spin_slice(executor: Executor, timeout_s: float = SPIN_SLICE_S) -> None:
    """Dispatch callbacks for about `timeout_s`, then return."""
    executor.spin_until_future_complete(Future(), timeout_s)


def spin_until(
    executor: Executor, condition: Callable[[], bool], timeout_s: float, slice_s: float = 0.01
) -> bool:
    """Dispatch callbacks until `condition()` holds; return whether it did within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        executor.spin_once(timeout_sec=slice_s)
    return True


def run_node(factory: Callable[[], Node], args: list[str] | None = None) -> int:
    """Run the node that `factory` makes until a signal or `request_exit`; return the exit code.

    The node's `close()`, where it has one, is called while its context still works, so that it can
    join threads and publish a last message. Exit codes: 0 for SIGINT, SIGTERM and a normal end, 2
    for a UserError (one line on stderr), 1 for anything unexpected (traceback). `--help` prints
    where to read on, and starts nothing.
    """
    name = Path(sys.argv[0] or 'node').stem
    if {'-h', '--help'} & set(sys.argv[1:] if args is None else args):
        print(_help(name, factory))
        return EXIT_OK
    # Two processes with OpenMP threads on shared cores run a hundred times slower than with one
    # each; nodes raise their own thread count by parameter.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    global _stop
    stop = _stop = _Stop()
    before = {s: signal.signal(s, stop.on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    node = executor = None
    try:
        # rclpy's own handlers would shut the context down under a node that still has to stop.
        _init(args)
        node = factory()
        name = node.get_name()
        executor = make_executor()
        executor.add_node(node)
        stop.spinning = True
        while not stop.event.is_set() and rclpy.ok():
            spin_slice(executor)
    except (KeyboardInterrupt, ExternalShutdownException):
        stop.request()
    except UserError as error:
        stop.request(EXIT_USER_ERROR, str(error))
    except Exception as error:
        traceback.print_exc()
        stop.request(EXIT_BUG, f'{type(error).__name__}: {_first_line(error)}')
    finally:
        _tear_down(node, executor, stop)
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.message:
        print(f'{name}: {stop.message}', file=sys.stderr, flush=True)
    return stop.code


def _help(name: str, factory: Callable[[], Node]) -> str:
    about = (factory.__doc__ or 'A ROS 2 node.').split('\n')[0]
    return (
        f'usage: {name} --ros-args [--params-file FILE] [-p NAME:=VALUE] [-r FROM:=TO]\n\n{about}\n'
        'Its parameters are in that file; of one that runs, `ros2 param describe` tells them.'
    )


def _tear_down(node: Node | None, executor: Executor | None, stop: _Stop) -> None:
    try:
        if node is not None:
            _close(node, stop)
            if executor is not None:
                executor.remove_node(node)
            node.destroy_node()
        if executor is not None:
            executor.shutdown()
    except Exception as error:
        traceback.print_exc()
        stop.fail(EXIT_BUG, f'{type(error).__name__}: {_first_line(error)}')
    finally:
        rclpy.try_shutdown()


def _close(node: Node, stop: _Stop) -> None:
    close = getattr(node, 'close', None)
    try:
        if close is not None:
            close()
    except UserError as error:
        stop.fail(EXIT_USER_ERROR, str(error))


def _init(args: list[str] | None) -> None:
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # the classes differ between distributions
        raise UserError(f'cannot start ROS with these arguments: {_first_line(error)}') from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split('\n')[0]
