# SPDX-License-Identifier: Apache-2.0
"""Part of `dipod bench serve`: the policy server in real time, asked for a chunk in every period.

An observation is one JointState (what else the policy looks at comes just before it). The baseline
is taken in the same periods: a quarter of one after the observation a bare ping goes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PointStamped
from rclpy.task import Future
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.cli.bench_measure import no_garbage_collection, spread, time_calls
from dipod_ros.cli.bench_player import Ping, golden_streams
from dipod_ros.cli.bench_ros import ANSWER_TIMEOUT_S, START_TIMEOUT_S, Stack
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.ros import messages, qos

US = 1e6
# When in a period the ping goes out, and how long its observation's answer is waited for.
PING_AT, PATIENCE = 0.25, 0.9
WARM_UP = 20  # answers
CALLS = 25  # control periods of a round


class RealTimeRobot:
    """An arm that follows its trajectories to the letter and tells where it is, once per period."""

    def __init__(self, stack: Stack, manifest: Manifest, controller: str) -> None:
        """Stand where the golden observation stands; its points stay where they are."""
        spec = manifest.spec
        self._stack = stack
        self.period_s = spec.control_period_s
        self._period_ns = round(spec.control_period_s * messages.NS_PER_S)
        self._writer = messages.JointStateWriter(spec.joints)
        self._index = messages.JointIndex(spec.joints)
        self._position, points = golden_streams(manifest)
        create = stack.node.create_publisher
        self._joints = create(JointState, 'joint_states', qos.STATE)
        self._points = [(create(PointStamped, topic, qos.STATE), v) for topic, v in points]
        # Stamps are the time of the node's clock, on a grid of control periods.
        self._start_ns = self._stamp_ns = stack.node.get_clock().now().nanoseconds
        self._start_s = self._due_s = time.monotonic()
        self._periods = 0
        self._future = Future()
        self._began_s: dict[int, float] = {}  # by stamp, of observations not answered so far
        self._trajectory: messages.Trajectory | None = None
        self.seconds: list[float] = []  # from publishing joint_states to receiving their answer
        stack.node.create_subscription(
            JointTrajectory, f'{controller}/joint_trajectory', self._on_answer, qos.COMMAND
        )

    @property
    def unanswered(self) -> int:
        """How many observations have no answer."""
        return len(self._began_s)

    def forget(self) -> None:
        """Begin to count and to take time anew."""
        self._began_s.clear()
        self.seconds.clear()

    def live(self, meanwhile: Callable[[], object]) -> None:
        """Spend one control period; `meanwhile` is called when a quarter of it is over."""
        # Periods that were missed are missed: a robot's clock does not wait.
        since = (time.monotonic() - self._start_s) / self.period_s
        self._periods = max(self._periods, int(since)) + 1
        self._stamp_ns = self._start_ns + self._periods * self._period_ns
        self._due_s = self._start_s + self._periods * self.period_s
        self._move()
        others = [(to, messages.point_msg(self._stamp_ns, values)) for to, values in self._points]
        still = np.zeros(len(self._position))
        joints = self._writer.message(self._stamp_ns, self._position, still)
        self._future = Future()
        self._wait_until(self._due_s)
        for publisher, msg in others:
            publisher.publish(msg)
        self._began_s[self._stamp_ns] = time.perf_counter()
        self._joints.publish(joints)
        # Not longer, so that the ping is on time; what comes later is taken when it comes.
        left_s = self._due_s + PING_AT * self.period_s - time.monotonic()
        self._stack.spin_until_done(self._future, max(left_s, 0.0))
        self._wait_until(self._due_s + PING_AT * self.period_s)
        meanwhile()
        self._stack.spin_until_done(
            self._future, max(self._due_s + PATIENCE * self.period_s - time.monotonic(), 0.0)
        )

    def _wait_until(self, due_s: float) -> None:
        left = due_s - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _move(self) -> None:
        """Be where the newest trajectory is at this period's stamp."""
        newest = self._trajectory
        if newest is not None:
            now_s = (self._stamp_ns - newest.stamp_ns) / messages.NS_PER_S
            columns = newest.positions.T
            self._position = np.array([np.interp(now_s, newest.times_s, c) for c in columns])

    def _on_answer(self, msg: JointTrajectory) -> None:
        now = time.perf_counter()
        stamp_ns = messages.stamp_ns(msg.header.stamp)
        began = self._began_s.pop(stamp_ns, None)
        if began is not None:
            self.seconds.append(now - began)
        if stamp_ns == self._stamp_ns and not self._future.done():
            self._future.set_result(None)
        self._trajectory = messages.read_trajectory(msg, self._index)


def measure_realtime(
    stack: Stack,
    manifest: Manifest,
    controller: str,
    engine: Callable[[int], np.ndarray],
    rounds: int,
) -> dict[str, Any]:
    """Return the figures of `rounds` times `CALLS` control periods."""
    ping = Ping(stack, manifest.spec.joints)
    ping.measure(START_TIMEOUT_S)
    robot = RealTimeRobot(stack, manifest, controller)
    deadline = time.monotonic() + START_TIMEOUT_S
    bare: list[float] = []

    def live() -> None:
        robot.live(lambda: bare.append(ping.measure(ANSWER_TIMEOUT_S)))

    while len(robot.seconds) < WARM_UP:
        live()
        stack.check()
        if time.monotonic() > deadline:
            raise stack.failure(f'waited {START_TIMEOUT_S:.0f} s for commands in real time in vain')
    robot.forget()
    bare.clear()
    ratios = []
    with no_garbage_collection():
        for _ in range(rounds):
            answers, pings = len(robot.seconds), len(bare)
            for _ in range(CALLS):
                live()
            bare_s = np.median(bare[pings:]) + np.median(time_calls(engine, CALLS))
            if len(robot.seconds) > answers:
                ratios.append(float(np.median(robot.seconds[answers:]) / bare_s))
    if not ratios:
        raise stack.failure('no observation was answered in real time')
    return {
        **spread('realtime_decision_us', np.array(robot.seconds) * US),
        **spread('realtime_roundtrip_us', np.array(bare) * US),
        'ratio_realtime': float(np.median(ratios)),
        'realtime_unanswered': robot.unanswered,
    }
