# SPDX-License-Identifier: Apache-2.0
"""DPPO: PPO on the denoising chain, whose steps have an exact Gaussian likelihood. torch; one file.

Diffusion Policy Policy Optimization (arXiv 2409.00588), on a flow. Sampling is itself a decision
process of K steps inside each step of the environment (section 4, "two-layer MDP"):

    x_{k+1} ~ N(x_k - v_theta(x_k, t_k; o) / K, noise_std^2 I)      (the `chain` sampler)

The start x_0 is part of the environment, x_K is executed, and the reward comes at the last step.
Each denoising step is an action of its own, with its own PPO ratio:

    rho_k  = exp(log p_theta(x_{k+1} | x_k, o) - log p_old(x_{k+1} | x_k, o))
    L      = -mean_{decisions, steps} min(rho_k A_k, clip(rho_k, 1 - c_k, 1 + c_k) A_k)
    A_k    = gamma^j A(o, x_K), j = K-1-k steps left: early steps decide less
    c_k    rises exponentially from clip_base at the first trained step to clip at the last (App. B)

As in the released code, a log-probability is the *mean* over the dimensions of the chunk, each
clamped to [-5, 2], so that clip does not depend on the size of the chunk; the std inside it has a
floor. Unlike there, the noise of a step is not clipped at three standard deviations. With
fine_tuned_steps K' < K only the last K' steps learn: the steps before them are taken by a frozen
copy of the network that learning started from.

The chain is not the flow's own sampler: v_theta stops being the velocity field of its actions.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import (
    Algorithm,
    Batch,
    UpdateConfig,
    clip_fraction,
    clipped_surrogate,
)
from dipod_ros.policy import samplers
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.networks import time_features
from dipod_ros.policy.spec import SamplerSpec

LOG_PROB_MIN, LOG_PROB_MAX = -5.0, 2.0
CLIP_RATE = 3.0  # of the exponential between clip_base and clip


@dataclass(frozen=True)
class DppoConfig(UpdateConfig):
    """Hyper-parameters of the update; the defaults suit 64 episodes per update on a robot."""

    # 40 epochs at 3e-4, as DiPOD takes them, destroy the policy: the ratio here is that of a mean
    # over dimensions, and clip lets the whole chunk's move D times as far.
    epochs: int = 16
    learning_rate: float = 1e-4
    steps: int = 4  # of the chain, K
    # Of the chain, in normalised action units: it is all the exploration there is after the start.
    noise_std: float = 0.15
    # Smallest std that a log-probability is computed with: a narrow Gaussian makes wild ratios.
    log_prob_std_min: float = 0.1
    fine_tuned_steps: int = 0  # the last K' steps; 0 is all
    clip: float = 0.02  # at the last step
    clip_base: float = 0.02  # at the first step that learns; less than clip learned no better
    denoising_discount: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero('log_prob_std_min', 'clip', 'clip_base')
        # Raises for numbers that make no chain.
        SamplerSpec('chain', self.steps, noise_std=self.noise_std)
        if not 0 <= self.fine_tuned_steps <= self.steps:
            raise UserError(
                f'fine_tuned_steps must be within 0..{self.steps} (steps), '
                f'got {self.fine_tuned_steps}'
            )
        if not 0 < self.denoising_discount <= 1:
            raise UserError(
                f'denoising_discount must be above 0 and at most 1, got {self.denoising_discount}'
            )

    @property
    def trained_steps(self) -> int:
        """How many steps at the end of the chain learn, K'."""
        return self.fine_tuned_steps or self.steps

    def build(self) -> Dppo:
        """Return the method."""
        return Dppo(self)


def log_prob_of_step(
    following: torch.Tensor, mean: torch.Tensor, std: float | torch.Tensor
) -> torch.Tensor:
    """Return log N(following; mean, std^2), clamped per dimension and averaged over them.

    Args:
        following: where the step led [..., D].
        mean: where the policy meant to go [..., D].
        std: of the step, one number or [..., D].

    """
    std = torch.as_tensor(std, dtype=mean.dtype)
    z = (following - mean) / std
    each = -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return each.clamp(LOG_PROB_MIN, LOG_PROB_MAX).mean(-1)


def clips(config: DppoConfig) -> torch.Tensor:
    """Return the clip c_k of each trained step [K'], the last one last (arXiv 2409.00588, App. B).

    c = clip_base + (clip - clip_base) (e^{3 s} - 1) / (e^3 - 1), s from 0 to 1 over the steps.
    """
    # A single step is the last one.
    s = torch.linspace(0, 1, config.trained_steps) if config.trained_steps > 1 else torch.ones(1)
    share = torch.expm1(CLIP_RATE * s) / math.expm1(CLIP_RATE)
    return config.clip_base + (config.clip - config.clip_base) * share


def discounts(config: DppoConfig) -> torch.Tensor:
    """Return the weight gamma^j of the advantage at each trained step [K'], j steps left."""
    left = torch.arange(config.trained_steps - 1, -1, -1)
    return config.denoising_discount**left


