# SPDX-License-Identifier: Apache-2.0
"""What a drive is told that takes torques, and with which torque that ends. numpy, no ROS.

A torque stays in force until the next one: whatever pushed the arm last goes on pushing it. So the
law's last word is always the torque of an arm that is let go, never one that moves it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dipod_ros.serving.drive_laws import MEMORY_SLACK_S, Joints, SetpointMemory
from dipod_ros.serving.setpoints import Setpoint

# At the end the arm is held until it is slower than this for SETTLED_S (rad/s), at most LINGER_S:
# its setpoint stands before it does.
STANDING_RAD_S = 0.02
SETTLED_S = 0.05
LINGER_S = 1.0


class EffortLaw:
    """torque = kp * (q_setpoint - q) + kd * (v_setpoint - v) + gravity(q), clipped to the limits.

    Setpoint and measurement are those of one moment, that of the measurement: where joint states
    stay away for a while the torque stays as it is, instead of growing with the way that the
    setpoint makes meanwhile.

    Needs young positions and velocities. Without them the arm is let go: a torque for an arm that
    nobody sees is worse than none, and whoever applies torques has to stop when commands do. An arm
    that was let go is taken up by a setpoint that begins where it is, never by one that went on
    without it: the torque would be that of the whole way between them, at once.
    """

    def __init__(
        self,
        limit: np.ndarray,
        kp: np.ndarray,
        kd: np.ndarray,
        joints: Joints,
        step_s: float,
        gravity: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Take the largest torques [A] (N m), gains [A] (N m/rad, N m s/rad) and the sensors.

        `step_s` is the time between two commands. `gravity` returns the torques [A] that hold the
        arm at positions [A].
        """
        self._limit, self._kp, self._kd = limit, kp, kd
        self._joints, self._gravity = joints, gravity
        self._past = SetpointMemory(step_s, joints.max_age_s + MEMORY_SLACK_S)
        self._position: np.ndarray | None = None  # where the arm was seen last
        self._released = True  # nothing is in force that moves the arm
        self.astray = False  # an arm that was let go is seen again; the setpoint is elsewhere
        self._closing_s: float | None = None  # since when it is brought to an end
        self._fast_s = 0.0  # when it was seen to move last

    @property
    def settled(self) -> bool:
        """Whether the arm was let go."""
        return self._released

    def command(
        self, setpoint: Setpoint, now_s: float, closing: bool, yielding: bool = False
    ) -> np.ndarray | None:
        """Return torques [A] (N m), None while an arm that was let go is not taken up.

        When `closing`, the arm is held at the setpoint until it stands, then let go.
        """
        self._past.add(setpoint)
        position, velocity = self._joints.position(now_s), self._joints.velocity(now_s)
        if position is None or velocity is None:
            return self.idle()
        self._position = position.values
        if self._released and not setpoint.first:
            self.astray = True
            return None
        if closing and self._stands(velocity.values, now_s):
            return self.idle()
        where = self._past.at(position.received_s, now_s).position - position.values
        speed = self._past.at(velocity.received_s, now_s).velocity - velocity.values
        self._released = self.astray = False
        return self._clip(self._kp * where + self._kd * speed + self._weight())

    def idle(self) -> np.ndarray | None:
        """Let the arm go: its weight is all that is still carried; None once that was said."""
        self._past.clear()
        self._closing_s = None
        self.astray = False
        if self._released:
            return None
        self._released = True
        return self._clip(self._weight())

    def _stands(self, velocity: np.ndarray, now_s: float) -> bool:
        """Tell whether the arm has come to rest, or will not any more."""
        if self._closing_s is None:
            self._closing_s = self._fast_s = now_s
        if np.any(np.abs(velocity) > STANDING_RAD_S):
            self._fast_s = now_s
        return now_s - self._fast_s >= SETTLED_S or now_s - self._closing_s >= LINGER_S

    def _weight(self) -> np.ndarray:
        if self._gravity is None or self._position is None:
            return np.zeros_like(self._limit)
        return self._gravity(self._position)

    def _clip(self, torque: np.ndarray) -> np.ndarray:
        return np.clip(torque, -self._limit, self._limit)
