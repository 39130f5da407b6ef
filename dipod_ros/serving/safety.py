# SPDX-License-Identifier: Apache-2.0
"""What stands between a chunk and the arm: limits, NaN gate, e-stop latch, watchdog. numpy only.

Everything that leaves here ends at rest: control points for the chunk, then braking points. So a
server that dies, hangs or falls silent after any message leaves an arm that stops within its
limits, without anybody having to notice.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipod_ros.policy.limits import TOLERANCE_RAD, JointLimits, LimitFilter
from dipod_ros.serving.speed import SpeedConfig, SpeedScale
from dipod_ros.serving.workspace import Workspace

# Interventions, by the name under which they are counted and reported.
LIMIT = 'limit'  # a target was moved to stay within the limits
NOT_FINITE = 'not_finite'  # a chunk held NaN or infinity: braked instead
STALE = 'stale'  # an observation stream fell silent: braked and held
UNDERRUN = 'underrun'  # the chunk ended before its successor was there: braked
WATCHDOG = 'watchdog'  # a decision took longer than allowed
FAULT = 'fault'  # the engine raised an error: braked
ESTOP = 'estop'  # stopped on request
FOLLOWING = 'following'  # the arm was not where its command was: braked and held
OTHERS = 'other_commander'  # somebody else commands the arm: braked, then silent
RESYNC = 'resync'  # the command restarted from where the arm is
RAMP = 'ramp'  # a chunk was slowed down after a start
SLOW = 'slow'  # a chunk was slowed down because a stream was late
WORKSPACE = 'workspace'  # a chunk was cut short, or slowed down, at the walls of the workspace
INTERVENTIONS = (
    *(LIMIT, NOT_FINITE, STALE, UNDERRUN, WATCHDOG, FAULT, ESTOP, RESYNC),
    *(RAMP, SLOW, WORKSPACE, FOLLOWING, OTHERS),
)

# A command closer than this to its target was not moved in any sense that matters (float32 noise).
CLAMP_REPORT_RAD = 1e-6


@dataclass(frozen=True, eq=False)
class Motion:
    """Control points that are safe to execute; the last ones bring the arm to rest."""

    points: np.ndarray  # [K, A] rad: those of the chunk, then the braking tail
    horizon: int  # how many of them answer the chunk
    clamp_rad: float  # largest distance between a target and its point
    # Something besides the limits changed it: what was executed is not what was sampled.
    altered: bool = False
    targets: np.ndarray | None = None  # [horizon, A] rad, what the points answer


class EStop:
    """A latch: set by anybody, cleared only on purpose."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: tuple[str, ...] = ()

    @property
    def latched(self) -> bool:
        """Whether motion is forbidden."""
        return bool(self._reasons)

    @property
    def reason(self) -> str:
        """Who latched it, all of them in the order in which they did, '' while it is clear."""
        return ', '.join(self._reasons)

    def latch(self, reason: str) -> bool:
        """Forbid motion; return True when it was allowed until now."""
        reason = reason or 'requested'
        with self._lock:
            news = not self._reasons
            if reason not in self._reasons:
                self._reasons = (*self._reasons, reason)
            return news

    def release(self, reason: str) -> bool:
        """Take back what was latched for this reason alone; return True when it was."""
        with self._lock:
            left = tuple(r for r in self._reasons if r != reason)
            news, self._reasons = left != self._reasons, left
            return news

    def reset(self) -> bool:
        """Allow motion again; return True when it was forbidden."""
        with self._lock:
            news, self._reasons = bool(self._reasons), ()
            return news


class Watchdog:
    """Tells when work that was begun is not finished in time, on an injected steady clock."""

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._since: float | None = None

    def begin(self) -> None:
        """Work begins."""
        self._since = self._clock()

    def end(self) -> None:
        """Work is done."""
        self._since = None

    @property
    def expired(self) -> bool:
        """Whether the present piece of work takes too long."""
        since = self._since
        return since is not None and self._clock() - since > self.timeout_s


