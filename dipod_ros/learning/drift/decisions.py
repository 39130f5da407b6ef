# SPDX-License-Identifier: Apache-2.0
"""A policy's own decisions to measure drift on, and what each was worth. torch, no ROS."""

from __future__ import annotations

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.critic import CriticConfig, CriticTrainer
from dipod_ros.learning.q_advantages import q_advantages
from dipod_ros.learning.q_critic import QCritic, QCriticConfig
from dipod_ros.learning.q_memory import rollout_decisions
from dipod_ros.learning.rollout import Rollout, collect_episodes
from dipod_ros.learning.seeding import numpy_rng, torch_rng
from dipod_ros.learning.vision import see_with
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.sim.vector_env import ChunkVectorEnv

# returns: what followed in the episode, luck included. q: a critic of chunks, which has no luck.
ADVANTAGES = ('returns', 'q')
# Own chunks whose mean value is the baseline; their noise would be noise of the gradients.
BASELINE_CHUNKS = 32


def own_decisions(
    policy: FlowPolicy, episodes: int, seed: int, advantages: str = 'returns'
) -> tuple[Rollout, torch.Tensor]:
    """Return half of `episodes` of the policy's own task, and their advantages [M].

    The critic is fitted to the other half, so no decision is judged by what it led to itself,
    but with `returns` by the rest of its episode (generalised advantages, arXiv 1506.02438).
    With `q` the advantage is A_Q(o, a) = Q(o, a) - mean_j Q(o, a_j), a function of state and
    chunk: right or wrong about the task, it has a policy gradient of its own, and the same
    decisions show it with far less noise. Raises UserError for other advantages.
    """
    if advantages not in ADVANTAGES:
        raise UserError(f'advantages {advantages!r} is not one of {list(ADVANTAGES)}')
    others, own = (_episodes(policy, max(1, episodes // 2), seed, part) for part in range(2))
    torch.manual_seed(seed)  # the critic's first weights
    if advantages == 'q':
        q = QCritic(policy, QCriticConfig(samples=BASELINE_CHUNKS))
        q.learn(policy, others, torch_rng(seed, 'drift-q'))
        rng = torch_rng(seed, 'drift-baseline')
        return own, q_advantages(q, policy, rollout_decisions(policy, own), rng)
    critic = CriticTrainer(policy.spec.observation_size, CriticConfig(first_sweeps=4))
    critic.learn(policy, others, torch_rng(seed, 'drift-critic'))
    return own, critic.advantages(policy, own)[0]


def _episodes(policy: FlowPolicy, count: int, seed: int, part: int) -> Rollout:
    env = ChunkVectorEnv(policy.spec.task, count, policy.spec.robot, seed=0, autoreset=False)
    see_with(env, policy)
    return collect_episodes(
        env,
        policy.act,
        policy.spec.noise_size,
        numpy_rng(seed, 'drift-noise', part),
        seed=int(numpy_rng(seed, 'drift-episodes', part).integers(2**31)),
    )
