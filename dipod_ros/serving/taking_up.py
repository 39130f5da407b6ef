# SPDX-License-Identifier: Apache-2.0
"""How a command that stands is brought to where the arm stands, within the limits. numpy, no ROS.

Nobody but the controller knows what it holds: the last command, or the place where it was when it
was switched off and on again. A trajectory leaves the way to it: it has one point, at the arm, so
late that the controller gets there within the limits from either. Positions go the way themselves.
"""

from __future__ import annotations

import math

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


def wait_at(plan: Plan, tick: int, position: np.ndarray, limits: JointLimits, dt: float) -> Plan:
    """Return the plan that stands at [A] (rad) and leaves the controller the time to get there."""
    end = np.clip(position, limits.lower, limits.upper)
    count = periods(end - plan.point(tick), limits, dt)
    rest = Motion(np.tile(end, (count + 2, 1)), 0, 0.0)
    return Plan(tick, np.tile(end, (TRAIL, 1)), rest, None, unsaid=count)
