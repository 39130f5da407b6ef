# SPDX-License-Identifier: Apache-2.0
"""The recorder's ears for commands: positions or trajectories into a curve on the robot's clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.command_curve import CommandCurve, TrajectoryPlayer
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.ros import messages, qos
from dipod_ros.serving.observation import Sample

# A stamp nearer to the present than this is of the robot's clock; else the receipt counts.
SAME_CLOCK_NS = 100_000_000
# What a recording that begins may need (s): its first joint states may be this late.
KEPT_S = 1.0


class CommandInput:
    """Listens to what somebody else commands; `problem` says why there is nothing to go by."""

    def __init__(
        self,
        node: Node,
        source: str,
        topic: str,
        spec: PolicySpec,
        now_ns: Callable[[], int],
        joints: Callable[[], Sample | None],
        recording: Callable[[], bool],
        tolerance_s: float = 0.0,
    ) -> None:
        """Subscribe.

        `now_ns` tells the robot's time, `joints` the newest joint positions [A] (rad). While
        `recording` all is kept. A stamp that is off the joints' by more than `tolerance_s` is
        refused; 0 accepts all.
        """
        self.topic = topic
        self.curve = CommandCurve()
        self._player = TrajectoryPlayer(self.curve, spec.limits, spec.control_period_s)
        self._now_ns, self._joints, self._tolerance_s = now_ns, joints, tolerance_s
        self._recording = recording
        self._index = messages.JointIndex(spec.joints)
        self._rejection = ''
        kind, read, profile = {
            'joint_state': (JointState, self._joint_state, qos.SENSOR),
            'commands': (Float64MultiArray, self._commands, qos.STREAM),
            'trajectory': (JointTrajectory, self._trajectory, qos.STREAM),
        }[source]
        node.create_subscription(kind, topic, lambda msg: self._take(read, msg), profile)

    @property
    def problem(self) -> str:
        """Why there is no command, or why the newest one cannot be used; '' when all is well."""
        if self._rejection:
            return f'commands on {self.topic}: {self._rejection}'
        return '' if len(self.curve) else f'commands: nothing received on {self.topic}'

    def advance(self, time_ns: int) -> None:
        """Go on to a time of the robot's clock."""
        self._player.advance(time_ns)

    def clear(self) -> None:
        """Forget what was commanded by a clock that was set."""
        self.curve.clear()
        self._player.clear()

    def _take(self, read: Callable, msg: object) -> None:
        try:
            read(msg)
            self._rejection = ''
        except UserError as error:
            self._rejection = str(error)
        if not self._recording():
            self.curve.keep_last(KEPT_S)  # joint states, which make it forget too, may be silent

    def _joint_state(self, msg: JointState) -> None:
        now, stamp = self._now_ns(), messages.stamp_ns(msg.header.stamp)
        self._put(stamp if abs(stamp - now) < SAME_CLOCK_NS else now, self._index.positions(msg))

    def _commands(self, msg: Float64MultiArray) -> None:
        positions, stamp = messages.read_commands(msg)
        size = len(self._index.joints)
        if positions.shape != (size,):
            raise UserError(f'{positions.size} numbers for {size} joints')
        if stamp is not None:
            self._check(stamp)
        self._put(self._now_ns() if stamp is None else stamp, positions)

    def _trajectory(self, msg: JointTrajectory) -> None:
        trajectory = messages.read_trajectory(msg, self._index)
        measured = self._arm().values
        now = self._now_ns()
        start_s = (trajectory.stamp_ns or now) / messages.NS_PER_S
        self._player.follow(
            start_s + trajectory.times_s, trajectory.positions, trajectory.velocities, now, measured
        )

    def _arm(self) -> Sample:
        joints = self._joints()
        if joints is None:
            raise UserError('the joint states are not there yet')
        return joints

    def _check(self, stamp_ns: int) -> None:
        """Refuse a stamp of another clock: one of the future would hide all that come after it.

        The newest joint state is what a lockstep world has for the present.
        """
        present_ns = self._arm().stamp_ns or self._now_ns()
        off_s = (stamp_ns - present_ns) / messages.NS_PER_S
        if self._tolerance_s and abs(off_s) > self._tolerance_s:
            side = 'ahead of' if off_s > 0 else 'behind'
            raise UserError(
                f"their stamps are {side} the robot's clock, that of the joint states, by more "
                f'than {self._tolerance_s:g} s'
            )

    def _put(self, time_ns: int, positions: np.ndarray) -> None:
        if not np.isfinite(positions).all():
            raise UserError('numbers that are not finite')
        self.curve.put(time_ns, positions)
