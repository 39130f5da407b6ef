# SPDX-License-Identifier: Apache-2.0
"""A played robot in real time: follows a stream of positions, asks for swaps, and takes note."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped
from rcl_interfaces.srv import SetParameters
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String, UInt8MultiArray

from dipod_ros.cli._bench_arrivals import Arrivals
from dipod_ros.cli.bench_ros import Stack
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.policy.decision import decode
from dipod_ros.policy.limits import JointLimits
from dipod_ros.ros import messages, qos

# Slack for round-off in second differences of positions.
TOLERANCE = 1e-6


class CommandStream:
    """Every command that was received: its position, its two times, and the phase it came in.

    The times are those of the middlewares: when the receiver's had it, with the transport and the
    scheduling of both processes in it, and when the sender's took it.
    """

    def __init__(self) -> None:
        self._positions: list[np.ndarray] = []
        self._received_ns: list[int] = []
        self._sent_ns: list[int] = []
        self._phases: list[int] = []
        self._swaps: list[bool | None] = [None]  # by phase; None is not measured

    @property
    def count(self) -> int:
        """How many commands came."""
        return len(self._positions)

    def begin(self, with_swaps: bool | None) -> None:
        """Begin a phase with swaps or without, or one that is not measured."""
        self._swaps.append(with_swaps)

    def add(self, position: np.ndarray, received_ns: int, sent_ns: int) -> None:
        """Take a command [A] (rad); the two times may be of different clocks."""
        self._positions.append(position)
        self._received_ns.append(received_ns)
        self._sent_ns.append(sent_ns)
        self._phases.append(len(self._swaps) - 1)

    def gaps_s(self, with_swaps: bool, sent: bool = False) -> np.ndarray:
        """Return the seconds between successive commands of phases of a kind.

        Between their arrivals, or with `sent` between their departures.
        """
        kinds = np.array([self._swaps[p] is with_swaps for p in self._phases])
        times_ns = self._sent_ns if sent else self._received_ns
        return np.diff(times_ns)[kinds[1:] & kinds[:-1]] / messages.NS_PER_S

    def violations(self, limits: JointLimits, dt: float) -> int:
        """Return how many commands leave position, velocity or acceleration limits.

        Successive commands are one period apart, whenever they came.
        """
        path = np.array(self._positions)
        speed = np.diff(path, axis=0) / dt
        bend = np.diff(speed, axis=0) / dt
        outside = (path < limits.lower - TOLERANCE) | (path > limits.upper + TOLERANCE)
        fast = np.abs(speed) > limits.velocity * (1 + TOLERANCE)
        rough = np.abs(bend) > limits.acceleration * (1 + TOLERANCE)
        return sum(int(np.any(bad, axis=1).sum()) for bad in (outside, fast, rough))


class StreamPlayer:
    """A robot that is where it was told to be; its points stay where they are."""

    def __init__(self, stack: Stack, manifest: Manifest, controller: str, period_s: float) -> None:
        """Stand where the golden observation stands, and publish once per period."""
        self._stack = stack
        self.stream = CommandStream()
        self.acting = ''
        self.decisions = self.decisions_lost = 0
        # Control periods that the server itself noticed a period late or more, by kind of phase.
        self.late_periods = {True: 0, False: 0}
        self._late: int | None = None
        self._phase: bool | None = None
        self._seq: int | None = None
        self._first_s: dict[str, float] = {}  # sha256: when its first decision since a request came
        node, spec = stack.node, manifest.spec
        self._writer = messages.JointStateWriter(spec.joints)
        self._position = np.asarray(spec.limits.lower + spec.limits.upper) / 2
        self._last = self._position
        self._period_s = period_s
        self._points = []
        start = 0
        for stream in spec.streams:
            values = manifest.golden.observation[start : start + stream.size]
            start += stream.size
            if stream.source == 'point':
                publisher = node.create_publisher(PointStamped, stream.topic, qos.STATE)
                self._points.append((publisher, values))
            elif stream.source == 'joint_position':
                self._position = self._last = values.astype(np.float64)
        self._commands = Arrivals(stack, f'{controller}/commands', self._on_command)
        self._joints = node.create_publisher(JointState, 'joint_states', qos.STATE)
        self._client = node.create_client(SetParameters, 'policy_server/set_parameters')
        listen = node.create_subscription
        listen(UInt8MultiArray, 'replay', self._on_record, qos.REPLAY)
        listen(String, 'policy_server/status', self._on_status, qos.LATCHED)
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(period_s, self._say, clock=steady)

    def begin(self, with_swaps: bool) -> None:
        """Begin a phase of the stream."""
        self._commands.collect()
        self._phase = with_swaps
        self.stream.begin(with_swaps)

    def end(self) -> None:
        """Measure no more of the stream."""
        self._commands.collect()
        self._commands.close()
        self._phase = None
        self.stream.begin(None)
        self._timer.cancel()

    def swap(self, path: Path, sha256: str, timeout_s: float) -> float:
        """Ask for a policy; return the seconds until it decided for the first time.

        Raises UserError when it is refused or does not come to act.
        """
        self._first_s.pop(sha256, None)
        value = Parameter('checkpoint', value=str(path)).to_parameter_msg()
        asked_s = time.monotonic()
        future = self._client.call_async(SetParameters.Request(parameters=[value]))
        self._stack.spin_until_done(future, timeout_s)
        if not (future.done() and future.result().results[0].successful):
            reason = future.result().results[0].reason if future.done() else 'no answer'
            raise self._stack.failure(f'a swap was refused: {reason}')
        deadline = asked_s + timeout_s
        while sha256 not in self._first_s or self.acting != sha256:
            self._stack.spin(self._period_s / 2)
            if time.monotonic() > deadline:
                raise self._stack.failure(f'a swap took longer than {timeout_s:.0f} s')
        return self._first_s[sha256] - asked_s

    def _say(self) -> None:
        self._commands.collect()
        ns = time.monotonic_ns()
        for publisher, values in self._points:
            publisher.publish(messages.point_msg(ns, values))
        velocity = (self._position - self._last) / self._period_s
        self._last = self._position
        self._joints.publish(self._writer.message(ns, self._position, velocity))

    def _on_command(self, data: bytes, received_ns: int, sent_ns: int) -> None:
        msg = deserialize_message(data, Float64MultiArray)
        self._position, _ = messages.read_commands(msg)
        self.stream.add(self._position, received_ns, sent_ns)

    def _on_record(self, msg: UInt8MultiArray) -> None:
        decision = decode(messages.read_payload(msg))
        self.decisions += 1
        if self._seq is not None:
            self.decisions_lost += decision.seq - self._seq - 1
        self._seq = decision.seq
        # Its stamp is ours, and its command leaves with the next control period.
        self._first_s.setdefault(decision.policy_sha, decision.stamp_s + decision.latency_s)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        values = {v.key: v.value for status in msg.status for v in status.values}
        if 'late control periods' not in values:
            return
        late, before = int(values['late control periods']), self._late
        self._late = late
        if before is not None and self._phase is not None:
            self.late_periods[self._phase] += late - before

    def _on_status(self, msg: String) -> None:
        self.acting = (json.loads(msg.data)['active'] or {}).get('sha256', '')
