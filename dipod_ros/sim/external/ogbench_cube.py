# SPDX-License-Identifier: Apache-2.0
"""Owns OGBench's cube-single (task 2) as worlds stepped by chunks. No ROS, no torch.

A UR5e with a Robotiq gripper moves a cube from about (0.35, 0) to (0.50, 0) m (Park et al.,
arXiv:2410.20092). One CubeEnv is compiled; each world is an MjData that it is pointed at in turn,
so its controller, its inverse kinematics and its observation are the benchmark's own code. Left
out are what the stock step does besides: the info dictionary three times, and the colours.

It differs from the stock task in the time limit (80 control steps, not 200) and in the reward
(1 at the first success, else 0, where the stock one is -1 per step). The time is observed.
"""

from __future__ import annotations

import warnings
from typing import Any

import mujoco
import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.sim.external.chunk_env import Executed, ExternalChunkEnv

TASK = 2
MAX_STEPS = 80
# Distance at which the cube counts as placed (m), as in the stock CubeEnv.
PLACED_M = 0.04
# The five actions are fractions of these: m, m, m, rad and shares of the gripper's opening.
JOINTS = ('effector_x', 'effector_y', 'effector_z', 'effector_yaw', 'gripper')


class OgbenchCubeEnv(ExternalChunkEnv):
    """N worlds of OGBench cube-single task 2; a chunk is H control steps of 50 ms.

    Observation: the 28 numbers of the stock env, then the share of the time limit that is over.
    Out of time is `terminated`, not `truncated`: the time is part of the observation.
    """

    def __init__(
        self,
        num_envs: int = 1,
        seed: int | None = None,
        horizon: int = 5,
        autoreset: bool = False,
        max_steps: int = MAX_STEPS,
    ) -> None:
        """Compile the model (3 s) and start an episode in each world.

        Raises UserError when OGBench is not installed.
        """
        self.cube = make_cube()
        super().__init__(
            task='cube_single',
            robot='ogbench/cube-single-task2',
            joints=JOINTS,
            observation_size=29,
            num_envs=num_envs,
            seed=seed,
            horizon=horizon,
            control_period_s=self.cube._control_timestep,
            max_steps=max_steps,
            autoreset=autoreset,
        )
        model = self.model = self.cube.model
        self._substeps = self.cube._n_steps
        self._cube_at = int(model.joint('object_joint_0').qposadr[0])
        self._target = int(self.cube._cube_target_mocap_ids[0])
        task = self.cube.task_infos[TASK - 1]
        self._start_m, self._goal_m = task['init_xyzs'][0], task['goal_xyzs'][0]
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        self._restart_all()

    def data(self, world: int) -> mujoco.MjData:
        """Return the MjData of a world, to read or to render."""
        return self._data[world]

    def advance(self, world: int, action: np.ndarray) -> bool:
        """Run one control step [A] in a world, outside any chunk; return whether it succeeded."""
        self.cube._data = data = self._data[world]
        self.cube.set_control(action)
        mujoco.mj_step(self.model, data, self._substeps)
        return self.placed(world)

    def placed(self, world: int) -> bool:
        """Say whether the cube of a world is at its target."""
        data = self._data[world]
        away = data.qpos[self._cube_at : self._cube_at + 3] - data.mocap_pos[self._target]
        return bool(np.linalg.norm(away) <= PLACED_M)

    def observe_world(self, world: int, step: int) -> np.ndarray:
        """Return the observation [29] of a world as it is after `step` control steps."""
        self._point_at(world)
        return np.append(self.cube.compute_observation(), step / self.max_steps)

    def describe(self, world: int) -> dict[str, Any]:
        """Return what the scripted oracle of the benchmark wants to know of a world."""
        self._point_at(world)
        data = self._data[world]
        return {
            **self.cube.compute_ob_info(),
            'privileged/target_block': 0,
            'privileged/target_block_pos': data.mocap_pos[self._target].copy(),
            'privileged/target_block_yaw': np.zeros(1),
        }

    def _point_at(self, world: int) -> None:
        self.cube._data = data = self._data[world]
        # The finger's contact force is part of the observation; mj_step leaves it out.
        mujoco.mj_rnePostConstraint(self.model, data)

    def _begin(self, world: int, rng: np.random.Generator) -> np.ndarray:
        # As CubeEnv.initialize_episode, without the detour over a goal picture, whose actions
        # come from a generator that nobody seeds.
        cube, data = self.cube, self._data[world]
        mujoco.mj_resetData(self.model, data)
        cube._data, cube.np_random = data, rng
        data.qpos[cube._arm_joint_ids] = cube._home_qpos
        cube.initialize_arm()
        at = data.qpos[self._cube_at : self._cube_at + 7]
        at[:3] = self._start_m
        at[:2] += rng.uniform(-0.01, 0.01, size=2)
        yaw = rng.uniform(0, 2 * np.pi)
        at[3:] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        data.mocap_pos[self._target] = self._goal_m
        data.mocap_quat[self._target] = 1, 0, 0, 0
        mujoco.mj_forward(self.model, data)
        return self.observe_world(world, 0)

    def _execute(self, actions: np.ndarray, active: np.ndarray) -> Executed:
        reward = np.zeros(len(active))
        steps = np.zeros(len(active), dtype=np.int64)
        observation = np.empty((len(active), 29))
        for row, i in enumerate(active):
            for action in actions[i, : self.max_steps - self.steps[i]]:
                steps[row] += 1
                if self.advance(i, action):
                    reward[row] = 1.0
                    self.success[i] = True
                    break
            observation[row] = self.observe_world(i, self.steps[i] + steps[row])
        late = self.steps[active] + steps >= self.max_steps
        return Executed(observation, reward, steps, ended=(reward > 0) | late)

    def _succeeded(self) -> np.ndarray:
        return self.success


def make_cube() -> Any:
    """Return a compiled stock CubeEnv of the task; UserError when OGBench is not installed."""
    with warnings.catch_warnings():
        # Without a screen glfw warns on import, and Gymnasium warns that bounds become float32.
        warnings.simplefilter('ignore')
        try:
            from ogbench.manipspace.envs.cube_env import CubeEnv
        except ImportError as error:
            raise UserError(
                f'cube_single needs OGBench ({error}): pip install "dipod_ros[bench]"'
            ) from error
        cube = CubeEnv(
            env_type='single', permute_blocks=False, visualize_info=False, reward_task_id=TASK
        )
        cube.reset(seed=0)
    return cube