def dppo_loss(
    log_prob: torch.Tensor,
    log_prob_old: torch.Tensor,
    advantages: torch.Tensor,
    config: DppoConfig,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the DPPO loss of one minibatch and what it says about the update.

    The clipped surrogate over decisions and denoising steps, with the advantage discounted per step
    and a clip for each (arXiv 2409.00588, section 4 and App. B).

    Args:
        log_prob: of the trained steps under the present policy [B, K'], with gradient.
        log_prob_old: under the policy that acted [B, K'].
        advantages: normalised advantages of the decisions [B].
        config: clip and discount.

    """
    rho = (log_prob - log_prob_old).exp()
    a = advantages[:, None] * discounts(config)
    clip = clips(config)
    loss = -clipped_surrogate(rho, a, clip).mean()
    stats = {
        'clip_fraction': clip_fraction(rho, a, clip),
        'ratio_mean': float(rho.detach().mean()),
        'log_prob': float(log_prob.detach().mean()),
    }
    return loss, stats


def chain_states(
    policy: FlowPolicy, observations: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chain that `noise` [M, N] makes: x_k [M, K, D] and x_{k+1} [M, K, D].

    In float32 whatever the precision of learning, for these are the states that were visited. The
    last of x_{k+1} is the action. Raises UserError for the noise of another sampler.
    """
    if noise.shape[-1] != policy.spec.noise_size:
        raise UserError(
            f'the rollout holds {noise.shape[-1]} numbers of noise per decision, the chain '
            f'{policy.spec.sampler} needs {policy.spec.noise_size}: act with the policy that learns'
        )
    visited: list[torch.Tensor] = []

    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        visited.append(x)
        return policy.velocity(x, torch.full((len(x),), t), observations)

    with torch.autocast('cpu', enabled=False):
        action = samplers.sample(field, noise, policy.spec.sampler)
    return torch.stack(visited, 1), torch.stack([*visited[1:], action], 1)


class LateFlow(FlowPolicy):
    """A flow whose first steps are taken by a frozen copy of the network it started from."""

    no_checkpoint: ClassVar[str] = (
        'a policy of two networks has no checkpoint: set fine_tuned_steps to 0, or distil a '
        'student of it'
    )

    def __init__(self, flow: FlowPolicy, trained_steps: int) -> None:
        """Take a flow with a chain sampler and how many steps at its end `net` takes."""
        super().__init__(flow.spec)
        self.load_state_dict(flow.state_dict())
        self.encoder_weights = flow.encoder_weights
        self.start_net = copy.deepcopy(self.net)
        # Between the last time of the frozen network and the first of the other one.
        self.boundary = (trained_steps + 0.5) / flow.spec.sampler.steps

    def velocity(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Return v [B, D]; of the frozen network where t [B] is early in the chain (near 1)."""
        early = t > self.boundary
        if not early.any():
            return super().velocity(x, t, observation)
        start = self.start_net(x, time_features(t), observation)
        if early.all():
            return start
        return torch.where(early[:, None], start, super().velocity(x, t, observation))

    def sample(
        self,
        observation: torch.Tensor,
        noise: torch.Tensor,
        sampler: SamplerSpec | None = None,
    ) -> torch.Tensor:
        """Return normalised actions [B, D]; see FlowPolicy.sample."""

        def field(x: torch.Tensor, t: float) -> torch.Tensor:
            return self.velocity(x, x.new_full((len(x),), t), observation)

        return samplers.sample(field, noise, sampler or self.spec.sampler)

    def save(self, *_: Any, **__: Any) -> NoReturn:
        """Raise UserError: a checkpoint holds one network."""
        raise UserError(self.no_checkpoint)


class Dppo(Algorithm):
    """PPO on the steps of the denoising chain (arXiv 2409.00588)."""

    keeps_flow: ClassVar[bool] = False
    config: DppoConfig

    def start(self, policy: FlowPolicy) -> FlowPolicy:
        """Return a copy that learns and acts by the noisy chain."""
        config = self.config
        sampler = SamplerSpec('chain', config.steps, noise_std=config.noise_std)
        chain = policy.with_sampler(sampler)
        if config.trained_steps < config.steps:
            chain = LateFlow(chain, config.trained_steps)
        chain = super().start(chain)
        if isinstance(chain, LateFlow):
            chain.start_net.requires_grad_(False)
        return chain

    def remember(
        self, behaviour: FlowPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return the trained steps: x_k and x_{k+1} [M, K', D], log-probabilities [M, K']."""
        trained = self.config.trained_steps
        x, following = chain_states(behaviour, batch.observations, batch.noise)
        x, following = x[:, -trained:], following[:, -trained:]
        old = self._log_prob(behaviour, batch.observations, x, following)
        return {'x': x, 'following': following, 'log_prob_old': old}

    def loss(self, policy: FlowPolicy, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch."""
        memory = batch.memory
        log_prob = self._log_prob(policy, batch.observations, memory['x'], memory['following'])
        return dppo_loss(log_prob, memory['log_prob_old'], batch.advantages, self.config)

    def _log_prob(
        self, policy: FlowPolicy, o: torch.Tensor, x: torch.Tensor, following: torch.Tensor
    ) -> torch.Tensor:
        count, trained, dim = x.shape
        t = torch.tensor(samplers.evaluation_times(policy.spec.sampler)[-trained:])
        v = policy.velocity(
            x.reshape(-1, dim), t.repeat(count), o.repeat_interleave(trained, 0)
        ).reshape(x.shape)
        std = max(self.config.noise_std, self.config.log_prob_std_min)
        return log_prob_of_step(following, x - v.to(x.dtype) / self.config.steps, std)
