# SPDX-License-Identifier: Apache-2.0
"""The observation of a tick to come, as far as it is decided already. numpy, no ROS.

A decision takes time, and what the arm does in that time is committed: where it will be when the
chunk begins is known. A policy that is asked about that moment gives a chunk that begins there, and
nothing of it is thrown away. The idea is that of VLASH (arXiv 2512.01031), future-state awareness.
The rest of the world is taken as it was seen.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.serving.observation import ObservationLayout
from dipod_ros.serving.timeline import Plan

# How much older tracking errors count, per control period: the last two seconds or so decide.
FORGET = 0.98
# Speeds (rad/s) that say nothing about a lag: below this spread the lag found shrinks to 0.
QUIET_RAD_S = 0.02
# An error beyond this (rad) on top of what the lag allows for is an odd joint state, where nobody
# says how far an arm may be from its command.
ODD_RAD = 1.0
# A lag beyond this many control periods is a fault, or a joint that something else moves.
LONGEST_PERIODS = 4.0


class TrackingLag:
    """How far in time each joint follows behind its setpoint.

    The slope of the tracking error over the setpoint's velocity, by least squares with forgetting:
    a drive with lag T is at x - T w when its setpoint x moves at w. What holds against gravity is
    constant and does not enter the slope.
    """

    def __init__(self, joints: int, dt: float) -> None:
        """Take the number of joints and the control period in seconds; the lag begins at 0."""
        self._sums = np.zeros((5, joints))  # of 1, v, e, v v, v e
        self._longest_s = LONGEST_PERIODS * dt
        self.seconds = np.zeros(joints)  # the lag per joint [A]

    def observe(self, error: np.ndarray, velocity: np.ndarray) -> None:
        """Take measured minus setpoint [A] (rad), and the setpoint's velocity [A] (rad/s)."""
        now = np.stack([np.ones_like(error), velocity, error, velocity**2, velocity * error])
        self._sums = FORGET * self._sums + now
        # Here and not where it is needed: then a command is waited for.
        n, v, e, vv, ve = self._sums
        count = np.maximum(n, 1.0)
        slope = (ve - v * e / count) / (vv - v * v / count + count * QUIET_RAD_S**2)
        self.seconds = np.clip(-slope, 0.0, self._longest_s)


def roll_forward(
    layout: ObservationLayout,
    observation: np.ndarray,
    joints: np.ndarray,
    plan: Plan,
    seen: int,
    asked: int,
    lag_s: np.ndarray,
    tip: TipKinematics | None = None,
) -> np.ndarray:
    """Return the observation float32 [O] that tick `asked` will bring.

    The arm follows its setpoints with the error that it has now, and with what its lag makes of
    another speed: with x_k the setpoint and w_k its velocity at tick k,

        q  + x_asked - x_seen - lag (w_asked - w_seen)    joint positions
        qd + w_asked - w_seen                             joint velocities

    and the tip moves by what its kinematics say of that change, so that the two agree.

    Args:
        layout: how the policy's observation is made.
        observation: float32 [O]; what moves with the arm is of tick `seen`, its command of `asked`.
        joints: measured positions [A] (rad) at `seen`, in the robot's joint order.
        plan: what is committed; it reaches to `asked`, or ends at rest before.
        seen: tick that the joints show.
        asked: tick to roll forward to, `seen` or later.
        lag_s: how far each joint [A] follows behind its setpoint.
        tip: where the tip is for which joint positions; None leaves it as it was seen.

    """
    spec = layout.spec
    faster = plan.velocity(asked, spec.control_period_s) - plan.velocity(
        seen, spec.control_period_s
    )
    moved = plan.knot(asked) - plan.knot(seen) - lag_s * faster
    out, at = observation.copy(), 0
    for stream in spec.streams:
        part = slice(at, at + stream.size)
        if stream.source == 'joint_position':
            out[part] += layout.to_policy(moved)
        elif stream.source == 'joint_velocity':
            out[part] += layout.to_policy(faster)
        elif stream.source == 'point' and tip is not None and stream.topic == tip.topic:
            out[part] += tip.forward(joints + moved) - tip.forward(joints)
        at += stream.size
    return out
