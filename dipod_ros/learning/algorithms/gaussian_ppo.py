# SPDX-License-Identifier: Apache-2.0
"""PPO with a Gaussian policy: what the flow is compared with. torch; one file.

    a ~ N(mu_theta(o), diag(sigma^2)),  sigma the same in all states    (arXiv 1707.06347, sec. 6.1)

mu has the flow's own network, asked at x = 0, t = 1, where a flow's velocity is minus the mean of
its actions: v(x, 1; o) = x - E[a | o]. So both have the same size (but for the D of log sigma), and
a flow's weights with the sign of the output changed are already close to its mean. The density is
the joint one of the whole chunk, and the ratio is not normalised: plain PPO.

A Gaussian has one mode. Started from a flow of several, it begins between them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import (
    Algorithm,
    Batch,
    UpdateConfig,
    bounded_log_ratio,
    clip_fraction,
    clipped_surrogate,
)
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy import samplers
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.networks import time_features
from dipod_ros.policy.spec import SamplerSpec

log = logging.getLogger(__name__)

# Against overflow of exp() alone; a ratio this large is far outside any clip.
LOG_RATIO_MAX = 10.0


@dataclass(frozen=True)
class GaussianPpoConfig(UpdateConfig):
    """Hyper-parameters of the update; the defaults suit 64 episodes per update on a robot."""

    # The joint ratio of a chunk is sensitive: 40 epochs at 3e-4 end all success for good.
    epochs: int = 10
    learning_rate: float = 1e-4
    clip: float = 0.2
    entropy_bonus: float = 0.0  # per nat of the entropy of a chunk

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero('clip')
        if not self.entropy_bonus >= 0:
            raise UserError(f'entropy_bonus must not be negative, got {self.entropy_bonus}')

    def build(self) -> GaussianPpo:
        """Return the method."""
        return GaussianPpo(self)


def gaussian_ppo_loss(
    log_prob: torch.Tensor,
    log_prob_old: torch.Tensor,
    entropy: torch.Tensor,
    advantages: torch.Tensor,
    config: GaussianPpoConfig,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of one minibatch and what it says about the update.

    Args:
        log_prob: under the present policy [B], with gradient.
        log_prob_old: under the policy that acted [B].
        entropy: of the present policy [].
        advantages: normalised advantages [B].
        config: clip and entropy bonus.

    """
    rho = bounded_log_ratio(log_prob - log_prob_old, LOG_RATIO_MAX).exp()
    loss = -clipped_surrogate(rho, advantages, config.clip).mean() - config.entropy_bonus * entropy
    stats = {
        'clip_fraction': clip_fraction(rho, advantages, config.clip),
        'ratio_mean': float(rho.detach().mean()),
        'entropy': float(entropy.detach()),
    }
    return loss, stats