class SafetyFilter:
    """Turns targets into motions within limits; counts every time it had to step in."""

    def __init__(
        self,
        limits: JointLimits,
        dt: float,
        speed: SpeedConfig | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        """Take the robot's limits, the control period in seconds, when to go slower, and a box."""
        self.limits = limits
        self.dt = dt
        self.workspace = workspace
        self.speed = SpeedScale(speed or SpeedConfig(), dt)
        self.estop = EStop()
        self.counts: Counter[str] = Counter(dict.fromkeys(INTERVENTIONS, 0))
        self._filter = LimitFilter(limits, dt)
        self._step = limits.acceleration * dt
        self._shed = np.zeros((0, len(limits.joints)))

    def count(self, intervention: str) -> None:
        """Count one intervention that was decided elsewhere."""
        self.counts[intervention] += 1

    def clip(self, position: np.ndarray) -> np.ndarray:
        """Return a position [A] within the position limits."""
        return np.clip(position, self.limits.lower, self.limits.upper)

    def follow(
        self, position: np.ndarray, velocity: np.ndarray, targets: np.ndarray, tick: int = 0
    ) -> Motion:
        """Follow absolute targets [H, A] (rad) from a control point [A] and its velocity [A].

        `tick` is that of the control point; the first target is for the next one. A target that is
        not finite refuses the whole chunk: half of a broken chunk is not half right. While the
        e-stop is latched every motion is a stop.
        """
        if self.estop.latched:
            return self.brake(position, velocity)
        if not np.isfinite(targets).all():
            self.count(NOT_FINITE)
            return self.brake(position, velocity)
        points = self._track(position, velocity, targets)
        if _apart(points, targets) > CLAMP_REPORT_RAD:
            self.count(LIMIT)
        points, changes = self._restrain(position, velocity, targets, points, tick)
        for change in changes:
            self.count(change)
        if len(points):
            before = points[-2] if len(points) > 1 else position
            position, velocity = points[-1], (points[-1] - before) / self.dt
        tail = self._tail(position, velocity)
        answered = targets[: len(points)]
        return Motion(
            np.concatenate([points, tail]),
            len(points),
            _apart(points, answered),
            bool(changes),
            answered,
        )

    def _restrain(
        self,
        position: np.ndarray,
        velocity: np.ndarray,
        targets: np.ndarray,
        points: np.ndarray,
        tick: int,
    ) -> tuple[np.ndarray, list[str]]:
        """Return control points that are slow enough and in the workspace, and what changed them.

        `points` [H, A] are those that the limits alone would give.
        """
        scale = self.speed.scales(tick, len(targets))
        name = SLOW if self.speed.slow else RAMP
        if self.workspace is not None and self.workspace.outside(position):
            home = self.speed.config.slow_speed_scale
            scale = np.full(len(targets), home) if scale is None else np.minimum(scale, home)
            name = WORKSPACE
        changes = []
        if scale is not None:
            full_speed, points = points, self._track(position, velocity, targets, scale)
            if _apart(points, full_speed) > CLAMP_REPORT_RAD:
                changes.append(name)
        if self.workspace is not None:
            count = self.workspace.admissible(position, points, self.dt, self._tail)
            if count < len(points):
                points = points[:count]
                changes.append(WORKSPACE)
        return points, list(dict.fromkeys(changes))

    def within(self, position: np.ndarray, velocity: np.ndarray, periods: float) -> np.ndarray:
        """Return the part of a velocity [A] (rad/s) that a command may begin with.

        At position [A] it goes on for some control periods T, then it brakes. So it keeps the
        velocity limit, and stops before the position limits: v T + v^2 / 2 a <= room, the left side
        being at least the distance of `brake`, whose first step is slower already.
        """
        limits = self.limits
        step = periods * self._step
        up, down = (
            np.sqrt(step**2 + 2 * limits.acceleration * np.maximum(room, 0.0)) - step
            for room in (limits.upper - position, position - limits.lower)
        )
        return np.clip(
            velocity, -np.minimum(limits.velocity, down), np.minimum(limits.velocity, up)
        )

    def brake(self, position: np.ndarray, velocity: np.ndarray) -> Motion:
        """Come to rest as fast as the acceleration limits allow."""
        return Motion(self._tail(position, velocity), 0, 0.0)

    def _track(
        self,
        position: np.ndarray,
        velocity: np.ndarray,
        targets: np.ndarray,
        scale: np.ndarray | None = None,
    ) -> np.ndarray:
        self._filter.position, self._filter.velocity = position, velocity
        return self._filter.track(targets, scale)

    def _tail(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return braking points [K, A], K at least 1; the last step is 0, so the arm is at rest.

        Each joint sheds speed at its own limit. The filter only ever reaches speeds from which
        this ends inside the position limits, so the clip below acts on round-off alone.
        """
        speed = np.abs(velocity)
        speed = np.where(speed * self.dt <= TOLERANCE_RAD, 0.0, speed)
        count = max(1, math.ceil((speed / self._step).max()))
        left = np.maximum(speed - self._sheds(count), 0.0)
        points = position + (np.copysign(left, velocity) * self.dt).cumsum(axis=0)
        return np.minimum(np.maximum(points, self.limits.lower), self.limits.upper)

    def _sheds(self, count: int) -> np.ndarray:
        """Return the speed [count, A] (rad/s) that braking has taken after 1, 2, ... periods."""
        if count > len(self._shed):
            self._shed = np.arange(1, 2 * count + 1)[:, None] * self._step
        return self._shed[:count]


def _apart(points: np.ndarray, targets: np.ndarray) -> float:
    return float(np.abs(points - targets).max(initial=0.0))
