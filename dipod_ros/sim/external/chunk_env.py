# SPDX-License-Identifier: Apache-2.0
"""Owns what every external benchmark shares: N worlds stepped by whole chunks. No ROS, no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import Stream

# A benchmark has no limits of a robot. The spec asks for finite ones; no action comes near these.
WIDE = 1e6


@dataclass(frozen=True, eq=False)
class Executed:
    """What a chunk did in the n worlds that ran it."""

    observation: np.ndarray  # [n, O], where the chunk or the episode ended
    reward: np.ndarray  # [n], summed over the control steps executed
    steps: np.ndarray  # int [n], control steps executed
    ended: np.ndarray  # bool [n]: the episode ended by itself, not for lack of time


class ExternalChunkEnv(VectorEnv):
    """N worlds of a benchmark; one step is one decision, as in `sim.vector_env.ChunkVectorEnv`.

    Action: float32 [N, H, A] in the env's own units, clipped to its bounds [-1, 1]. Observation:
    float32 [N, O], one stream named `state`. An episode may end inside a chunk: the rest of the
    chunk is then not executed, and the observation is the one at the end.

    `step` returns the reward summed over the control steps executed [N], terminated [N] and
    truncated [N], and in `info`:
        success       bool [N], of the episode that the step belongs to
        control_steps int [N], control steps simulated; 0 for a frozen world
        final_obs     float32 [N, O] (only with autoreset), the observation before the reset;
                      `_final_obs` [N] says where there was one

    Episode e of world i depends on (seed, i, e) only, as for the shipped tasks.
    """

    metadata = {'autoreset_mode': AutoresetMode.SAME_STEP, 'render_modes': []}
    # What `PolicySpec.action` must say for a policy of this env.
    action = 'raw'

    def __init__(
        self,
        *,
        task: str,
        robot: str,
        joints: Sequence[str],
        observation_size: int,
        num_envs: int,
        seed: int | None,
        horizon: int,
        control_period_s: float,
        max_steps: int,
        autoreset: bool,
    ) -> None:
        """Take the sizes; the subclass makes its worlds and then calls `_restart_all`.

        Args:
            task: name of the task, as `make_env` knows it.
            robot: what the benchmark calls the environment.
            joints: names of the A actions.
            observation_size: O.
            num_envs: number of worlds N.
            seed: of the episodes; None draws one.
            horizon: control steps per chunk, H.
            control_period_s: seconds of simulated time per control step.
            max_steps: control steps after which an episode is over.
            autoreset: begin the next episode in the step that ends one. False: a finished world
                freezes until `reset`.

        """
        if num_envs < 1 or horizon < 1:
            raise UserError(f'num_envs and horizon must be at least 1: {num_envs}, {horizon}')
        self.task = SimpleNamespace(name=task)
        self.robot = SimpleNamespace(name=robot)
        self.joints = tuple(joints)
        wide = np.full(len(self.joints), WIDE)
        self.limits = JointLimits(self.joints, -wide, wide, wide, wide)
        self.streams = (Stream('state', 'vector', observation_size, topic='state'),)
        self.num_envs = num_envs
        self.horizon = horizon
        self.control_period_s = control_period_s
        self.max_steps = max_steps
        self.autoreset = autoreset
        self.metadata = {
            **type(self).metadata,
            'autoreset_mode': AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED,
        }
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.seed = int(seed)
        self.single_observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (observation_size,), np.float32
        )
        self.single_action_space = gymnasium.spaces.Box(
            -1, 1, (horizon, len(self.joints)), np.float32
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episode = np.full(num_envs, -1, dtype=np.int64)
        self.steps = np.zeros(num_envs, dtype=np.int64)  # control steps in this episode
        self.terminated = np.zeros(num_envs, dtype=bool)
        self.truncated = np.zeros(num_envs, dtype=bool)
        self.success = np.zeros(num_envs, dtype=bool)
        self._observation = np.zeros((num_envs, observation_size), dtype=np.float32)

    @abstractmethod
    def _begin(self, world: int, rng: np.random.Generator) -> np.ndarray:
        """Start an episode that depends on `rng` alone in a world; return its observation [O]."""

    @abstractmethod
    def _execute(self, actions: np.ndarray, active: np.ndarray) -> Executed:
        """Run actions [N, H, A], within [-1, 1], in the n active worlds (indices [n]).

        `steps` counts up to this chunk; a world stops at `max_steps`.
        """

    @abstractmethod
    def _succeeded(self) -> np.ndarray:
        """Return which episodes are a success [N], once `terminated` and `truncated` are set."""

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
            self.seed = int(seed)
            self.episode[:] = -1
        self._restart(mask)
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        """Return the current observation, float32 [N, O]."""
        return self._observation.copy()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute one chunk per world; see the class for what comes back."""
        actions = np.asarray(actions, dtype=np.float64)
        shape = (self.num_envs, *self.single_action_space.shape)
        if actions.shape != shape:
            raise UserError(f'action has shape {actions.shape}, this env needs {shape}')
        active = np.flatnonzero(~(self.terminated | self.truncated))
        if not np.all(np.isfinite(actions[active])):
            raise UserError('action holds numbers that are not finite')
        done = self._execute(np.clip(actions, -1, 1), active)
        reward = np.zeros(self.num_envs)
        steps = np.zeros(self.num_envs, dtype=np.int64)
        reward[active], steps[active] = done.reward, done.steps
        self._observation[active] = done.observation
        self.steps += steps
        self.terminated[active] |= done.ended
        self.truncated |= (self.steps >= self.max_steps) & ~self.terminated
        self.success |= self._succeeded()
        terminated, truncated = self.terminated.copy(), self.truncated.copy()
        info: dict[str, Any] = {'success': self.success.copy(), 'control_steps': steps}
        if self.autoreset and (terminated | truncated).any():
            info['final_obs'], info['_final_obs'] = self.observe(), terminated | truncated
            self._restart(terminated | truncated)
        return self.observe(), reward, terminated, truncated, info

    def _restart_all(self) -> None:
        """Begin episode 0 in every world."""
        self._restart(np.ones(self.num_envs, dtype=bool))

    def _restart(self, mask: np.ndarray) -> None:
        for i in np.flatnonzero(mask):
            self.episode[i] += 1
            self.steps[i] = 0
            rng = np.random.default_rng([self.seed, int(i), int(self.episode[i])])
            self._observation[i] = self._begin(int(i), rng)
        for flags in (self.terminated, self.truncated, self.success):
            flags[mask] = False
