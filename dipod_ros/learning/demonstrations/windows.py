# SPDX-License-Identifier: Apache-2.0
"""From a motion to the chunks that a policy would have to say to repeat it. numpy, no ROS.

A command is the spline of policy/limits.py: control points c_k, a period dt apart. The point that
carries a motion x(t) is c_k = x(t_k + dt / 2): a quadratic spline of the motion's values at these
places, its Greville abscissae, is Schoenberg's approximation, exact for straight lines (de Boor, "A
Practical Guide to Splines", 1978, chapter XI). With c_k = x(t_k) the arm would come half a period
late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits, LimitFilter

# Standing still is judged over this long: noise of the encoders is no motion.
IDLE_S = 0.1
# A point that the limits moved by less than this counts as kept (rad): noise of the encoders.
KEPT_RAD = 1e-3


class Refused(UserError):
    """A recording that is not kept; one line that says why."""


@dataclass(frozen=True)
class WindowConfig:
    """How a recorded motion becomes decisions."""

    stride: int = 1  # control steps from one decision to the next
    # Slower than this (rad/s, every joint) is standing still: cut at both ends. 0 cuts nothing.
    idle_rad_s: float = 0.02
    # A motion that the limits would move by more than this (rad) is refused.
    clip_rad: float = 0.02

    def __post_init__(self) -> None:
        if self.stride < 1 or self.idle_rad_s < 0 or self.clip_rad < 0:
            raise UserError('stride must be at least 1, idle_rad_s and clip_rad at least 0')


@dataclass(frozen=True, eq=False)
class Windows:
    """M decisions cut out of T control ticks."""

    ticks: np.ndarray  # int [M], which of the points each decision is made at
    command: np.ndarray  # float64 [M, A], the control point of that tick (rad)
    actions: np.ndarray  # float64 [M, H, A], increments (rad per control step)
    clip_rad: float  # largest distance that the limits moved a point by
    clipped_share: float  # of the decisions whose chunk has a point that was moved
    over: str  # what went beyond the limits, '' when nothing did


def resample(
    times_s: np.ndarray, values: np.ndarray, at_s: np.ndarray, hold_s: float = math.inf
) -> np.ndarray:
    """Return values [N, A] of increasing times [N] at other times [T], linearly, as [T, A].

    A gap longer than `hold_s` is no ramp: the value before it holds until `hold_s` before its end.
    """
    gaps = np.flatnonzero(np.diff(times_s) > hold_s)
    if len(gaps):
        held = values[gaps]
        ends = times_s[gaps + 1] - hold_s
        times_s = np.insert(times_s, gaps + 1, ends)
        values = np.insert(values, gaps + 1, held, axis=0)
    return np.stack([np.interp(at_s, times_s, column) for column in values.T], axis=1)


def cut(
    points: np.ndarray,
    horizon: int,
    limits: JointLimits,
    dt: float,
    config: WindowConfig,
    first_tick: int = 0,
) -> Windows:
    """Cut control points [T, A] (rad) into chunks of `horizon` increments, within the limits.

    `first_tick` is the tick of the first point: decisions are made at multiples of the stride.

    What is kept is the motion after the limit filter, as in simulated demonstrations: what is
    learned from it is feasible. Where the motion ends at rest the last chunks end in standing
    still, which is what the arm did: a policy that is asked on must know how to stop. Where the
    recording stopped in motion there are whole chunks alone: nobody knows what came next.

    Raises Refused when nothing moves, when it is too short, and when the limits would move it by
    more than `clip_rad`.
    """
    begin, end, at_rest = _trim(points, dt, config.idle_rad_s)
    wanted = points[begin : end + 1]
    if at_rest:
        wanted = np.concatenate([wanted, np.repeat(wanted[-1:], horizon, axis=0)])
    if len(wanted) <= horizon:
        raise Refused(
            f'too short: it moves for {len(wanted) * dt:.2f} s, one chunk takes {horizon * dt:g} s'
        )
    followed = _follow(wanted, limits, dt)
    moved = np.abs(followed - wanted)
    starts = np.arange(len(wanted) - horizon)
    starts = starts[(first_tick + begin + starts) % config.stride == 0]
    if not len(starts):
        raise Refused(f'too short: no decision in it with stride {config.stride}')
    increments = np.diff(followed, axis=0)
    actions = increments[starts[:, None] + np.arange(horizon)]
    changed = (moved > KEPT_RAD).any(axis=1)
    clipped = changed[starts[:, None] + np.arange(horizon + 1)].any(axis=1)
    over = _describe(wanted, moved, limits, dt) if changed.any() else ''
    largest, share = float(moved.max()), float(clipped.mean())
    if largest > config.clip_rad:
        raise Refused(
            f'no policy within the limits can repeat it: {over}, in {share:.0%} of its chunks; '
            f'that moves the command by {largest:.3f} rad, clip_rad allows {config.clip_rad:g}: '
            'demonstrate more slowly'
        )
    return Windows(begin + starts, followed[starts], actions, largest, share, over)


def _trim(points: np.ndarray, dt: float, idle_rad_s: float) -> tuple[int, int, bool]:
    """Return the first and last tick that count, and whether the motion ends at rest."""
    last = len(points) - 1
    if idle_rad_s == 0:
        return 0, last, False
    steps = max(1, round(IDLE_S / dt))
    ahead = points[np.minimum(np.arange(len(points)) + steps, last)] - points
    moving = np.flatnonzero((np.abs(ahead) > idle_rad_s * steps * dt).any(axis=1))
    if not len(moving):
        raise Refused('the arm did not move')
    # What begins to move within the next `steps` ends to move within them.
    return int(moving[0]), int(min(moving[-1] + steps, last)), bool(moving[-1] + steps < last)


def _follow(wanted: np.ndarray, limits: JointLimits, dt: float) -> np.ndarray:
    """Return what the limit filter makes of control points [T, A], begun at their speed."""
    motion = LimitFilter(limits, dt)
    motion.reset(wanted[0])
    first = motion.position.copy()
    motion.velocity = np.clip((wanted[1] - wanted[0]) / dt, -limits.velocity, limits.velocity)
    return np.concatenate([first[None], motion.track(wanted[1:])])


def _describe(wanted: np.ndarray, moved: np.ndarray, limits: JointLimits, dt: float) -> str:
    """Say by which joint, where the limits moved most, and how, the motion leaves them."""
    j = int(moved.max(axis=0).argmax())
    x = wanted[:, j]
    velocity = np.abs(np.diff(x)).max() / dt
    acceleration = np.abs(np.diff(x, 2)).max() / dt**2 if len(x) > 2 else 0.0
    parts = []
    if x.min() < limits.lower[j] or x.max() > limits.upper[j]:
        parts.append(
            f'is at {x.min():.3f} to {x.max():.3f} rad '
            f'(limits {limits.lower[j]:g}, {limits.upper[j]:g})'
        )
    if velocity > limits.velocity[j]:
        parts.append(f'moves at {velocity:.2f} rad/s (limit {limits.velocity[j]:g})')
    if acceleration > limits.acceleration[j]:
        parts.append(
            f'accelerates by {acceleration:.1f} rad/s^2 (limit {limits.acceleration[j]:g})'
        )
    return f'{limits.joints[j]} {" and ".join(parts) or "cannot brake before its limit"}'
