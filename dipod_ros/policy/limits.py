# SPDX-License-Identifier: Apache-2.0
"""Joint limits, and the filter that keeps every command inside them. numpy only.

The filter turns targets into the control points c_k of a uniform quadratic B-spline with knot
spacing dt, the control period. The setpoint that a controller executes is that spline:

    at knot time k*dt    position (c_{k-1} + c_k) / 2,  velocity (c_k - c_{k-1}) / dt
    between two knots    acceleration (c_{k+1} - 2 c_k + c_{k-1}) / dt^2, constant

so bounds on the points and on their first and second differences bound the position (convex hull),
velocity and acceleration of the continuous command exactly, at every instant and at chunk seams
(de Boor, "A Practical Guide to Splines", 1978: derivatives of a spline are splines of differences).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipod_ros.errors import UserError

# Slack for float64 round-off when a command is checked against its limits.
TOLERANCE_RAD = 1e-9


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits per joint, in the order of `joints`; SI units, float64 arrays of shape [A]."""

    joints: tuple[str, ...]
    lower: np.ndarray  # rad
    upper: np.ndarray  # rad
    velocity: np.ndarray  # rad/s
    acceleration: np.ndarray  # rad/s^2

    def __post_init__(self) -> None:
        twice = sorted({j for j in self.joints if self.joints.count(j) > 1})
        if twice:
            raise UserError(f'limits: joints must be distinct, {twice} named more than once')
        for name in ('lower', 'upper', 'velocity', 'acceleration'):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.shape != (len(self.joints),):
                raise UserError(
                    f'limits: {name} has {values.size} values for {len(self.joints)} joints '
                    f'{list(self.joints)}; give one per joint'
                )
            if not np.all(np.isfinite(values)):
                raise UserError(f'limits: {name} must be finite, got {values.tolist()}')
        for i, joint in enumerate(self.joints):
            if not self.lower[i] < self.upper[i]:
                raise UserError(
                    f'limits: position_lower of {joint} is {self.lower[i]}, not below '
                    f'position_upper {self.upper[i]}'
                )
            for name in ('velocity', 'acceleration'):
                if not getattr(self, name)[i] > 0:
                    raise UserError(
                        f'limits: {name} of {joint} must be above 0, got {getattr(self, name)[i]}'
                    )

    @classmethod
    def from_params(cls, joints: Sequence[str], limits: Mapping[str, Any]) -> JointLimits:
        """Build from the `limits` block of a robot file.

        Keys: position_lower, position_upper (rad), velocity (rad/s), acceleration (rad/s^2), each a
        list with one number per joint. Raises UserError naming the missing key.
        """
        keys = ('position_lower', 'position_upper', 'velocity', 'acceleration')
        missing = [
            k
            for k in keys
            if limits.get(k) is None or (isinstance(limits[k], Sized) and len(limits[k]) == 0)
        ]
        if not joints or missing:
            what = ', '.join(f'limits.{k}' for k in missing) or 'joints'
            raise UserError(
                f'the robot file gives no {what}: a robot without limits does not start; '
                'add one value per joint'
            )
        values = []
        for key in keys:
            try:
                values.append(np.asarray(limits[key], dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise UserError(
                    f'limits.{key} must be a list with one number per joint, got {limits[key]!r}'
                ) from error
        return cls(tuple(joints), *values)

    def to_params(self) -> dict[str, list[float]]:
        """Return the `limits` block that `from_params` reads."""
        return {
            'position_lower': self.lower.tolist(),
            'position_upper': self.upper.tolist(),
            'velocity': self.velocity.tolist(),
            'acceleration': self.acceleration.tolist(),
        }


class LimitFilter:
    """Tracks targets while position, velocity, acceleration and braking distance stay legal.

    State: the last control point and the velocity that led to it, arrays of shape [..., A]; leading
    axes are independent arms, so the simulator runs the very same filter on a batch.
    """

    def __init__(self, limits: JointLimits, dt: float) -> None:
        """Take the limits and the control period `dt` in seconds."""
        if not dt > 0:
            raise UserError(f'control_period_s must be above 0, got {dt}')
        self.limits = limits
        self.dt = float(dt)
        self._step = limits.acceleration * self.dt  # rad/s, change of speed in one period
        self._step_squared = self._step**2
        self._twice_acceleration = 2 * limits.acceleration
        # The same as plain numbers, joint by joint, for `track`.
        of_joints = (limits.lower, limits.upper, limits.velocity)
        of_joints += (self._step, self._step_squared, self._twice_acceleration)
        self._numbers = [values.tolist() for values in of_joints]
        self.position = np.zeros(len(limits.joints))
        self.velocity = np.zeros(len(limits.joints))
        self.last_clamp = np.zeros(())

    def reset(self, position: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Start at rest from `position` [..., A] (rad), clipped into the position limits.

        With a boolean `mask` [...], only the marked arms restart. Raises UserError for a position
        that is not finite: every later command would be none either.
        """
        start = np.asarray(position, dtype=np.float64)
        if not np.all(np.isfinite(start) | (False if mask is None else ~mask[..., None])):
            raise UserError('the position that an arm starts from must be finite')
        start = np.clip(start, self.limits.lower, self.limits.upper)
        if mask is None:
            self.position = start.copy()
            self.velocity = np.zeros_like(start)
            self.last_clamp = np.zeros(start.shape[:-1])
        else:
            self.position = np.where(mask[..., None], start, self.position)
            self.velocity = np.where(mask[..., None], 0.0, self.velocity)
            self.last_clamp = np.where(mask, 0.0, self.last_clamp)

    def step(self, target: np.ndarray, scale: float | None = None) -> np.ndarray:
        """Move towards `target` [..., A] (rad) for one control period; return the control point.

        A target that is not finite counts as "hold still": the arm brakes. `last_clamp` [...] is
        the largest distance (rad) between what was asked and what was commanded. `scale` in (0, 1]
        multiplies the velocity limit; an arm that is faster slows down to it at its acceleration
        limit.
        """
        lim, dt = self.limits, self.dt
        target = np.asarray(target, dtype=np.float64)
        finite = np.isfinite(target)
        # Clipped, because the difference of absurd numbers overflows; the bounds below are tighter.
        # (Here and below: the plain ufuncs cost a fraction of np.clip on a few joints.)
        wanted = (np.minimum(np.maximum(target, lim.lower), lim.upper) - self.position) / dt
        asked = target
        if not finite.all():
            wanted, asked = np.where(finite, wanted, 0.0), np.where(finite, target, np.inf)
        low, high = self._bounds(self.position, self.velocity, scale)
        velocity = np.minimum(np.maximum(wanted, low), high)
        point = np.minimum(np.maximum(self.position + velocity * dt, lim.lower), lim.upper)
        self.velocity = (point - self.position) / dt
        self.position = point
        self.last_clamp = np.abs(asked - point).max(axis=-1)
        return point.copy()

    def track(self, targets: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
        """Step through targets [H, A] of one arm; return the control points [H, A].

        They are what `step` gives target by target, to the last bit; `scale` [H] is that of each
        step. A dozen operations on arrays of a few joints cost more than on the numbers themselves.
        """
        targets = np.asarray(targets, dtype=np.float64)
        if not len(targets):
            return targets.copy()
        scales = None if scale is None else scale.tolist()
        joints = zip(
            targets.T.tolist(),
            self.position.tolist(),
            self.velocity.tolist(),
            *self._numbers,
            strict=True,
        )
        tracked = [_track_joint(self.dt, scales, *joint) for joint in joints]
        points = np.array([path for path, _ in tracked]).T
        self.position = points[-1].copy()
        self.velocity = np.array([velocity for _, velocity in tracked])
        last = np.where(np.isfinite(targets[-1]), targets[-1], np.inf)
        self.last_clamp = np.abs(last - self.position).max(axis=-1)
        return points

    def brake(self) -> np.ndarray:
        """Slow down at the acceleration limit for one control period; return the control point."""
        return self.step(np.full_like(self.position, np.nan))

    def at_rest(self) -> np.ndarray:
        """Return [...] booleans: the command does not move."""
        return np.all(np.abs(self.velocity) * self.dt <= TOLERANCE_RAD, axis=-1)

    def copy(self) -> LimitFilter:
        """Return an independent filter in the same state, to plan ahead with."""
        other = LimitFilter(self.limits, self.dt)
        other.position, other.velocity = self.position.copy(), self.velocity.copy()
        other.last_clamp = self.last_clamp.copy()
        return other

    def _bounds(
        self, position: np.ndarray, velocity: np.ndarray, scale: float | np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest next velocity [..., A] from a position and velocity."""
        lim, step = self.limits, self._step
        fastest, slowest = lim.velocity, -lim.velocity
        if scale is not None:
            fastest = np.maximum(scale * lim.velocity, velocity - step)
            slowest = np.minimum(-scale * lim.velocity, velocity + step)
        # Fastest speed from which the joint still stops at the limit: v dt + v^2 / (2 a) <= room.
        # The left side is at least the discrete braking distance, so the bound keeps itself true.
        up = self._stopping_speed(lim.upper - position)
        down = self._stopping_speed(position - lim.lower)
        high = np.minimum(np.minimum(fastest, up), velocity + step)
        low = np.maximum(np.maximum(slowest, -down), velocity - step)
        # Rounding can cross the two by an ulp when the joint rests on its limit.
        return np.minimum(low, high), high

    def _stopping_speed(self, room: np.ndarray) -> np.ndarray:
        room = np.maximum(room, 0.0)
        return np.sqrt(self._step_squared + self._twice_acceleration * room) - self._step


def _track_joint(
    dt: float,
    scales: list[float] | None,
    targets: list[float],
    position: float,
    velocity: float,
    lower: float,
    upper: float,
    limit: float,
    step: float,
    step_squared: float,
    twice_acceleration: float,
) -> tuple[list[float], float]:
    """Return the control points of one joint and its last velocity: `LimitFilter.step` in scalars.

    Comparisons stand in for min and max, which cost a call each.
    """
    points = []
    for k, target in enumerate(targets):
        faster, slower = velocity + step, velocity - step
        fastest, slowest = limit, -limit
        if scales is not None:
            fastest, slowest = max(scales[k] * limit, slower), min(-scales[k] * limit, faster)
        room = upper - position
        room = room if room > 0.0 else 0.0
        high = math.sqrt(step_squared + twice_acceleration * room) - step
        high = fastest if fastest < high else high
        high = faster if faster < high else high
        room = position - lower
        room = room if room > 0.0 else 0.0
        low = step - math.sqrt(step_squared + twice_acceleration * room)
        low = slowest if slowest > low else low
        low = slower if slower > low else low
        low = high if high < low else low
        if math.isfinite(target):
            target = target if target > lower else lower
            target = target if target < upper else upper
            wanted = (target - position) / dt
        else:
            wanted = 0.0
        wanted = wanted if wanted > low else low
        wanted = wanted if wanted < high else high
        point = position + wanted * dt
        point = point if point > lower else lower
        point = point if point < upper else upper
        velocity = (point - position) / dt
        position = point
        points.append(point)
    return points, velocity


def spline_knots(
    previous: np.ndarray, points: np.ndarray, dt: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and velocities [..., H, A] of the spline at knot times dt, 2 dt, ... H dt.

    `previous` [..., A] is the control point before the first of `points` [..., H, A].
    """
    before = np.concatenate([previous[..., None, :], points[..., :-1, :]], axis=-2)
    return (before + points) / 2, (points - before) / dt


def spline_setpoints(previous: np.ndarray, points: np.ndarray, substeps: int) -> np.ndarray:
    """Sample the spline at the end of `substeps` equal parts of each control period.

    Args:
        previous: the two control points [..., 2, A] before the first of `points`, older first.
        points: control points [..., H, A].
        substeps: samples per control period.

    Returns:
        setpoints [..., H * substeps, A] in rad.

    """
    c = np.concatenate([previous, points], axis=-2)
    c0, c1, c2 = c[..., :-2, :], c[..., 1:-1, :], c[..., 2:, :]
    u = (np.arange(1, substeps + 1) / substeps)[:, None]
    # Uniform quadratic B-spline segment from knot (c0+c1)/2 to knot (c1+c2)/2.
    out = (
        (1 - u) ** 2 / 2 * c0[..., None, :]
        + (0.5 + u * (1 - u)) * c1[..., None, :]
        + u**2 / 2 * c2[..., None, :]
    )
    return out.reshape(*points.shape[:-2], points.shape[-2] * substeps, points.shape[-1])