class GaussianPolicy(FlowPolicy):
    """A Gaussian over chunks that can be used wherever a flow policy is."""

    no_checkpoint: ClassVar[str] = (
        'a Gaussian policy is for comparison and has no checkpoint: learn with a flow method '
        'to get a policy that can be served'
    )

    def __init__(self, flow: FlowPolicy) -> None:
        """Take a flow's spec, normaliser and weights: about its mean action, with a std of 1."""
        super().__init__(replace(flow.spec, sampler=SamplerSpec('euler', 1)))
        self.load_state_dict(flow.state_dict())
        self.encoder_weights = flow.encoder_weights
        with torch.no_grad():
            self.net.output.weight.neg_()
            self.net.output.bias.neg_()
        self.log_std = nn.Parameter(torch.zeros(self.spec.action_size))

    def mean(self, observation: torch.Tensor) -> torch.Tensor:
        """Return mu [B, D] for normalised observations [B, O]."""
        count = len(observation)
        x = observation.new_zeros(count, self.spec.action_size)
        return self.net(x, time_features(observation.new_ones(count)), observation).to(x.dtype)

    def log_prob(self, action: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Return the log-density [B] of normalised actions [B, D]."""
        z = (action - self.mean(observation)) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def velocity(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Return the exact velocity field of the Gaussian, v(x, t; o) = E[eps - a | x_t = x].

        With r = x - (1-t) mu and var = (1-t)^2 sigma^2 + t^2 it is
        v = (t - (1-t) sigma^2) / var * r - mu, so everything that asks a flow how well it fits its
        own actions can ask a Gaussian too.
        """
        t, mean, variance = t[:, None], self.mean(observation), torch.exp(2 * self.log_std)
        total = (1 - t).square() * variance + t.square()
        return (t - (1 - t) * variance) / total * (x - (1 - t) * mean) - mean

    def sample(
        self,
        observation: torch.Tensor,
        noise: torch.Tensor,
        sampler: SamplerSpec | None = None,
    ) -> torch.Tensor:
        """Return normalised actions mu + sigma * noise [B, D]; see FlowPolicy.sample."""
        if sampler is None:
            return self.mean(observation) + torch.exp(self.log_std) * noise

        def field(x: torch.Tensor, t: float) -> torch.Tensor:
            return self.velocity(x, x.new_full((len(x),), t), observation)

        return samplers.sample(field, noise, sampler)

    def save(self, *_: Any, **__: Any) -> NoReturn:
        """Raise UserError: a checkpoint is a flow."""
        raise UserError(self.no_checkpoint)


def gaussian_start(
    flow: FlowPolicy,
    observations: torch.Tensor,
    seed: int = 0,
    *,
    steps: int = 1000,
    batch: int = 512,
    learning_rate: float = 1e-3,
) -> GaussianPolicy:
    """Return the Gaussian closest to a flow: regressed on its samples, std of what remains.

    Where the flow has several modes the mean lies between them, and the std spans them.

    Args:
        flow: the policy to imitate, acting by its own sampler.
        observations: normalised observations to imitate it in [M, O], best those of its rollouts.
        seed: decides states and noise.
        steps: gradient steps of an Adam whose rate falls to 0 along a cosine.
        batch: actions per step, each drawn once.
        learning_rate: at the start.

    """
    generator = torch_rng(seed, 'gaussian start')
    policy = GaussianPolicy(flow).requires_grad_(True)
    optimizer = torch.optim.Adam(policy.net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(observations), (count,), generator=generator)
        noise = torch.randn(count, flow.spec.noise_size, generator=generator)
        with torch.no_grad():
            return observations[rows], flow.sample(observations[rows], noise)

    for _ in range(steps):
        o, actions = draw(batch)
        loss = (policy.mean(o) - actions).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        o, actions = draw(4096)
        residual = (policy.mean(o) - actions).square().mean(0).sqrt()
        policy.log_std.copy_(residual.clamp_min(1e-3).log())
    return policy.requires_grad_(False)


class GaussianPpo(Algorithm):
    """PPO (arXiv 1707.06347, Eq. 7) with a Gaussian policy."""

    keeps_flow: ClassVar[bool] = False
    config: GaussianPpoConfig

    def start(self, policy: FlowPolicy) -> GaussianPolicy:
        """Return a copy of a GaussianPolicy that learns; a flow is converted first.

        Without any observations of its task a flow is imitated in standard normal ones, the
        normaliser's idea of them. `gaussian_start` with real ones makes a better start.
        """
        if not isinstance(policy, GaussianPolicy):
            log.warning('a Gaussian imitates the flow in made-up states; see gaussian_start')
            generator = torch_rng(0, 'gaussian observations')
            made_up = torch.randn(4096, policy.spec.observation_size, generator=generator)
            policy = gaussian_start(policy, made_up)
        return super().start(policy)

    def parameters(self, policy: GaussianPolicy) -> list[nn.Parameter]:
        """Return the weights of the mean and log sigma."""
        return [*policy.net.parameters(), policy.log_std]

    def remember(
        self, behaviour: GaussianPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return the log-densities of the actions [M]."""
        return {'log_prob_old': behaviour.log_prob(batch.actions, batch.observations)}

    def loss(self, policy: GaussianPolicy, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch."""
        log_prob = policy.log_prob(batch.actions, batch.observations)
        entropy = (policy.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return gaussian_ppo_loss(
            log_prob, batch.memory['log_prob_old'], entropy, batch.advantages, self.config
        )
