# SPDX-License-Identifier: Apache-2.0
"""Owns the simulated arm controller: trajectories and position commands to setpoints. No ROS.

Does what joint_trajectory_controller and forward_command_controller do, and judges independently
of whoever commands whether position, velocity and acceleration limits are kept.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.policy.limits import JointLimits

# Round-off of nanosecond stamps and of float64 arithmetic, not an allowance.
POSITION_SLACK_RAD = 1e-6
RELATIVE_SLACK = 1e-3
# Two times closer than this (s) are the same instant.
SAME_TIME_S = 1e-6


class ArmController:
    """One arm's controller; time is the simulation's, in seconds."""

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        """Take the limits to judge by and the period in which position commands are expected."""
        self._limits = limits
        self._period_s = period_s
        self._knots: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None
        self.reset(np.zeros(len(limits.joints)))

    def reset(self, position: np.ndarray) -> None:
        """Hold `position` [A] (rad), at rest, and forget every command."""
        self.position = np.array(position, dtype=np.float64)
        self.velocity = np.zeros_like(self.position)
        self._command_velocity = np.zeros_like(self.position)
        self._knots = None

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

        """
        due = times_s > now_s + SAME_TIME_S
        if not due.any():
            self.hold()
            return []
        t = np.concatenate([[now_s], times_s[due]])
        p = np.concatenate([self.position[None], positions[due]])
        v = None
        if velocities is not None:
            v = np.concatenate([self.velocity[None], velocities[due]])
        self._knots = (t, p, v)
        return self._trajectory_violations(t, p, v)

    def hold(self) -> None:
        """Stay at the present setpoint (an empty trajectory cancels)."""
        self._knots = None
        self.velocity = np.zeros_like(self.position)

    def command(self, positions: np.ndarray) -> list[str]:
        """Jump to setpoint `positions` [A] (rad); return the limits that this violates.

        Velocity and acceleration are judged by differences over the control period.
        """
        velocity = (positions - self.position) / self._period_s
        acceleration = (velocity - self._command_velocity) / self._period_s
        found = self._judge(positions[None], velocity[None], acceleration[None])
        self._knots = None
        self.position = np.array(positions, dtype=np.float64)
        self.velocity = np.zeros_like(self.position)
        self._command_velocity = velocity
        return found

    def setpoints(self, now_s: float, step_s: float, count: int) -> np.ndarray:
        """Return the setpoints [count, A] at now + step, now + 2 step, ...; time moves there."""
        out = np.repeat(self.position[None], count, axis=0)
        if self._knots is not None:
            t, p, v = self._knots
            for i in range(count):
                self.position, self.velocity = _interpolate(t, p, v, now_s + (i + 1) * step_s)
                out[i] = self.position
        return out

    def _trajectory_violations(
        self, t: np.ndarray, p: np.ndarray, v: np.ndarray | None
    ) -> list[str]:
        h = np.diff(t)[:, None]
        slope = np.diff(p, axis=0) / h
        if v is None:
            before = np.concatenate([self.velocity[None], slope[:-1]])
            return self._judge(p[1:], slope, (slope - before) / h)
        v0, v1 = v[:-1], v[1:]
        # Cubic Hermite: acceleration is linear in time, so its extremes are at the ends; velocity
        # is extreme at the ends or where the acceleration crosses zero.
        a0 = (6 * slope - 4 * v0 - 2 * v1) / h
        a1 = (-6 * slope + 2 * v0 + 4 * v1) / h
        with np.errstate(divide='ignore', invalid='ignore'):
            crossing = np.where(a0 * a1 < 0, a0 / (a0 - a1), 0.0)
        inner = v0 + h * crossing * (a0 + (a1 - a0) * crossing / 2)
        u = np.linspace(0, 1, 9)[1:, None, None]
        path = _hermite(p[:-1], v0, p[1:], v1, h, u).reshape(-1, p.shape[1])
        return self._judge(path, np.concatenate([v0, v1, inner]), np.concatenate([a0, a1]))

    def _judge(
        self, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray
    ) -> list[str]:
        lim = self._limits
        low, high = lim.lower - POSITION_SLACK_RAD, lim.upper + POSITION_SLACK_RAD
        found = []
        outside = (position < low) | (position > high)
        if outside.any():
            found.append(f'position of {self._names(outside)} outside its limits')
        for what, value, limit, unit in (
            ('velocity', velocity, lim.velocity, 'rad/s'),
            ('acceleration', acceleration, lim.acceleration, 'rad/s^2'),
        ):
            over = np.abs(value) > limit * (1 + RELATIVE_SLACK) + POSITION_SLACK_RAD
            if over.any():
                peak = np.max(np.abs(value) / limit)
                found.append(f'{what} of {self._names(over)} up to {peak:.3f} x its limit ({unit})')
        return found

    def _names(self, rows: np.ndarray) -> str:
        return ', '.join(
            j for j, bad in zip(self._limits.joints, rows.any(axis=0), strict=True) if bad
        )


def _interpolate(
    t: np.ndarray, p: np.ndarray, v: np.ndarray | None, now: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return position and velocity at `now`; after the last point the arm holds it."""
    if now >= t[-1] - SAME_TIME_S:
        return p[-1].copy(), np.zeros_like(p[-1]) if v is None else v[-1].copy()
    k = max(0, int(np.searchsorted(t, now, side='right')) - 1)
    h = t[k + 1] - t[k]
    u = (now - t[k]) / h
    if v is None:
        slope = (p[k + 1] - p[k]) / h
        return p[k] + u * (p[k + 1] - p[k]), slope
    slope = (p[k + 1] - p[k]) / h
    a0 = (6 * slope - 4 * v[k] - 2 * v[k + 1]) / h
    a1 = (-6 * slope + 2 * v[k] + 4 * v[k + 1]) / h
    velocity = v[k] + h * u * (a0 + (a1 - a0) * u / 2)
    return _hermite(p[k], v[k], p[k + 1], v[k + 1], h, u), velocity


def _hermite(p0, v0, p1, v1, h, u) -> np.ndarray:
    """Cubic Hermite interpolation at the fraction u of a segment of h seconds."""
    u2, u3 = u * u, u * u * u
    return (
        (2 * u3 - 3 * u2 + 1) * p0
        + (u3 - 2 * u2 + u) * h * v0
        + (3 * u2 - 2 * u3) * p1
        + (u3 - u2) * h * v1
    )
