# SPDX-License-Identifier: Apache-2.0
"""What a drive is told at a setpoint: its position, or its velocity. numpy, no ROS.

A law gets every setpoint of a stream, one `step_s` after the other, and looks at the newest joint
states. All keep to the limits of what they command, whatever is measured. Torques are in
effort_law.py.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.observation import ObservationBuffer, Sample
from dipod_ros.serving.setpoints import Setpoint

# A standing arm that is closer than this to its setpoint is left alone: noise must not move it.
DEADBAND_RAD = 1e-3
# Setpoints remembered for a little longer than a measurement may be old.
MEMORY_SLACK_S = 0.05


class Joints:
    """The newest joint states, as long as they are young enough to act on."""

    def __init__(self, buffer: ObservationBuffer, topic: str, max_age_s: float) -> None:
        """Take where they are stored and how old they may be."""
        self._buffer, self._topic, self.max_age_s = buffer, topic, max_age_s

    def position(self, now_s: float) -> Sample | None:
        """Return the position sample (rad), None when there is none or it is too old."""
        return self._young('joint_position', now_s)

    def velocity(self, now_s: float) -> Sample | None:
        """Return the velocity sample (rad/s), None when there is none or it is too old."""
        return self._young('joint_velocity', now_s)

    def _young(self, source: str, now_s: float) -> Sample | None:
        sample = self._buffer.sample(source, self._topic)
        young = sample is not None and now_s - sample.received_s <= self.max_age_s
        return sample if young else None


class SetpointMemory:
    """The last setpoints of a stream, to compare a measurement with the one of its time.

    The newest one has moved on meanwhile: an arm that is seen late would seem to lag behind it, the
    more the older its joint states are.
    """

    def __init__(self, step_s: float, memory_s: float) -> None:
        """Take the time between two setpoints (s), and for how long to remember them."""
        self._step_s = step_s
        self._past: deque[Setpoint] = deque(maxlen=max(1, round(memory_s / step_s)))

    def add(self, setpoint: Setpoint) -> None:
        """Take the setpoint of now; what was before the first of a stream is forgotten."""
        if setpoint.first:
            self._past.clear()
        self._past.append(setpoint)

    def at(self, received_s: float, now_s: float) -> Setpoint:
        """Return the setpoint of a moment in the past, the oldest one of before that."""
        ago = round((now_s - received_s) / self._step_s)
        return self._past[max(len(self._past) - 1 - ago, 0)]

    def clear(self) -> None:
        """Forget all of them."""
        self._past.clear()


class PositionLaw:
    """The setpoint itself."""

    settled = True  # nothing has to be brought to an end
    astray = False  # a drive that takes positions holds the arm by itself

    def command(
        self, setpoint: Setpoint, now_s: float, closing: bool, yielding: bool = False
    ) -> np.ndarray | None:
        """Return positions [A] (rad)."""
        return setpoint.position

    def idle(self) -> np.ndarray | None:
        """Return what has to be sent while there is no plan: nothing."""
        return None


class VelocityLaw:
    """v = v_setpoint + gain * (position of the setpoint - measured), within the limits.

    The measurement is compared with the setpoint of the moment when it came. Velocity is bounded by
    its limit and by what still stops before the position limits, seen from the measured position
    (v h + v^2 / 2 a <= room, as in policy/limits.py); its change by the acceleration limit, which
    wins: it is the only bound that a drive cannot exceed without a jerk.

    While the arm is to be left where it is (`yielding`) nothing is made up for, and once the
    setpoint has come to rest the velocity is 0, whatever way the setpoint goes to the arm.
    """

    astray = False  # what the arm is off by is made up for within the limits

    def __init__(self, limits: JointLimits, step_s: float, gain: float, joints: Joints) -> None:
        """Take the limits, the time between two commands (s), the gain (1/s) and the sensors."""
        self._limits, self._gain, self._joints = limits, gain, joints
        self._change = limits.acceleration * step_s
        self._past = SetpointMemory(step_s, joints.max_age_s + MEMORY_SLACK_S)
        self._last = np.zeros(len(limits.joints))
        self._left = False  # where it is: the setpoint stood while yielding

    @property
    def settled(self) -> bool:
        """Whether the last command was to stand still."""
        return not self._last.any()

    def command(
        self, setpoint: Setpoint, now_s: float, closing: bool, yielding: bool = False
    ) -> np.ndarray | None:
        """Return velocities [A] (rad/s); when `closing`, those that come to zero.

        When `yielding`, those of the setpoint until it stands, then zero: the arm is left alone.
        """
        self._left = yielding and (self._left or setpoint.resting)
        if yielding:
            self._past.clear()  # the setpoint goes on from somewhere else
        else:
            self._past.add(setpoint)
        wanted = np.zeros_like(self._last) if self._left else setpoint.velocity
        low, high = -self._limits.velocity, self._limits.velocity
        measured = None if closing else self._joints.position(now_s)
        if measured is not None:
            if not yielding:
                wanted = wanted + self._gain * self._apart(measured, setpoint, now_s)
            high = np.minimum(high, self._stopping_speed(self._limits.upper - measured.values))
            low = np.maximum(low, -self._stopping_speed(measured.values - self._limits.lower))
        return self._to(np.clip(wanted, low, high))

    def idle(self) -> np.ndarray | None:
        """Slow down while there is no plan; None once that is done."""
        self._past.clear()
        return None if self.settled else self._to(np.zeros_like(self._last))

    def _to(self, wanted: np.ndarray) -> np.ndarray:
        self._last = np.clip(wanted, self._last - self._change, self._last + self._change)
        return self._last

    def _apart(self, measured: Sample, setpoint: Setpoint, now_s: float) -> np.ndarray:
        apart = self._past.at(measured.received_s, now_s).position - measured.values
        if setpoint.resting and np.all(np.abs(apart) <= DEADBAND_RAD):
            return np.zeros_like(apart)
        return apart

    def _stopping_speed(self, room: np.ndarray) -> np.ndarray:
        step = self._change
        return np.sqrt(step**2 + 2 * self._limits.acceleration * np.maximum(room, 0.0)) - step


def per_joint(name: str, values: tuple[float, ...], count: int) -> np.ndarray:
    """Return one number per joint [count] from as many, or from one for all; raises UserError."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 1:
        numbers = np.repeat(numbers, count)
    if numbers.shape != (count,) or not np.all(np.isfinite(numbers) & (numbers >= 0)):
        raise UserError(
            f'{name} must be {count} numbers of 0 or more, one per joint, or one for all; '
            f'got {list(values)}'
        )
    return numbers
