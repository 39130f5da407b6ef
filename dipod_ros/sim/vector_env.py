# SPDX-License-Identifier: Apache-2.0
"""Owns the worlds as a vectorised Gymnasium env whose action is a whole chunk. No ROS, no torch.

A step is what the policy server and the controller do with a decision: raw joint increments are
summed from the last control point, go through the limit filter, become B-spline setpoints, and the
physics runs for H control periods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import LimitFilter, spline_setpoints
from dipod_ros.sim.episodes import Episodes
from dipod_ros.sim.pictures import Encode, WorldPictures
from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.tasks.registry import make_task, task_names


class ChunkVectorEnv(VectorEnv):
    """N worlds of one task; one step is one decision.

    Action: float32 [N, H, A], raw joint increments (rad per control step), not bounded: the limit
    filter makes them feasible, as it does on a robot. Observation: float32 [N, O], the task's
    streams side by side in the order of `streams`. Image streams are NaN until `see_with` was given
    the encoders that make their features; `pictures` has what they show.

    `step` returns reward, terminated and truncated (always False) as [N], and in `info`:
        success      bool [N], of the episode that the step belongs to
        control_steps int [N], control steps simulated; 0 for a frozen world
        clamp_rad    float [N], largest distance between what was asked and what was commanded
        executed     float [N, H, A], the control points commanded (rad); NaN for a frozen world
        final_obs    float32 [N, O] (only with autoreset), the observation before the reset;
                     `_final_obs` [N] says where there was one
    """

    metadata = {'autoreset_mode': AutoresetMode.SAME_STEP, 'render_modes': []}

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        robot: RobotConfig | str = 'arm7',
        seed: int | None = None,
        autoreset: bool = True,
        threads: int = 1,
    ) -> None:
        """Compile the worlds.

        Args:
            task: name of a task.
            num_envs: number of worlds N.
            robot: a config, a shipped name or the path of a robot file.
            seed: episode e of world i depends on (seed, i, e) only; None draws a seed.
            autoreset: begin the next episode in the step that ends one. False: a finished world
                freezes (nothing is simulated, reward 0, still terminated) until `reset`.
            threads: physics threads.

        Raises UserError for an unknown task or a robot that does not fit.

        """
        self.task = make_task(task, robot)
        self.num_envs = num_envs
        self.autoreset = autoreset
        self.metadata = {
            **type(self).metadata,
            'autoreset_mode': AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED,
        }
        self.robot = self.task.world.robot
        self.streams = self.task.streams()
        self.joints = self.robot.joints
        self.limits = self.robot.limits
        self.control_period_s = self.robot.control_period_s
        self.horizon = self.task.horizon
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.episodes = Episodes(self.task, num_envs, seed, threads)
        self._pictures = WorldPictures(self.episodes)
        # Called after each control period of a step: a camera sees more than the ends of chunks.
        self.on_period: Callable[[], None] | None = None
        self._filter = LimitFilter(self.limits, self.control_period_s)
        self._before = np.zeros((num_envs, self.robot.size))
        self._hold(np.ones(num_envs, dtype=bool), first=True)
        size = sum(s.size for s in self.streams)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (self.horizon, self.robot.size), np.float32
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def command(self) -> np.ndarray:
        """Last control point [N, A] (rad), which the next chunk starts from."""
        return self._filter.position.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode in every world; with a seed, episode 0 of that seed.

        `options['reset_mask']` (bool [N]) restricts this to some worlds, as Gymnasium has it.
        """
        mask = (options or {}).get('reset_mask')
        mask = np.ones(self.num_envs, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if seed is not None:
            if not mask.all():
                raise UserError('reset with a seed restarts every world: leave reset_mask out')
            self.episodes.restart(seed)
        else:
            self.episodes.begin(mask)
        self._hold(mask)
        return self.observe(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute one chunk per world; see the class for what comes back."""
        actions = np.asarray(actions, dtype=np.float64)
        shape = (self.num_envs, self.horizon, self.robot.size)
        if actions.shape != shape:
            raise UserError(f'action has shape {actions.shape}, this env needs {shape}')
        active = ~self.episodes.done
        points, clamp = self._command(actions, active)
        setpoints = self._setpoints(points)
        for k in range(self.horizon):
            self.episodes.advance(setpoints[:, k], active)
            if self.on_period is not None:
                self.on_period()
        outcome = self.episodes.outcome()
        info: dict[str, Any] = {
            'success': outcome.success,
            'control_steps': np.where(active, self.horizon, 0),
            'clamp_rad': clamp,
            'executed': np.where(active[:, None, None], points, np.nan),
        }
        observation = self.observe()
        if self.autoreset and outcome.terminated.any():
            info['final_obs'], info['_final_obs'] = observation, outcome.terminated
            self.episodes.begin(outcome.terminated)
            self._hold(outcome.terminated)
            observation = self.observe()
        return (
            observation,
            outcome.reward,
            outcome.terminated,
            np.zeros(self.num_envs, dtype=bool),
            info,
        )

    def see_with(self, encoders: Mapping[str, Encode]) -> None:
        """Make the features of image streams with these encoders, by stream name."""
        self._pictures.use(encoders)

    def pictures(self) -> dict[str, np.ndarray]:
        """Return what the image streams show now, uint8 [N, H, W, C] by name. Raises NoGL."""
        return self._pictures.pictures()

    def close_extras(self, **_: Any) -> None:
        """Release what draws pictures."""
        self._pictures.close()

    def observe(self) -> np.ndarray:
        """Return the current observation, float32 [N, O]."""
        points = self.episodes.points()
        sources = {
            'joint_position': lambda s: self.episodes.worlds.joint_position,
            'joint_velocity': lambda s: self.episodes.worlds.joint_velocity,
            'command': lambda s: self._filter.position,
            'point': lambda s: points[s.name],
            'image': lambda s: self._pictures.features(s.name),
        }
        parts = [sources[s.source](s) for s in self.streams]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        """Return a copy of everything that the future depends on, for `set_state`."""
        return {
            'episodes': self.episodes.get_state(),
            'position': self._filter.position.copy(),
            'velocity': self._filter.velocity.copy(),
            'before': self._before.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned; the env must have as many worlds."""
        self.episodes.set_state(state['episodes'])
        self._filter.position = state['position'].copy()
        self._filter.velocity = state['velocity'].copy()
        self._before = state['before'].copy()

    def _hold(self, mask: np.ndarray, first: bool = False) -> None:
        """Put the command of the marked worlds at rest where their arm is."""
        start = self.episodes.worlds.joint_position
        self._filter.reset(start, None if first else mask)
        self._before = np.where(mask[:, None], self._filter.position, self._before)

    def _command(self, actions: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return control points [N, H, A] and the largest clamp [N]; frozen worlds hold."""
        targets = self._filter.position[:, None] + np.cumsum(actions, axis=1)
        held = self._filter.position.copy(), self._filter.velocity.copy()
        points = np.empty_like(targets)
        clamp = np.zeros(self.num_envs)
        previous = self._filter.position.copy()
        for k in range(self.horizon):
            points[:, k] = self._filter.step(targets[:, k])
            clamp = np.maximum(clamp, self._filter.last_clamp)
        self._last = np.stack([self._before, previous], axis=1)
        self._before = points[:, -2].copy() if self.horizon > 1 else previous
        if not active.all():
            frozen = ~active
            self._filter.position[frozen], self._filter.velocity[frozen] = (
                held[0][frozen],
                held[1][frozen],
            )
            clamp[frozen] = 0
        return points, clamp

    def _setpoints(self, points: np.ndarray) -> np.ndarray:
        """Return the spline sampled at every physics step, [N, H, substeps, A]."""
        substeps = self.task.world.substeps
        flat = spline_setpoints(self._last, points, substeps)
        return flat.reshape(self.num_envs, self.horizon, substeps, self.robot.size)


def register() -> None:
    """Make every task known to `gymnasium.make_vec` as `dipod_ros/<task>-v0`."""
    for name in task_names():
        gymnasium.register(
            f'dipod_ros/{name}-v0',
            vector_entry_point='dipod_ros.sim.vector_env:ChunkVectorEnv',
            kwargs={'task': name},
        )


register()
