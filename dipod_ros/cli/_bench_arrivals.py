# SPDX-License-Identifier: Apache-2.0
"""Listening to command streams for `dipod bench realtime`, and what processes cost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import Float64MultiArray, String

from dipod_ros.cli.bench_ros import Stack
from dipod_ros.ros import qos

NS_PER_US = 1e3


class Arrivals:
    """When the middleware of this process received each message of a topic, ns, and when it left.

    Messages are fetched now and then; the middleware dates them on a thread of its own, so neither
    this process' interpreter nor its executor is in the figures.
    """

    def __init__(
        self,
        stack: Stack,
        topic: str,
        on_message: Callable[[bytes, int, int], None] = lambda *_: None,
    ) -> None:
        """Listen to a topic of arrays; `on_message` gets the bytes and both times of each."""
        self._on_message = on_message
        self.ns: list[int] = []
        self.sent_ns: list[int] = []  # on the sender's clock
        namespace, name = stack.node.get_namespace(), f'arrivals_{topic.replace("/", "_")}'
        # On a node of its own, which no executor serves.
        self._node = rclpy.create_node(name, context=stack.node.context, namespace=namespace)
        self._subscription = self._node.create_subscription(
            Float64MultiArray, topic, lambda _: None, qos.STREAM
        )

    def collect(self) -> int:
        """Fetch what has come; return how many there were so far."""
        handle = self._subscription.handle
        with handle:
            while (taken := handle.take_message(Float64MultiArray, True)) is not None:
                data, info = taken
                self.ns.append(info['received_timestamp'])
                self.sent_ns.append(info['source_timestamp'])
                self._on_message(data, self.ns[-1], self.sent_ns[-1])
        return len(self.ns)

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_node()

    def period_errors_us(
        self, begin: int, end: int, period_s: float, sent: bool = False
    ) -> np.ndarray:
        """Return how far each interval between messages `begin` and `end` was off the period.

        Between their arrivals, or with `sent` between their departures.
        """
        times_ns = self.sent_ns if sent else self.ns
        return np.abs(np.diff(times_ns[begin:end]) - period_s * 1e9) / NS_PER_US


class Figures:
    """The newest diagnostics of the policy server, and status of the simulator and trainer."""

    def __init__(self, stack: Stack) -> None:
        """Listen."""
        self.server: dict[str, dict[str, str]] = {}
        self.simulator: dict = {}
        self.trainer: dict = {}
        name = f'{stack.node.get_namespace().strip("/")}/policy_server: '

        def on_diagnostics(msg: DiagnosticArray) -> None:
            for status in msg.status:
                if status.name.startswith(name):
                    task = status.name.removeprefix(name)
                    self.server[task] = {v.key: v.value for v in status.values}

        listen = stack.node.create_subscription
        listen(DiagnosticArray, '/diagnostics', on_diagnostics, 10)
        for attribute, topic in (
            ('simulator', 'mujoco_sim/status'),
            ('trainer', 'trainer/status'),
        ):
            listen(
                String,
                topic,
                lambda msg, a=attribute: setattr(self, a, json.loads(msg.data)),
                qos.LATCHED,
            )


@contextlib.contextmanager
def ticking(stack: Stack, rate_hz: float, size: int, priority: int = 0) -> Iterator[None]:
    """Run the bare stream beside; it has ended when this returns."""
    command = [sys.executable, '-m', 'dipod_ros.cli.bench_ticker', str(rate_hz), str(size)]
    command += [str(priority)]
    command += ['--ros-args', '-r', f'__ns:={stack.node.get_namespace()}']
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.stdin.close()  # which is its sign to end
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(stack: Stack, node: str) -> float:
    """Return the processor time that a node of the stack has used so far."""
    namespace = stack.node.get_namespace().encode()
    ticks = 0
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            words = (folder / 'cmdline').read_bytes().split(b'\0')
            mine = any(namespace in w for w in words) and any(node.encode() in w for w in words)
            if mine:
                fields = (folder / 'stat').read_text().rsplit(')', 1)[1].split()
                ticks += int(fields[11]) + int(fields[12])  # utime, stime
        except OSError:  # it ended meanwhile
            continue
    return ticks / os.sysconf('SC_CLK_TCK')
