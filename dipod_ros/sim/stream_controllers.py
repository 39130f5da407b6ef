# SPDX-License-Identifier: Apache-2.0
"""Owns the simulated controllers of command streams: positions, velocities, torques. No ROS.

They stand in for forward_command_controller on each of the three interfaces and judge what they
get, independently of whoever commands. Velocities and torques also time out: upstream's controllers
keep the last command for ever, and what brakes then (a drive's watchdog, a driver's) is modelled
here, because without it there would be nothing to stop the arm.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.policy.limits import JointLimits
from dipod_ros.sim.controllers import (
    POSITION_SLACK_RAD,
    RELATIVE_SLACK,
    ArmController,
    CommandError,
)

# The first position of a stream may be this far from where the arm is held: whoever begins knows
# the arm from its sensors.
START_RAD = 0.01
# A measured position outside its limits by no more than this is the drive's affair.
MEASURED_SLACK_RAD = 5e-3


class PositionStream(ArmController):
    """Positions at a steady rate; trajectories too."""

    def reset(self, position: np.ndarray) -> None:
        """Hold `position` [A] (rad), at rest, and forget every command."""
        super().reset(position)
        self._first = True

    def command(self, positions: np.ndarray, now_s: float) -> list[str]:
        """Go to `positions` [A] (rad) within one step; return the limits violated."""
        if self._begins(positions):
            self._target = np.array(positions, dtype=np.float64)
        self._first = False
        return super().command(positions, now_s)

    def violations(self, positions: np.ndarray) -> list[str]:
        """Return the limits that `command` would violate, without commanding anything."""
        if self._begins(positions):
            return self._judge(positions[None], *2 * [np.zeros((1, len(positions)))])
        return super().violations(positions)

    def _begins(self, positions: np.ndarray) -> bool:
        return self._first and bool(np.max(np.abs(positions - self.position)) <= START_RAD)


class _Timed:
    """A drive's command that is void after a while without a new one."""

    def __init__(self, limits: JointLimits, step_s: float, timeout_s: float) -> None:
        """Take the limits to judge by, the nominal time between commands, and the timeout."""
        self._limits, self._step_s, self._timeout_s = limits, step_s, timeout_s
        self.timeouts = 0
        self.reset(np.zeros(len(limits.joints)))

    def reset(self, position: np.ndarray) -> None:
        """Stand still and forget every command; `position` [A] (rad) is where."""
        self._command = np.zeros(len(position))
        self._expires_s: float | None = None  # None: no command is in force
        self.measured_velocity = np.zeros(len(position))

    def halt(self, position: np.ndarray) -> None:
        """Take the command out of force, as a timeout does; `position` [A] (rad) is where."""
        self._expires_s = None

    def follow(self, *_args: object) -> list[str]:
        """Refuse a trajectory: this controller takes none."""
        raise CommandError('this simulated controller takes no trajectory: see `interface`')

    def measured(self, position: np.ndarray, velocity: np.ndarray) -> list[str]:
        """Take the arm's measured state [A]; return the position limits that it violates."""
        self.measured_velocity = velocity
        low = position < self._limits.lower - MEASURED_SLACK_RAD
        high = position > self._limits.upper + MEASURED_SLACK_RAD
        return [f'measured position of {self._names(low | high)} outside its limits'] * bool(
            (low | high).any()
        )

    def _accept(self, values: np.ndarray, now_s: float) -> None:
        self._command = np.array(values, dtype=np.float64)
        self._expires_s = now_s + self._timeout_s

    def _in_force(self, now_s: float) -> bool:
        if self._expires_s is not None and now_s > self._expires_s:
            self._expires_s = None
            self.timeouts += 1
        return self._expires_s is not None

    def _names(self, bad: np.ndarray) -> str:
        return ', '.join(j for j, b in zip(self._limits.joints, bad, strict=True) if b)


class VelocityStream(_Timed):
    """Velocities for velocity drives; a command that times out is braked to zero.

    A world that is reset moves the arm, not the command: the next one has to continue the last.
    After a timeout it may also continue what the drive does by then: it is counted by itself.
    """

    def __init__(self, limits: JointLimits, step_s: float, timeout_s: float) -> None:
        """Stand still."""
        super().__init__(limits, step_s, timeout_s)
        super().reset(np.zeros(len(limits.joints)))
        self._applied = np.zeros(len(limits.joints))

    def reset(self, position: np.ndarray) -> None:
        """Go on with the present command; `position` [A] (rad) is where the arm is now."""

    def halt(self, position: np.ndarray) -> None:
        """Brake, and judge the next command by what the drive does, not by the last command."""
        super().halt(position)
        self._command = self._applied

    def command(self, velocities: np.ndarray, now_s: float) -> list[str]:
        """Take velocities [A] (rad/s); return the limits violated."""
        found = self.violations(velocities)
        self._accept(velocities, now_s)
        return found

    def violations(self, velocities: np.ndarray) -> list[str]:
        """Return the limits that `command` would violate, without commanding anything."""
        found = self._changed(velocities, self._command)
        return found and self._changed(velocities, self._applied)

    def _accept(self, values: np.ndarray, now_s: float) -> None:
        super()._accept(values, now_s)
        self._applied = self._command

    def _changed(self, velocities: np.ndarray, before: np.ndarray) -> list[str]:
        found, limits = [], self._limits
        for what, value, limit in (
            ('velocity', velocities, limits.velocity),
            ('acceleration', (velocities - before) / self._step_s, limits.acceleration),
        ):
            over = np.abs(value) > limit * (1 + RELATIVE_SLACK) + POSITION_SLACK_RAD
            if over.any():
                peak = np.max(np.abs(value) / limit)
                found.append(f'{what} of {self._names(over)} up to {peak:.3f} x its limit')
        return found

    def setpoints(self, now_s: float, step_s: float, count: int) -> np.ndarray:
        """Return the drives' references [count, A] (rad/s) from now on."""
        if not self._in_force(now_s):
            change = self._limits.acceleration * step_s * count
            self._applied = np.copysign(
                np.maximum(np.abs(self._applied) - change, 0.0), self._applied
            )
        return np.repeat(self._applied[None], count, axis=0)


class EffortStream(_Timed):
    """Torques; when they time out, brakes: a torque against the measured velocity."""

    def __init__(
        self, limits: JointLimits, step_s: float, timeout_s: float, effort: np.ndarray
    ) -> None:
        """Take, besides, the torque limits [A] (N m)."""
        super().__init__(limits, step_s, timeout_s)
        self._effort = effort

    def command(self, torques: np.ndarray, now_s: float) -> list[str]:
        """Take torques [A] (N m); return the limits violated."""
        found = self.violations(torques)
        self._accept(torques, now_s)
        return found

    def violations(self, torques: np.ndarray) -> list[str]:
        """Return the limits that `command` would violate, without commanding anything."""
        over = np.abs(torques) > self._effort * (1 + RELATIVE_SLACK)
        return [f'torque of {self._names(over)} above its limit'] * bool(over.any())

    def setpoints(self, now_s: float, step_s: float, count: int) -> np.ndarray:
        """Return the drives' references [count, A] (N m) from now on."""
        torque = self._command
        if not self._in_force(now_s):
            # The full torque at the speed limit; in proportion below, so that it ends at rest.
            torque = -self._effort * np.clip(self.measured_velocity / self._limits.velocity, -1, 1)
        return np.repeat(torque[None], count, axis=0)
