# SPDX-License-Identifier: Apache-2.0
"""What somebody else commanded the arm, on the robot's clock. No ROS."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.stamp_clock import NS_PER_S
from dipod_ros.sim.controllers import ArmController

# Setpoints of a trajectory noted per control period.
PARTS = 4
# A longer time than this (s) is played in as many setpoints: joint states were silent, and no
# recording has such a gap in it.
MOST_S = 10.0


class CommandCurve:
    """Commanded positions over time; between two of them lies a straight line."""

    def __init__(self) -> None:
        """Begin empty."""
        self._times: list[int] = []
        self._values: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._times)

    def put(self, time_ns: int, positions: np.ndarray) -> None:
        """Note that `positions` [A] (rad) were commanded; what is older than the last is not."""
        if self._times and time_ns <= self._times[-1]:
            if time_ns == self._times[-1]:
                self._values[-1] = positions
            return
        self._times.append(time_ns)
        self._values.append(positions)

    def forget_before(self, time_ns: int) -> None:
        """Drop what no longer counts at a time; the newest stays whatever its age."""
        first = max(0, bisect_right(self._times, time_ns) - 1)
        del self._times[:first], self._values[:first]

    def keep_last(self, span_s: float) -> None:
        """Drop what no longer counted so many seconds before the newest."""
        if self._times:
            self.forget_before(self._times[-1] - round(span_s * NS_PER_S))

    def clear(self) -> None:
        """Forget everything: the robot's clock was set."""
        self._times.clear()
        self._values.clear()

    def arrays(self, zero_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Return times [N] in seconds after `zero_ns` and positions [N, A]."""
        times = np.array([t - zero_ns for t in self._times], dtype=np.float64) / NS_PER_S
        return times, np.array(self._values)


class TrajectoryPlayer:
    """Plays trajectories as joint_trajectory_controller does, into a curve."""

    def __init__(self, curve: CommandCurve, limits: JointLimits, dt: float) -> None:
        """Take the curve to fill, and the control period."""
        self._curve = curve
        self._controller = ArmController(limits, dt)
        self._part_s = dt / PARTS
        self._now_s: float | None = None

    def follow(
        self,
        times_s: np.ndarray,
        positions: np.ndarray,
        velocities: np.ndarray | None,
        now_ns: int,
        measured: np.ndarray,
    ) -> None:
        """Replace what is played, from `now_ns` on; raises CommandError for one of the past.

        `times_s` [K] are seconds of the robot's clock, as `now_ns` is; the first trajectory begins
        where the arm is, at `measured` [A] (rad).
        """
        if self._now_s is None:
            self._controller.reset(measured)
            self._now_s = now_ns / NS_PER_S
        self.advance(now_ns)
        self._controller.follow(times_s, positions, velocities, now_ns / NS_PER_S)

    def advance(self, now_ns: int) -> None:
        """Play on until `now_ns`."""
        if self._now_s is None:
            return
        ahead_s = now_ns / NS_PER_S - self._now_s
        if ahead_s <= 0:
            return
        parts = math.ceil(min(ahead_s, MOST_S) / self._part_s)
        step_s = ahead_s / parts
        setpoints = self._controller.setpoints(self._now_s, step_s, parts)
        for k, setpoint in enumerate(setpoints, 1):
            self._curve.put(round((self._now_s + k * step_s) * NS_PER_S), setpoint)
        self._now_s = now_ns / NS_PER_S

    def clear(self) -> None:
        """Forget what is played: the robot's clock was set."""
        self._now_s = None
