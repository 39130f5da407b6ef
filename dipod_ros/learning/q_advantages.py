# SPDX-License-Identifier: Apache-2.0
"""What an off-policy critic adds to a policy-gradient update. torch, no ROS.

A rollout says of each state what one chunk led to, once; Q compares chunks that were never
executed:

    A_Q(o, a) = Q(o, a) - mean_j Q(o, a_j),    a_j ~ pi

It joins the update in two ways. Executed decisions get the sum of both advantages, each divided by
its root mean square. Imagined ones, own chunks in states that were visited before, stand beside
them in the batch with A_Q alone: the policy gradient over all of the policy's actions rather than
the executed one (Q-Prop, arXiv 1611.02247, and expected policy gradients, arXiv 1706.05374,
estimated by samples).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dipod_ros.learning.algorithms.base import Algorithm, Batch, autocast, root_mean_square
from dipod_ros.learning.q_critic import QCritic, own_chunks
from dipod_ros.learning.q_memory import Decisions, rollout_decisions
from dipod_ros.learning.rollout import Rollout
from dipod_ros.policy.flow import FlowPolicy


def with_q_advantages(
    q: QCritic,
    batch: Batch,
    rollout: Rollout,
    policy: FlowPolicy,
    algorithm: Algorithm,
    generator: torch.Generator,
) -> Batch:
    """Return a batch whose advantages count A_Q as well, and imagined decisions after it.

    `batch` holds the decisions of `rollout`, with what `algorithm` remembers of them.
    """
    config = q.config
    executed = q_advantages(q, policy, rollout_decisions(policy, rollout), generator)
    advantages = _unit(batch.advantages) + config.weight * _unit(executed)
    batch = replace(batch, advantages=_unit(advantages))
    if config.imagined == 0:
        return batch
    states = q.own[torch.randperm(len(q.own), generator=generator)[: config.imagined]]
    o, clock = states.observations, states.clock
    chunks, noise = own_chunks(policy, o, config.samples, generator)
    advantages = q.values(o, clock, chunks[0]) - _baseline(q, o, clock, chunks)
    more = Batch(o, chunks[0], noise[0], _unit(advantages), {})
    with autocast(algorithm.config.precision), torch.no_grad():
        more = replace(more, memory=algorithm.remember(policy, more, generator))
    return _join(batch, more)


def q_advantages(
    q: QCritic, policy: FlowPolicy, decisions: Decisions, generator: torch.Generator
) -> torch.Tensor:
    """Return A_Q [M] of decisions, over as many own chunks as `q.config.samples` says."""
    o, clock = decisions.observations, decisions.clock
    chunks, _ = own_chunks(policy, o, q.config.samples, generator)
    return q.values(o, clock, decisions.actions) - _baseline(q, o, clock, chunks)


def _baseline(
    q: QCritic, o: torch.Tensor, clock: torch.Tensor, chunks: torch.Tensor
) -> torch.Tensor:
    return torch.stack([q.values(o, clock, a) for a in chunks]).mean(0)


def _unit(advantages: torch.Tensor) -> torch.Tensor:
    return advantages / (root_mean_square(advantages) + 1e-8)


def _join(first: Batch, second: Batch) -> Batch:
    names = ('observations', 'actions', 'noise', 'advantages')
    return Batch(
        *(torch.cat([getattr(first, n), getattr(second, n)]) for n in names),
        {n: torch.cat([v, second.memory[n]]) for n, v in first.memory.items()},
    )
