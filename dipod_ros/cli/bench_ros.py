# SPDX-License-Identifier: Apache-2.0
"""ROS nodes of a launch file for the length of a benchmark, out of everybody's way.

Everything is private: loopback, a domain and a namespace of its own, so that no robot can hear a
benchmark. rclpy is imported only when a stack is started.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipod_ros.errors import UserError

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node
    from rclpy.task import Future

    from dipod_ros.ros.launch_runner import LaunchRunner

# Starting means importing torch and exporting a graph, on cores that may be busy.
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Stack:
    """Running nodes, and a node of this process beside them in the same namespace."""

    node: Node
    executor: Executor
    _launch: LaunchRunner
    _log: Path

    def spin(self, seconds: float) -> None:
        """Dispatch callbacks for a while; raises UserError when a node has ended."""
        from dipod_ros.ros.runtime import spin_slice

        spin_slice(self.executor, seconds)
        self.check()

    def spin_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Dispatch callbacks until the condition holds; raises UserError when it never does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.spin(0.05)
            if time.monotonic() > deadline:
                raise self.failure(f'waited {timeout_s:.0f} s for {what} in vain')

    def spin_until_done(self, future: Future, timeout_s: float) -> bool:
        """Dispatch callbacks until a future is done; return whether it is."""
        self.executor.spin_until_future_complete(future, timeout_s)
        return future.done()

    def check(self) -> None:
        """Raise UserError when a node has ended."""
        code = self._launch.poll()
        if code is not None:
            raise self.failure(f'the nodes ended with exit code {code}')

    def failure(self, what: str) -> UserError:
        """Return an error that says what happened and what the nodes said last."""
        lines = self._log.read_text(errors='replace').splitlines()
        said = f'; last message: {lines[-1]}' if lines else ''
        return UserError(f'bench: {what}{said}')


@contextlib.contextmanager
def running(launch_file: str, arguments: Mapping[str, str]) -> Iterator[Stack]:
    """Run the nodes of a shipped launch file; all have ended when this returns.

    Raises UserError without rclpy, or when the nodes cannot start.
    """
    _keep_private()
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise UserError(
            'rclpy is not importable: source your ROS 2 installation; '
            '`dipod bench engine` needs none'
        ) from error
    from dipod_ros.resources import resource
    from dipod_ros.ros.launch_runner import LaunchRunner
    from dipod_ros.ros.runtime import make_executor

    namespace = f'bench_{os.getpid()}'
    with contextlib.ExitStack() as cleanup:
        folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix='dipod_bench_'))
        context = rclpy.Context()
        rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
        cleanup.callback(rclpy.try_shutdown, context=context)
        node = rclpy.create_node('bench', context=context, namespace=namespace)
        cleanup.callback(node.destroy_node)
        executor = make_executor(context)
        cleanup.callback(executor.shutdown)
        executor.add_node(node)
        cleanup.callback(executor.remove_node, node)
        log = Path(folder) / 'nodes.log'
        launch = LaunchRunner(
            resource(f'launch/{launch_file}'),
            {**arguments, 'ns': namespace, 'log_level': 'warn'},
            log_file=log,
        )
        cleanup.callback(launch.stop)
        launch.start()
        yield Stack(node, executor, launch, log)


def policy_arguments(checkpoint: Path, robot: str) -> dict[str, str]:
    """Return launch arguments for a server that answers in lockstep on ONNX Runtime."""
    from dipod_ros.resources import resource

    return {
        'robot': str(resource(f'config/robots/{robot}.yaml')),
        'checkpoint': str(checkpoint),
        'model_dirs': str(checkpoint.parent),
        'engine': 'onnx',
        'lockstep': 'true',
        'seed': '0',
    }


@functools.cache
def _keep_private() -> None:
    """Choose loopback and a ROS domain, once and before rclpy reads them; nodes inherit both."""
    # 1..100: above, DDS ports collide with ephemeral ones. Far from the one that was chosen, where
    # a robot is, perhaps, and from its neighbours.
    given = os.environ.get('ROS_DOMAIN_ID', '')
    own = int(given) + 50 if given.isdecimal() else os.getpid()
    os.environ['ROS_DOMAIN_ID'] = str(own % 100 + 1)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    if os.environ.get('ROS_DISTRO') == 'humble':
        os.environ['ROS_LOCALHOST_ONLY'] = '1'  # the older name; later distributions warn about it
