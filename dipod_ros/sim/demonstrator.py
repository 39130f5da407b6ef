# SPDX-License-Identifier: Apache-2.0
"""Owns the scripted expert: a tip velocity field turned into joint chunks by resolved rates.

Imperfect by design. The imperfections are systematic (wrong clearance, speed, goal) and slow, drawn
once per episode: white noise would be averaged away by behaviour cloning and would fight the
acceleration limits. No ROS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dipod_ros.sim.kinematics import SerialChain
from dipod_ros.sim.robot import RobotConfig

# The expert stays below this share of the joint speed limits.
SPEED_MARGIN = 0.8

# Desired tip velocity [N, 3] (m/s) from the commanded tip [N, 3] and the observed points.
VelocityField = Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Motion:
    """How the expert moves, whatever the task."""

    # Per control step; the tip speeds up over about 1 / smoothing steps, so that the arm starts
    # from rest without touching its acceleration limits.
    smoothing: float = 0.22
    # Slow wandering of the tip velocity (m/s) and its correlation time in control steps.
    wander_m_s: float = 0.015
    wander_steps: float = 10.0
    # White noise on each joint increment (rad per control step).
    joint_noise_rad: float = 0.0005
    # Pull per control step towards the home posture, in the null space of the tip.
    posture_gain: float = 0.02
    # Pull per control step that keeps the peg pointing down.
    upright_gain: float = 0.15


class Demonstrator:
    """Plans one chunk at a time for N arms from what they were last commanded."""

    def __init__(
        self,
        chain: SerialChain,
        robot: RobotConfig,
        horizon: int,
        field: VelocityField,
        rng: np.random.Generator,
        motion: Motion | None = None,
    ) -> None:
        self._chain = chain
        self._home = robot.home
        self._largest = SPEED_MARGIN * robot.limits.velocity * robot.control_period_s
        self._horizon = horizon
        self._period_s = robot.control_period_s
        self._field = field
        self._rng = rng
        self._motion = motion or Motion()
        self._velocity: np.ndarray | None = None
        self._wander: np.ndarray | None = None

    def chunk(self, command: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return joint increments [N, H, A] (rad per control step).

        Args:
            command: last commanded control point [N, A] (rad).
            points: the task's point streams, each [N, 3] (m).

        """
        q = command.copy()
        out = np.empty((len(q), self._horizon, q.shape[1]))
        for k in range(self._horizon):
            out[:, k] = self._increment(q, points)
            q = q + out[:, k]
        return out

    def _increment(self, q: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        m = self._motion
        if self._velocity is None:
            self._velocity = np.zeros((len(q), 3))
            self._wander = np.zeros((len(q), 3))
        tip = self._chain.forward(q)
        keep = np.exp(-1 / m.wander_steps)
        fresh = self._rng.normal(size=tip.shape) * m.wander_m_s * np.sqrt(1 - keep**2)
        self._wander = keep * self._wander + fresh
        wanted = self._field(tip, points) + self._wander
        self._velocity = self._velocity + m.smoothing * (wanted - self._velocity)
        step = resolved_rate(
            self._chain,
            q,
            self._velocity * self._period_s,
            upright_gain=m.upright_gain,
            posture=m.posture_gain * (self._home - q),
        )
        step = step + self._rng.normal(size=q.shape) * m.joint_noise_rad
        # Near a singularity the rates grow without bound: keep the direction, lose the speed.
        fastest = np.max(np.abs(step) / self._largest, axis=1, keepdims=True)
        return step / np.maximum(1.0, fastest)


def resolved_rate(
    chain: SerialChain,
    q: np.ndarray,
    move: np.ndarray,
    upright_gain: float,
    posture: np.ndarray,
    damping: float = 0.02,
) -> np.ndarray:
    """Return joint increments [N, A] that move the tip by `move` [N, 3] (m), peg down.

    Damped least squares on position and tilt (rotation about the vertical is free), `posture`
    [N, A] projected into the null space (Nakamura and Hanafusa, 1986; Liegeois, 1977).
    """
    _, rotation, jacobian = chain.jacobian(q)
    axis = rotation[:, :, 2]
    # cross(axis, down): the rotation that turns the peg's axis towards -z.
    tilt = np.stack([-axis[:, 1], axis[:, 0]], axis=1)
    task = np.concatenate([move, upright_gain * tilt], axis=1)
    jacobian = jacobian[:, :5]
    transposed = jacobian.transpose(0, 2, 1)
    gram = jacobian @ transposed + damping**2 * np.eye(5)
    free = task - (jacobian @ posture[:, :, None])[:, :, 0]
    return posture + (transposed @ np.linalg.solve(gram, free[:, :, None]))[:, :, 0]


def solve_poses(
    chain: SerialChain, seed_pose: np.ndarray, targets: np.ndarray, sweeps: int = 60
) -> np.ndarray:
    """Return joint positions [N, A] whose tips are at `targets` [N, 3] (m), peg down.

    Iterates `resolved_rate` from `seed_pose` [A]; the remaining error is below a millimetre for
    targets well inside the workspace.
    """
    q = np.tile(seed_pose, (len(targets), 1))
    for _ in range(sweeps):
        error = targets - chain.forward(q)
        length = np.linalg.norm(error, axis=1, keepdims=True)
        # At most 4 cm a sweep: the linearisation holds.
        move = error * np.minimum(1, 0.04 / np.maximum(length, 1e-9))
        q = q + resolved_rate(chain, q, move, 0.3, 0.05 * (seed_pose - q), damping=0.01)
    return q
