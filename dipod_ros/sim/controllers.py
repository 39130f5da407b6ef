# SPDX-License-Identifier: Apache-2.0
"""Owns the simulated arm controller: trajectories and position commands to setpoints. No ROS.

Interprets trajectories as joint_trajectory_controller does with `interpolate_from_desired_state`,
and judges, independently of whoever commands, whether position, velocity and acceleration limits
are kept.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits

# Round-off of nanosecond stamps and of float64 arithmetic, not an allowance.
POSITION_SLACK_RAD = 1e-6
RELATIVE_SLACK = 1e-3
# Two times closer than this (s) are the same instant.
SAME_TIME_S = 1e-6
# Inside a cubic segment, the position is judged at this many places.
POSITION_SAMPLES = 8


class CommandError(UserError):
    """A command that a controller would not execute; one line that says why."""


class ArmController:
    """One arm's controller; time is the simulation's, in seconds."""

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        """Take the limits to judge by and the control period."""
        self._limits = limits
        self._period_s = period_s
        self.reset(np.zeros(len(limits.joints)))

    def reset(self, position: np.ndarray) -> None:
        """Hold `position` [A] (rad), at rest, and forget every command."""
        self.position = np.array(position, dtype=np.float64)
        self.velocity = np.zeros_like(self.position)
        # What position commands are judged by: the one before, and the speed that led to it.
        self._target = self.position.copy()
        self._target_velocity = np.zeros_like(self.position)
        self._path: _Path | None = None

    def halt(self, position: np.ndarray) -> None:
        """Stop, or begin again, where the arm is measured [A] (rad): at rest, without a command."""
        self.reset(position)

    def follow(
        self,
        times_s: np.ndarray,
        positions: np.ndarray,
        velocities: np.ndarray | None,
        now_s: float,
    ) -> list[str]:
        """Replace what is being executed by a trajectory; return the limits that it violates.

        Args:
            times_s: absolute times of the points [K], increasing; those up to `now_s` are skipped.
            positions: [K, A] rad. With velocities the segments are cubic, without linear.
            velocities: [K, A] rad/s, or None.
            now_s: present time; the first segment starts here, at the present setpoint.

        No points at all cancel: the present setpoint is held. Raises CommandError, and goes on with
        what it was doing, when every point is in the past.

        """
        if len(times_s) == 0:
            self.reset(self.position)
            return []
        due = times_s > now_s + SAME_TIME_S
        if not due.any():
            raise CommandError(
                f'the trajectory ends in the past: at {times_s[-1]:.3f} s, it is {now_s:.3f} s'
            )
        self._path = _Path(
            np.concatenate([[now_s], times_s[due]]),
            np.concatenate([self.position[None], positions[due]]),
            None if velocities is None else np.concatenate([self.velocity[None], velocities[due]]),
        )
        self._target = positions[-1].copy()
        self._target_velocity = np.zeros_like(self._target)
        return self._judge(*self._path.extremes(self.velocity))

    def command(self, positions: np.ndarray, now_s: float) -> list[str]:
        """Go to `positions` [A] (rad) within one control period; return the limits violated.

        The setpoint moves there linearly, as a drive in cyclic synchronous position mode does
        (CiA 402). Judged are the differences between successive commands over a control period.
        """
        violations = self.violations(positions)
        target = np.array(positions, dtype=np.float64)
        self._target_velocity = (target - self._target) / self._period_s
        self._target = target
        self._path = _Path(
            np.array([now_s, now_s + self._period_s]), np.stack([self.position, target]), None
        )
        return violations

    def violations(self, positions: np.ndarray) -> list[str]:
        """Return the limits that `command` would violate, without commanding anything."""
        target = np.asarray(positions, dtype=np.float64)
        velocity = (target - self._target) / self._period_s
        acceleration = (velocity - self._target_velocity) / self._period_s
        return self._judge(target[None], velocity[None], acceleration[None])

    def setpoints(self, now_s: float, step_s: float, count: int) -> np.ndarray:
        """Return the setpoints [count, A] at now + step, now + 2 step, ...; time moves there."""
        if self._path is None:
            return np.repeat(self.position[None], count, axis=0)
        out, velocities = self._path.at(now_s + step_s * np.arange(1, count + 1))
        self.position, self.velocity = out[-1].copy(), velocities[-1]
        return out

    def _judge(
        self, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray
    ) -> list[str]:
        lim = self._limits
        low, high = lim.lower - POSITION_SLACK_RAD, lim.upper + POSITION_SLACK_RAD
        found = []
        outside = (position < low) | (position > high)
        if outside.any():
            found.append(f'position of {self._names(outside)} outside its limits')
        for what, value, limit in (
            ('velocity', velocity, lim.velocity),
            ('acceleration', acceleration, lim.acceleration),
        ):
            over = np.abs(value) > limit * (1 + RELATIVE_SLACK) + POSITION_SLACK_RAD
            if over.any():
                peak = np.max(np.abs(value) / limit)
                found.append(f'{what} of {self._names(over)} up to {peak:.3f} x its limit')
        return found

    def _names(self, rows: np.ndarray) -> str:
        names = zip(self._limits.joints, rows.any(axis=0), strict=True)
        return ', '.join(joint for joint, bad in names if bad)


class _Path:
    """Piecewise linear, or cubic where velocities are given, through knots."""

    def __init__(self, t: np.ndarray, p: np.ndarray, v: np.ndarray | None) -> None:
        self._t, self._p, self._v = t, p, v
        self._h = np.diff(t)[:, None]
        self._slope = np.diff(p, axis=0) / self._h
        if v is not None:
            # Cubic Hermite: the acceleration of a segment is linear between these two.
            self._a0 = (6 * self._slope - 4 * v[:-1] - 2 * v[1:]) / self._h
            self._a1 = (-6 * self._slope + 2 * v[:-1] + 4 * v[1:]) / self._h

    def at(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and velocities [count, A]; after the last knot it stays, at rest."""
        t, p, v = self._t, self._p, self._v
        over = times_s >= t[-1] - SAME_TIME_S
        k = np.clip(np.searchsorted(t, times_s, side='right') - 1, 0, len(t) - 2)
        s = (times_s - t[k])[:, None]
        if v is None:
            position, velocity = p[k] + s * self._slope[k], self._slope[k]
        else:
            a0 = self._a0[k]
            jerk = (self._a1[k] - a0) / self._h[k]
            position = p[k] + s * (v[k] + s * (a0 / 2 + s * jerk / 6))
            velocity = v[k] + s * (a0 + s * jerk / 2)
        if over.any():
            position[over] = p[-1]
            # A trajectory may end moving where that is allowed; whoever continues from exactly its
            # end continues at that speed.
            velocity[over] = 0.0
            if v is not None:
                velocity[over & (times_s <= t[-1] + SAME_TIME_S)] = v[-1]
        return position, velocity

    def extremes(self, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions, velocities, accelerations [rows, A] among which the largest are.

        `velocity` [A] is that of the setpoint when the path begins: a linear path jumps to its
        own, which counts as an acceleration over the length of the segment.
        """
        if self._v is None:
            before = np.concatenate([velocity[None], self._slope[:-1]])
            return self._p[1:], self._slope, (self._slope - before) / self._h
        v0, v1, a0, a1 = self._v[:-1], self._v[1:], self._a0, self._a1
        with np.errstate(divide='ignore', invalid='ignore'):
            # Where in its segment a velocity peaks: the acceleration passes through zero.
            u = np.where(a0 * a1 < 0, a0 / (a0 - a1), 0.0)
        peak = v0 + self._h * u * (a0 + (a1 - a0) * u / 2)
        fractions = np.arange(1, POSITION_SAMPLES + 1)[:, None, None] / POSITION_SAMPLES
        s = fractions * self._h
        places = self._p[:-1] + s * (v0 + s * (a0 / 2 + s * (a1 - a0) / self._h / 6))
        return (
            places.reshape(-1, places.shape[-1]),
            np.concatenate([v0, v1, peak]),
            np.concatenate([a0, a1]),
        )
