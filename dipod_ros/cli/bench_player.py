# SPDX-License-Identifier: Apache-2.0
"""A played robot in lockstep and a bare ping, both timed from publishing to receiving.

The two share everything but what is on the other end, so that their difference is what the policy
server adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PointStamped
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.cli.bench_pong import PING, PONG
from dipod_ros.cli.bench_ros import Stack
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.ros import messages, qos

# A lost message is sent again after this, as the simulator does; the wait counts.
RESEND_S = 1.0


def golden_streams(manifest: Manifest) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Return what the golden observation shows: the joints' positions [A], and points by topic."""
    spec = manifest.spec
    position = np.asarray(spec.limits.lower + spec.limits.upper) / 2
    points = []
    start = 0
    for stream in spec.streams:
        values = manifest.golden.observation[start : start + stream.size]
        start += stream.size
        if stream.source == 'point':
            points.append((stream.topic, values))
        elif stream.source == 'joint_position':
            position = values.astype(np.float64)
    return position, points


class Exchange:
    """One question at a time, recognised in the answer by its stamp."""

    def __init__(self, stack: Stack, what: str) -> None:
        """Take the answer's name for the error that is raised when none comes."""
        self._stack = stack
        self._what = what
        self._stamp_ns = 0
        self._received_s = 0.0
        self._future = Future()
        self.resends = 0

    def ask(self, stamp_ns: int, say: Callable[[], float], timeout_s: float) -> float:
        """Return the seconds from what `say` returns (steady clock) to the answer's arrival.

        `say` publishes everything and returns when it began with what is timed; it is called again
        while no answer comes. Raises UserError after `timeout_s`.
        """
        self._stamp_ns, self._future = stamp_ns, Future()
        deadline = time.monotonic() + timeout_s
        began = say()
        while not self._stack.spin_until_done(self._future, RESEND_S):
            self._stack.check()
            if time.monotonic() > deadline:
                raise self._stack.failure(f'waited {timeout_s:.0f} s for {self._what} in vain')
            self.resends += 1
            say()
        return self._received_s - began

    def answered(self, stamp_ns: int, now_s: float) -> bool:
        """Note an answer; return whether it is the one that was waited for."""
        if stamp_ns != self._stamp_ns or self._future.done():
            return False
        self._received_s = now_s
        self._future.set_result(None)
        return True


class Ping:
    """Sends a JointState to the pong process and waits for it to come back."""

    def __init__(self, stack: Stack, joints: tuple[str, ...]) -> None:
        self.exchange = Exchange(stack, 'the bare round trip')
        self._writer = messages.JointStateWriter(joints)
        self._zeros = np.zeros(len(joints))
        self._publisher = stack.node.create_publisher(JointState, PING, qos.STATE)
        stack.node.create_subscription(JointState, PONG, self._on_answer, qos.STATE)
        self._stamp_ns = 0

    def measure(self, timeout_s: float) -> float:
        """Return the seconds of one round trip."""
        self._stamp_ns += 1
        msg = self._writer.message(self._stamp_ns, self._zeros, self._zeros)

        def say() -> float:
            began = time.perf_counter()
            self._publisher.publish(msg)
            return began

        return self.exchange.ask(self._stamp_ns, say, timeout_s)

    def _on_answer(self, msg: JointState) -> None:
        now = time.perf_counter()
        self.exchange.answered(messages.stamp_ns(msg.header.stamp), now)


class Player:
    """A robot that does exactly what it is told and then shows itself again, like the simulator."""

    def __init__(self, stack: Stack, manifest: Manifest, controller: str) -> None:
        """Stand where the golden observation stands; its points stay where they are."""
        spec = manifest.spec
        self.exchange = Exchange(stack, 'a command of the policy server')
        self.from_first_s: list[float] = []  # as `measure`, from the first message on
        self._manifest = manifest
        self._period_ns = round(spec.control_period_s * messages.NS_PER_S)
        self._stamp_ns = self._period_ns
        self._writer = messages.JointStateWriter(spec.joints)
        self._index = messages.JointIndex(spec.joints)
        create = stack.node.create_publisher
        self._joints = create(JointState, 'joint_states', qos.STATE)
        self._outcome = create(Float64MultiArray, 'outcome', qos.OUTCOME)
        self._position, points = golden_streams(manifest)
        self._points = [(create(PointStamped, topic, qos.STATE), v) for topic, v in points]
        self._first = True
        self._last = JointTrajectory()
        stack.node.create_subscription(
            JointTrajectory, f'{controller}/joint_trajectory', self._on_answer, qos.COMMAND
        )

    def measure(self, timeout_s: float) -> float:
        """Return the seconds from publishing joint_states, the last message of an observation."""
        ns = self._stamp_ns
        # The first outcome begins an episode, which then never ends.
        outcome = messages.Outcome(ns, -1, reset=True) if self._first else messages.Outcome(ns, 0)
        joints = self._writer.message(ns, self._position, np.zeros(len(self._position)))
        others = [(self._outcome, messages.outcome_msg(outcome))]
        others += [(to, messages.point_msg(ns, values)) for to, values in self._points]
        lead_s = 0.0

        def say() -> float:
            nonlocal lead_s
            first = time.perf_counter()
            for publisher, msg in others:
                publisher.publish(msg)
            began = time.perf_counter()
            lead_s = began - first
            self._joints.publish(joints)
            return began

        seconds = self.exchange.ask(ns, say, timeout_s)
        self.from_first_s.append(seconds + lead_s)
        self._first = False
        self._stamp_ns += self._manifest.spec.horizon * self._period_ns
        return seconds

    def reading(self) -> Callable[[int], JointTrajectory]:
        """Return a call that makes the last answer's bytes a message, as happens on its arrival."""
        data = serialize_message(self._last)
        return lambda _: deserialize_message(data, JointTrajectory)

    def _on_answer(self, msg: JointTrajectory) -> None:
        now = time.perf_counter()
        self._last = msg
        if self.exchange.answered(messages.stamp_ns(msg.header.stamp), now):
            # Where the arm is when the chunk has been executed; braking points follow behind it.
            knots = messages.read_trajectory(msg, self._index).positions
            self._position = knots[self._manifest.spec.horizon - 1]
