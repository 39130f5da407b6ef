# SPDX-License-Identifier: Apache-2.0
"""All drift instruments for one policy, on decisions of its own. torch, no ROS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.drift.alignment import Alignment, gradient_alignment
from dipod_ros.learning.drift.bound import elbo
from dipod_ros.learning.drift.likelihood import executed_log_likelihood
from dipod_ros.learning.health import elbo_gap_nats, own_sample_statistics
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy.flow import FlowPolicy

# Largest difference (normalised) between a recorded chunk and the one that its noise gives.
SAME_CHUNK = 1e-3


@dataclass(frozen=True)
class GapEstimate:
    """Mean of log pi_K(a|o) - ELBO(a|o) over own actions, in nats, with its standard error."""

    mean: float
    error: float
    actions: int


@dataclass(frozen=True)
class DriftReport:
    """What was measured; nats, of normalised actions. A number that could not be had is NaN.

    gap: log pi_K(a|o) - ELBO(a|o) of the executed sampler, over own decisions; `gap_positive` and
    `gap_negative` over those with A > 0 and A < 0: where the second is larger, the bound of bad
    actions was pushed down without their likelihood. `gap_q05` and `gap_q95` contain the noise of
    the bound of one action, `elbo_noise`. `entropy` is - mean log pi_K. `g1_gap` is the
    likelihood-free estimate from below of `health.elbo_gap_nats`. `action_std` is per state.
    """

    sampler: str
    decisions: int
    gap_mean: float
    gap_error: float
    gap_positive: float
    gap_negative: float
    gap_q05: float
    gap_q95: float
    elbo_noise: float
    elbo_mean: float
    entropy: float
    g1_gap: float
    action_std: float
    alignment: Alignment | None = None

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return asdict(self)


def executed_gap(
    policy: FlowPolicy,
    observations: torch.Tensor,
    generator: torch.Generator,
    *,
    actions: int = 256,
    samples: int = 128,
    between: Callable[[], None] | None = None,
) -> GapEstimate:
    """Measure the gap on fresh own actions at normalised observations [B, O].

    Nothing is fitted, so unlike `health.elbo_gap_nats` it estimates the gap itself, not from below,
    at about a second for 256 actions of 35 dimensions by an MLP, and minutes by a transformer.
    Deterministic samplers only. `between` is called between the parts of the work; what it raises
    ends it.
    """
    index = torch.randint(len(observations), (actions,), generator=generator)
    noise = torch.randn(actions, policy.spec.noise_size, generator=generator)
    own, log_prob = executed_log_likelihood(policy, observations[index], noise, between)
    with torch.no_grad():
        gap = log_prob - elbo(policy, observations[index], own, samples, generator)
    return GapEstimate(float(gap.mean()), _error(gap), actions)


def measure_drift(
    policy: FlowPolicy,
    rollout: Rollout,
    advantages: torch.Tensor,
    *,
    decisions: int = 512,
    gradient_decisions: int | None = None,
    samples: int = 128,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> DriftReport:
    """Measure both drifts of a policy on its own rollout.

    Args:
        policy: the one that acted in `rollout`, with the sampler that it acted with.
        rollout: whole episodes; raw observations, noise and chunks are used.
        advantages: [M], one per decision.
        decisions: at most so many decisions, drawn at random.
        gradient_decisions: as many of them for the gradients (None: all; 0: leave them out).
        samples: (t, eps) per action for the bound; even.
        seed: decides everything random here.
        progress: called with the name of each stage before it begins.

    Raises UserError for advantages that are not finite or not one per decision, for a rollout of
    another policy, and for a sampler that has no exact likelihood.

    """
    _check(policy, rollout, advantages, decisions)
    pick = torch.randperm(len(rollout), generator=torch_rng(seed, 'drift-decisions'))[:decisions]
    all_observations = policy.normalizer.observation(torch.from_numpy(rollout.observations))
    o, advantage = all_observations[pick], advantages[pick]
    progress('likelihood')
    actions, log_prob = executed_log_likelihood(policy, o, torch.from_numpy(rollout.noise)[pick])
    _check_actions(policy, actions, rollout.chunks[pick.numpy()])
    progress('bound')
    rng = torch_rng(seed, 'drift-bound')
    with torch.no_grad():
        first, second = (elbo(policy, o, actions, samples, rng) for _ in range(2))
    bound = (first + second) / 2
    gap = log_prob - bound
    progress('G1')
    g1 = elbo_gap_nats(policy, all_observations, torch_rng(seed, 'drift-g1'))
    states = all_observations[torch.randperm(len(rollout), generator=rng)[:64]]
    _, std = own_sample_statistics(policy, states, 8, rng)
    alignment = None
    count = len(pick) if gradient_decisions is None else min(gradient_decisions, len(pick))
    if count:
        progress('gradients')
        episode = torch.from_numpy(np.cumsum(rollout.last) - rollout.last)[pick[:count]]
        alignment = gradient_alignment(
            policy, o[:count], actions[:count], advantage[:count],
            torch_rng(seed, 'drift-gradients'), episodes=episode,
        )  # fmt: skip
    return DriftReport(
        sampler=str(policy.spec.sampler),
        decisions=len(pick),
        gap_mean=float(gap.mean()),
        gap_error=_error(gap),
        gap_positive=_mean(gap[advantage > 0]),
        gap_negative=_mean(gap[advantage < 0]),
        gap_q05=float(gap.quantile(0.05)),
        gap_q95=float(gap.quantile(0.95)),
        # Of the mean of two estimates, from their difference.
        elbo_noise=float((first - second).square().mean().sqrt() / 2),
        elbo_mean=float(bound.mean()),
        entropy=-float(log_prob.mean()),
        g1_gap=g1,
        action_std=std,
        alignment=alignment,
    )


def _check(policy: FlowPolicy, rollout: Rollout, advantages: torch.Tensor, decisions: int) -> None:
    if decisions < 1:
        raise UserError(f'decisions must be at least 1, got {decisions}')
    if rollout.noise.shape[1:] != (policy.spec.noise_size,):
        raise UserError(
            f'the rollout holds noise of size {list(rollout.noise.shape[1:])}, the policy takes '
            f'{policy.spec.noise_size}: it was made by another policy or sampler'
        )
    if advantages.shape != (len(rollout),):
        raise UserError(
            f'advantages must have shape [{len(rollout)}], got {list(advantages.shape)}'
        )
    if not torch.isfinite(advantages).all():
        raise UserError('advantages hold numbers that are not finite; check rewards and critic')


def _check_actions(policy: FlowPolicy, actions: torch.Tensor, chunks: np.ndarray) -> None:
    recorded = policy.normalizer.action(torch.from_numpy(chunks).flatten(1))
    worst = float((recorded - actions).abs().max())
    if not worst <= SAME_CHUNK:
        raise UserError(
            f'the recorded chunks differ by up to {worst:.2g} (normalised) from what this policy '
            'makes of their noise: the rollout was made by another policy or sampler'
        )


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def _error(values: torch.Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
