# SPDX-License-Identifier: Apache-2.0
"""Owns Gymnasium's Hopper-v5 and Walker2d-v5 as worlds stepped by chunks. No ROS, no torch.

The model is Gymnasium's own file. The constants and the loop are those of its classes (Towers et
al., arXiv:2407.17032, and the classes' documentation), written here again because importing these
needs imageio, for pictures that nobody takes; a test compares them:

    reward_t = w_forward (x_{t+1} - x_t) / dt + healthy_reward * healthy_{t+1} - w_ctrl |a_t|^2
    observation = (q without x, clip(qdot, -10, 10)),    terminated = not healthy

Every world keeps an MjData of its own, so the solver starts warm where Gymnasium's does and whole
episodes agree to the last bit; `mujoco.rollout` starts cold in each call, and a walker's contacts
amplify that to 1e-6 within 120 steps for 3 to 15 % more speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.sim.external.chunk_env import Executed, ExternalChunkEnv


@dataclass(frozen=True)
class Gait:
    """The defaults of one of Gymnasium's classes, by the names of its arguments."""

    task: str
    xml_file: str
    healthy_z_range: tuple[float, float]  # m
    healthy_angle_range: tuple[float, float]  # rad
    # Of every coordinate but x and z; only the hopper has one.
    healthy_state_range: tuple[float, float] = (-np.inf, np.inf)
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    reset_noise_scale: float = 5e-3


ENVS = {
    'Hopper-v5': Gait(
        'hopper', 'hopper.xml', (0.7, np.inf), (-0.2, 0.2), healthy_state_range=(-100.0, 100.0)
    ),
    'Walker2d-v5': Gait('walker2d', 'walker2d_v5.xml', (0.8, 2.0), (-1.0, 1.0)),
}


class GymnasiumChunkEnv(ExternalChunkEnv):
    """N worlds of Hopper-v5 or Walker2d-v5; a chunk is H of Gymnasium's steps.

    Success is to be upright at the time limit; what these tasks are compared by is the return.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        seed: int | None = None,
        horizon: int = 4,
        autoreset: bool = False,
    ) -> None:
        """Load the model and start an episode in each world; UserError for another env_id."""
        if env_id not in ENVS:
            raise UserError(f'no chunk env for {env_id!r}; there are {list(ENVS)}')
        self.gait = gait = ENVS[env_id]
        assets = Path(gymnasium.__file__).parent / 'envs' / 'mujoco' / 'assets'
        self.model = model = mujoco.MjModel.from_xml_path(str(assets / gait.xml_file))
        self._dt = model.opt.timestep * gait.frame_skip
        if not np.allclose(model.actuator_ctrlrange, [-1, 1]):
            raise UserError(f'{env_id} of this Gymnasium has actions outside [-1, 1]')
        super().__init__(
            task=gait.task,
            robot=f'gymnasium/{env_id}',
            joints=[model.joint(j).name for j in model.actuator_trnid[:, 0]],
            observation_size=model.nq - 1 + model.nv,
            num_envs=num_envs,
            seed=seed,
            horizon=horizon,
            control_period_s=self._dt,
            max_steps=int(gymnasium.spec(env_id).max_episode_steps),
            autoreset=autoreset,
        )
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        # Views: fetching d.qpos anew in every step costs as much as the copy.
        self._views = [(d.ctrl, d.qpos, d.qvel) for d in self._data]
        self._home = self._data[0].qpos.copy(), self._data[0].qvel.copy()
        self._restart_all()

    def state(self, world: int) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the positions and velocities of a world."""
        data = self._data[world]
        return data.qpos.copy(), data.qvel.copy()

    def _begin(self, world: int, rng: np.random.Generator) -> np.ndarray:
        data = self._data[world]
        mujoco.mj_resetData(self.model, data)
        noise = self.gait.reset_noise_scale
        data.qpos[:] = self._home[0] + rng.uniform(-noise, noise, self.model.nq)
        data.qvel[:] = self._home[1] + rng.uniform(-noise, noise, self.model.nv)
        mujoco.mj_forward(self.model, data)
        return _observation(data.qpos, data.qvel)

    def _execute(self, actions: np.ndarray, active: np.ndarray) -> Executed:
        count, model = len(active), self.model
        # States before the chunk and after each control step. Steps past a fall are simulated too,
        # and ignored: at most H - 1 of an episode's.
        qpos = np.empty((count, self.horizon + 1, model.nq))
        qvel = np.empty((count, self.horizon + 1, model.nv))
        for row, i in enumerate(active):
            data, (control, position, velocity) = self._data[i], self._views[i]
            qpos[row, 0], qvel[row, 0] = position, velocity
            for k in range(self.horizon):
                control[:] = actions[i, k]
                mujoco.mj_step(model, data, self.gait.frame_skip)
                qpos[row, k + 1], qvel[row, k + 1] = position, velocity
        healthy = self._healthy(qpos[:, 1:], qvel[:, 1:])
        rewards = (
            self.gait.forward_reward_weight * (np.diff(qpos[:, :, 0]) / self._dt)
            + self.gait.healthy_reward * healthy
            - self.gait.ctrl_cost_weight * np.square(actions[active]).sum(2)
        )
        # Control steps up to the first fall, the time limit or the end of the chunk.
        left = np.minimum(self.horizon, self.max_steps - self.steps[active])
        fell = ~healthy
        steps = np.minimum(np.where(fell.any(1), fell.argmax(1) + 1, self.horizon), left)
        rows = np.arange(count)
        return Executed(
            observation=_observation(qpos[rows, steps], qvel[rows, steps]),
            reward=(rewards * (np.arange(self.horizon) < steps[:, None])).sum(1),
            steps=steps,
            ended=fell[rows, steps - 1],
        )

    def _succeeded(self) -> np.ndarray:
        return self.truncated

    def _healthy(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Return where states [..., nq], [..., nv] are healthy, as `is_healthy` of the classes."""

        def inside(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
            return (bounds[0] < values) & (values < bounds[1])

        rest = np.concatenate([qpos[..., 2:], qvel], axis=-1)
        return (
            inside(rest, self.gait.healthy_state_range).all(-1)
            & inside(qpos[..., 1], self.gait.healthy_z_range)
            & inside(qpos[..., 2], self.gait.healthy_angle_range)
        )


def _observation(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    return np.concatenate([qpos[..., 1:], np.clip(qvel, -10, 10)], axis=-1)
