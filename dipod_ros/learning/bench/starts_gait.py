# SPDX-License-Identifier: Apache-2.0
"""Owns the demonstrations of a gait: a Gaussian PPO expert, stopped early. torch, SB3.

PPO is Stable-Baselines3's (Raffin et al., JMLR 22, 2021; Schulman et al., arXiv:1707.06347), with
its defaults but for eight worlds, normalised observations and rewards, and 512 steps per world and
update. The expert itself is not kept: only what it did is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import numpy_rng
from dipod_ros.sim.demonstrations import Demonstrations
from dipod_ros.sim.external.gymnasium_chunks import GymnasiumChunkEnv

WORLDS = 8
STEPS_PER_UPDATE = 512  # per world

# (observations [N, O], generator) -> actions [N, A], sampled
Expert = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class GaitRecipe:
    """How the demonstrations of a gait are made."""

    expert_steps: int  # env steps of PPO; few, so that the gait is mediocre
    episodes: int = 200

    def __post_init__(self) -> None:
        if self.expert_steps < 1 or self.episodes < 1:
            raise UserError('expert_steps and episodes must be at least 1')


def train_expert(env_id: str, steps: int, seed: int = 0) -> Expert:
    """Train PPO for about `steps` env steps (whole updates) and return its stochastic policy.

    Raises UserError when Stable-Baselines3 or what Gymnasium's MuJoCo envs need is not installed.
    """
    try:
        import imageio  # noqa: F401  Gymnasium's MuJoCo envs import it
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize
    except ImportError as error:
        raise UserError(
            f'an expert gait needs Stable-Baselines3 ({error}): pip install "dipod_ros[bench]"'
        ) from error
    worlds = VecNormalize(make_vec_env(env_id, n_envs=WORLDS, seed=seed))
    model = PPO('MlpPolicy', worlds, n_steps=STEPS_PER_UPDATE, seed=seed, device='cpu')
    model.learn(steps)
    worlds.close()
    mean, std = worlds.obs_rms.mean.copy(), np.sqrt(worlds.obs_rms.var + worlds.epsilon)
    bound = worlds.clip_obs

    def act(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scaled = np.clip((observations - mean) / std, -bound, bound).astype(np.float32)
        with torch.no_grad():
            normal = model.policy.get_distribution(torch.from_numpy(scaled)).distribution
        noise = rng.standard_normal(normal.mean.shape)
        return np.clip(normal.mean.numpy() + normal.stddev.numpy() * noise, -1, 1)

    return act


def collect_gait(
    env_id: str, expert: Expert, episodes: int, horizon: int, seed: int = 0
) -> tuple[Demonstrations, np.ndarray]:
    """Run whole episodes of an expert that decides every step, and cut them into chunks.

    Returns the demonstrations (actions [M, horizon, A] as executed, within the bounds; what is
    left of an episode after its last whole chunk is dropped) and the returns [episodes].
    """
    env = GymnasiumChunkEnv(env_id, episodes, seed, horizon=1)
    rng = numpy_rng(seed, 'gait-demonstrations')
    observation, alive = env.observe(), np.ones(episodes, dtype=bool)
    observations, actions = [], []
    lengths, returns = np.zeros(episodes, dtype=np.int64), np.zeros(episodes)
    while alive.any():
        action = np.zeros((episodes, len(env.joints)), dtype=np.float32)
        action[alive] = expert(observation[alive], rng)
        observations.append(observation)
        actions.append(action)
        observation, reward, terminated, truncated, info = env.step(action[:, None])
        returns += reward
        lengths += info['control_steps']
        alive &= ~(terminated | truncated)
    seen, done = np.stack(observations, axis=1), np.stack(actions, axis=1)  # [episodes, T, ...]
    rows_o, rows_a, owners = [], [], []
    for e, length in enumerate(lengths):
        count = length // horizon
        rows_o.append(seen[e, : count * horizon : horizon])
        rows_a.append(done[e, : count * horizon].reshape(count, horizon, -1))
        owners.append(np.full(count, e))
    demonstrations = Demonstrations(
        observations=np.concatenate(rows_o),
        actions=np.concatenate(rows_a),
        episodes=np.concatenate(owners),
        success=env.success.copy(),
    )
    return demonstrations, returns
