# SPDX-License-Identifier: Apache-2.0
"""How a command that stands is brought to where the arm stands, within the limits. numpy, no ROS.

Nobody but the controller knows what it holds: the last command, or the place where it was when it
was switched off and on again. A trajectory leaves the way to it: it has one point, at the arm, so
late that the controller gets there within the limits from either. Positions go the way themselves.

A stop on a way that is left to the controller stops an arm that is on it. One that stands at its
end is told nothing: its controller never was elsewhere, or its drive is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.safety import Motion
from dipod_ros.serving.timeline import TRAIL, Plan

# So much longer than the limits ask for: what is sent takes time to arrive.
SLACK = 1.2
SPARE_PERIODS = 2


def periods(way: np.ndarray, limits: JointLimits, dt: float) -> int:
    """Return how many control periods a way [A] (rad) takes from rest to rest.

    On the cubic x = d (3 u^2 - 2 u^3), u = t / T, the speed is at most 1.5 d / T and the
    acceleration 6 d / T^2, and whoever brakes on it stops before its end.
    """
    way = np.abs(way)
    slowest = np.maximum(1.5 * way / limits.velocity, np.sqrt(6 * way / limits.acceleration))
    return math.ceil(SLACK * float(slowest.max()) / dt) + SPARE_PERIODS


def go(plan: Plan, tick: int, position: np.ndarray, limits: JointLimits, dt: float) -> Plan:
    """Return the plan that goes from the control point of `tick`, where it stands, to [A] (rad)."""
    start, end = plan.point(tick), np.clip(position, limits.lower, limits.upper)
    count = periods(end - start, limits, dt)
    u = (np.arange(1, count + 1) / count)[:, None]
    points = start + (end - start) * (u * u * (3 - 2 * u))
    points = np.concatenate([points, end[None]])
    return Plan(tick, plan.trail_at(tick), Motion(points, 0, 0.0), None)


@dataclass(frozen=True, eq=False)
class Way:
    """What a controller does that held the last command: a cubic to the only point of a plan."""

    plan: Plan
    begin: np.ndarray  # [A] rad, where its setpoint was at the plan's start
    speed: np.ndarray  # [A] rad/s, how fast that was there

    def left(self, tick: int) -> int:
        """Return how many control periods it still takes at a tick; 0 when it is over."""
        return max(self._count - (tick - self.plan.start), 0)

    def state(self, tick: int, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the setpoint [A] (rad) at a tick and its velocity [A] (rad/s)."""
        whole, way = self._count * dt, self.plan.motion.points[-1] - self.begin
        u = min(max((tick - self.plan.start) / self._count, 0.0), 1.0)
        position = self.begin + self.speed * whole * u * (1 - u) ** 2 + way * u * u * (3 - 2 * u)
        return position, self.speed * (1 - u) * (1 - 3 * u) + way * 6 * u * (1 - u) / whole

    @property
    def stops(self) -> bool:
        """Whether it brings a controller to rest that was on another one."""
        return bool(self.speed.any())

    @property
    def _count(self) -> int:
        return self.plan.unsaid + 1  # the first knot that is said is that of the next tick


def wait_at(
    plan: Plan,
    tick: int,
    position: np.ndarray,
    limits: JointLimits,
    dt: float,
    lost: Way | None = None,
) -> Way:
    """Return the way that stands at [A] (rad) and leaves the controller the time to get there.

    It may stand anywhere on a way that is `lost`, which the plan is that of.
    """
    begin, end = plan.point(tick), np.clip(position, limits.lower, limits.upper)
    away = np.abs(end - begin)
    if lost is not None:
        begin = lost.begin
        away = np.maximum(away, np.abs(end - begin))
    return _leave(plan, tick, end, periods(away, limits, dt), begin, np.zeros_like(begin))


def stop_on(way: Way, tick: int, limits: JointLimits, dt: float) -> Way | None:
    """Return the way that comes to rest on another one, None where that one ends as soon.

    With x' = v (1 - u)^2 the acceleration is at most 2 v / T, and the rest comes v T / 3 further
    on: before the end of the other way, which T is shorter than.
    """
    begin, speed = way.state(tick, dt)
    slowest = float((2 * np.abs(speed) / limits.acceleration).max())
    count = math.ceil(SLACK * slowest / dt) + SPARE_PERIODS
    if count + 1 >= way.left(tick):
        return None
    end = begin + speed * (count + 1) * dt / 3
    end = np.clip(end, limits.lower, limits.upper)  # round-off
    return _leave(way.plan, tick, end, count, begin, speed)


def _leave(
    plan: Plan, tick: int, end: np.ndarray, count: int, begin: np.ndarray, speed: np.ndarray
) -> Way:
    rest = Motion(np.tile(end, (count + 2, 1)), 0, 0.0)
    return Way(Plan(tick, np.tile(end, (TRAIL, 1)), rest, None, unsaid=count), begin, speed)
