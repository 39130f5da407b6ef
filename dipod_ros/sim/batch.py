# SPDX-License-Identifier: Apache-2.0
"""Owns the one stepping core: N copies of a world advanced together by `mujoco.rollout`.

The vectorised env and the ROS node both step through `BatchWorlds.advance`, one control period per
call, so they agree exactly: a call starts with a cold solver, and its result is a function of state
and setpoints alone, whatever the number of worlds or threads. No ROS.
"""

from __future__ import annotations

import mujoco
import numpy as np
from mujoco import rollout

from dipod_ros.errors import UserError
from dipod_ros.sim.world import STATE, World


class BatchWorlds:
    """Full-physics states [N, S] of N worlds (time, positions, velocities), and how to advance."""

    def __init__(self, world: World, count: int, threads: int = 1) -> None:
        """Put `count` worlds at rest at home; `threads` > 1 steps them on that many threads."""
        if count < 1 or threads < 1:
            raise UserError(f'worlds and threads must be at least 1, got {count} and {threads}')
        self.world = world
        self.count = count
        model = world.model
        # nthread 0 steps in the calling thread: one thread needs no pool.
        pool = 0 if threads == 1 else threads
        self._rollout = rollout.Rollout(nthread=pool)
        self._data = [mujoco.MjData(model) for _ in range(max(1, pool))]
        self.state = np.tile(world.rest_state(), (count, 1))
        if self.state.shape[1] != 1 + model.nq + model.nv + model.na:
            raise UserError('MJCF plugins with a state of their own are not supported')
        # Actuators outside the arm (a gripper, say) hold the command of the first keyframe, or 0.
        self._idle_control = model.key_ctrl[0].copy() if model.nkey else np.zeros(model.nu)
        self._qpos = 1 + world.qpos_index
        self._qvel = 1 + model.nq + world.qvel_index

    @property
    def joint_position(self) -> np.ndarray:
        """Measured joint positions [N, A] (rad)."""
        return self.state[:, self._qpos]

    @property
    def joint_velocity(self) -> np.ndarray:
        """Measured joint velocities [N, A] (rad/s)."""
        return self.state[:, self._qvel]

    def qpos(self, joint: int) -> np.ndarray:
        """Return the position [N] of a single-value joint by its MuJoCo id (rad or m)."""
        return self.state[:, 1 + self.world.model.jnt_qposadr[joint]]

    def qvel(self, joint: int) -> np.ndarray:
        """Return the velocity [N] of a single-value joint by its MuJoCo id (rad/s or m/s)."""
        return self.state[:, 1 + self.world.model.nq + self.world.model.jnt_dofadr[joint]]

    def advance(self, setpoints: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Advance by the physics steps that `setpoints` covers.

        Args:
            setpoints: position references [N, T, A] (rad), one per physics step.
            active: booleans [N]; the other worlds stay as they are. None means all.

        Returns:
            sensor values [N, T, sensors]; each row belongs to the state BEFORE its physics step.
            Rows of worlds that are not active are 0.

        """
        control = np.empty((*setpoints.shape[:2], self.world.model.nu))
        control[:] = self._idle_control
        control[:, :, self.world.actuator_index] = setpoints
        if active is None or active.all():
            states, sensors = self._roll(self.state, control)
            self.state = states[:, -1].copy()
            return sensors
        out = np.zeros((self.count, setpoints.shape[1], self.world.model.nsensordata))
        if active.any():
            states, out[active] = self._roll(self.state[active], control[active])
            self.state[active] = states[:, -1]
        return out

    def _roll(self, state: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return states [N, T, S] and sensors [N, T, ...]; both arguments are ours and contiguous.

        Without the checks of `rollout`, which take longer than the physics of one small world.
        """
        model, (count, steps) = self.world.model, control.shape[:2]
        return self._rollout.rollout(
            [model] * count,
            self._data,
            np.ascontiguousarray(state),
            np.ascontiguousarray(control),
            skip_checks=True,
            nstep=steps,
            state=np.empty((count, steps, state.shape[1])),
            sensordata=np.empty((count, steps, model.nsensordata)),
        )


def data_at(world: World, state: np.ndarray) -> mujoco.MjData:
    """Return MjData with `state` [S] set and positions computed, to render or inspect it."""
    data = mujoco.MjData(world.model)
    mujoco.mj_setState(world.model, data, state, STATE)
    mujoco.mj_forward(world.model, data)
    return data
