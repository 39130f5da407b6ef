# SPDX-License-Identifier: Apache-2.0
"""Owns forward kinematics and the position Jacobian of one site, for many poses at once. No ROS.

MuJoCo computes one pose at a time; the demonstrators and the `tip` stream need hundreds, and need
them for the state at the END of a step, where MuJoCo's sensors lag by one physics step.
"""

from __future__ import annotations

import mujoco
import numpy as np

from dipod_ros.sim.robot import RobotError
from dipod_ros.sim.world import World

_EYE = np.eye(3)


class SerialChain:
    """The chain of bodies from the world to the tip; joints outside the arm stay at their home."""

    def __init__(self, world: World) -> None:
        model = world.model
        column = {int(model.joint(name).id): i for i, name in enumerate(world.robot.joints)}
        rest = np.zeros(model.nq)
        rest[:] = model.qpos0
        bodies: list[int] = []
        body = int(model.site_bodyid[world.tip_id])
        while body > 0:
            bodies.insert(0, body)
            body = int(model.body_parentid[body])
        # Each link: fixed offset, fixed rotation, then (joint column, axis, cross product with the
        # axis and its square as matrices (None for a slide), anchor, zero).
        self._links = []
        for body in bodies:
            joints = []
            first = int(model.body_jntadr[body])
            for j in range(first, first + int(model.body_jntnum[body])):
                if j in column:
                    hinge = model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE
                    zero = float(model.qpos0[model.jnt_qposadr[j]])
                    axis, anchor = model.jnt_axis[j].copy(), model.jnt_pos[j].copy()
                    turning = _cross_and_square(axis) if hinge else None
                    joints.append((column[j], axis, turning, anchor, zero))
            self._links.append(
                (model.body_pos[body].copy(), _matrix(model.body_quat[body]), joints)
            )
        self._site = model.site_pos[world.tip_id].copy()
        self._site_rotation = _matrix(model.site_quat[world.tip_id])
        self._joints = len(world.robot.joints)
        self._last = np.zeros((0, self._joints)), np.zeros((0, 3))  # pose and tip of the last call

    def forward(self, q: np.ndarray) -> np.ndarray:
        """Return tip positions [N, 3] (m, world frame) for joint positions `q` [N, A] (rad)."""
        # A step's judge and its observation ask about the same pose one after the other.
        pose, tip = self._last
        if not np.array_equal(q, pose):
            tip = self._sweep(q)[0]
            self._last = np.array(q), tip
        return tip.copy()

    def jacobian(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tip position [N, 3], rotation [N, 3, 3] and Jacobian [N, 6, A] for `q` [N, A].

        Rows 0..2 of the Jacobian give linear velocity (m/s), rows 3..5 angular velocity (rad/s).
        """
        position, rotation, axes = self._sweep(q)
        out = np.zeros((len(q), 6, self._joints))
        for column, hinge, axis, anchor in axes:
            if hinge:
                out[:, :3, column] = np.cross(axis, position - anchor)
                out[:, 3:, column] = axis
            else:
                out[:, :3, column] = axis
        return position, rotation, out

    def screws(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return axes [A, 3], points on them [A, 3] (m) and the tip [3] (m) with all joints at 0.

        These are the numbers of `kinematics` in a robot file (policy/kinematics.py). Raises
        RobotError for a chain that is not one of the arm's hinges alone.
        """
        tip, _, found = self._sweep(np.zeros((1, self._joints)))
        by_column = {column: (axis[0], anchor[0]) for column, hinge, axis, anchor in found if hinge}
        if len(by_column) != self._joints:
            raise RobotError('only a chain in which every joint of the arm is a hinge has screws')
        rows = [by_column[i] for i in range(self._joints)]
        return np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), tip[0]

    def _sweep(self, q: np.ndarray):
        count = len(q)
        position = np.zeros((count, 3))
        rotation = np.broadcast_to(np.eye(3), (count, 3, 3))
        axes = []
        for offset, turn, joints in self._links:
            position = position + rotation @ offset
            rotation = rotation @ turn
            for column, axis, turning, anchor, zero in joints:
                world_axis = rotation @ axis
                value = q[:, column] - zero
                if turning is not None:
                    pivot = position + rotation @ anchor
                    axes.append((column, True, world_axis, pivot))
                    rotation = rotation @ _axis_rotation(*turning, value)
                    position = pivot - rotation @ anchor
                else:
                    axes.append((column, False, world_axis, None))
                    position = position + world_axis * value[:, None]
        return position + rotation @ self._site, rotation @ self._site_rotation, axes


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    out = np.empty(9)
    mujoco.mju_quat2Mat(out, np.asarray(quaternion, dtype=np.float64))
    return out.reshape(3, 3)


def _cross_and_square(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix [3, 3] of the cross product with `axis` [3], and its square."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return k, k @ k


def _axis_rotation(cross: np.ndarray, square: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rodrigues' formula for one axis, given by matrices, and many angles [N]: [N, 3, 3]."""
    s, c = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return _EYE + s * cross + (1 - c) * square
