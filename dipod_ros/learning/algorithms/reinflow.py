# SPDX-License-Identifier: Apache-2.0
"""A likelihood from learned noise in the flow's steps, in the style of ReinFlow. torch; one file.

ReinFlow (arXiv 2505.22094) adds to each Euler step of a flow Gaussian noise whose std is a small
network's, learned together with the flow:

    x_{k+1} ~ N(x_k - v_theta(x_k, t_k; o) / K, sigma_phi(x_k, t_k; o)^2)
    log p(x_0..x_K | o) = log N(x_0; 0, I) + sum_k log N(x_{k+1}; ...)

That is the density of the whole chain, so there is one PPO ratio per decision (DPPO has one per
step). The start's term cancels in it. The log-density is divided by its number of Gaussians, K * D
(a mean over steps and dimensions), so that clip does not depend on either. An entropy bonus, per
step and dimension, can keep the noise up. log sigma^2 is bounded through a tanh, as in the released
code; there the noise network sees (t, o) alone, here also x.

The noise network serves learning only: `ReinFlowPolicy.to_flow` is the flow without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.networks import ResidualMLP, time_features
from dipod_ros.policy.samplers import evaluation_times
from dipod_ros.policy.spec import SamplerSpec

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Against overflow of exp() alone; a ratio this large is far outside any clip.
LOG_RATIO_MAX = 10.0


@dataclass(frozen=True)
class ReinFlowConfig(UpdateConfig):
    """Hyper-parameters of the update; the defaults suit 64 episodes per update on a robot."""

    # Many epochs make too much of a ratio that is a mean over K * D Gaussians, as in dppo.py.
    epochs: int = 16
    learning_rate: float = 1e-4
    steps: int = 4  # of the chain, K
    # Bounds of the learned noise in normalised action units; it begins at their geometric mean.
    sigma_min: float = 0.1
    sigma_max: float = 0.24
    noise_width: int = 64  # hidden units of the noise network
    clip: float = 0.02
    entropy_bonus: float = 0.0  # per nat of mean entropy of a step and dimension

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least_one('steps', 'noise_width')
        self.require_above_zero('clip', 'sigma_min')
        if not self.sigma_min < self.sigma_max <= 1:
            raise UserError(
                f'sigma_max must be above sigma_min ({self.sigma_min}) and at most 1, '
                f'got {self.sigma_max}'
            )
        if not self.entropy_bonus >= 0:
            raise UserError(f'entropy_bonus must not be negative, got {self.entropy_bonus}')

    def build(self) -> ReinFlow:
        """Return the method."""
        return ReinFlow(self)


def chain_log_prob(
    following: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return log p of chains divided by K * D, [B]; all arguments [B, K, D].

    sum_k log N(x_{k+1}; mean_k, sigma_k^2), as `get_logprobs` in ppoflow.py of the code released
    with arXiv 2505.22094, without the start's term log N(x_0; 0, I).
    """
    each = -0.5 * ((following - mean) / sigma).square() - sigma.log() - HALF_LOG_2PI
    return each.mean((-2, -1))


def reinflow_loss(
    log_prob: torch.Tensor,
    log_prob_old: torch.Tensor,
    entropy: torch.Tensor,
    advantages: torch.Tensor,
    config: ReinFlowConfig,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of one minibatch and what it says about the update.

    One PPO ratio for the joint density of the whole chain and a bonus for the entropy of its steps,
    as `loss` in ppoflow.py of the code released with arXiv 2505.22094; the clipped surrogate itself
    is Eq. 7 of arXiv 1707.06347.

    Args:
        log_prob: normalised log-density of the chains under the present policy [B].
        log_prob_old: under the policy that acted [B].
        entropy: of the present policy's steps, a mean over steps and dimensions [B].
        advantages: normalised advantages [B].
        config: clip and entropy bonus.

    """
    rho = bounded_log_ratio(log_prob - log_prob_old, LOG_RATIO_MAX).exp()
    loss = -clipped_surrogate(rho, advantages, config.clip).mean()
    loss = loss - config.entropy_bonus * entropy.mean()
    stats = {
        'clip_fraction': clip_fraction(rho, advantages, config.clip),
        'ratio_mean': float(rho.detach().mean()),
        'entropy': float(entropy.detach().mean()),
    }
    return loss, stats


class ReinFlowPolicy(FlowPolicy):
    """A flow with a network for the noise of its steps."""

    def __init__(self, flow: FlowPolicy, config: ReinFlowConfig) -> None:
        """Take the weights of a flow; the noise network's come from torch's global seed."""
        middle = math.sqrt(config.sigma_min * config.sigma_max)
        sampler = SamplerSpec('chain', config.steps, noise_std=middle)
        super().__init__(replace(flow.spec, sampler=sampler))
        self.load_state_dict(flow.state_dict())
        self.encoder_weights = flow.encoder_weights
        spec = self.spec
        self.noise_net = ResidualMLP(
            spec.action_size, spec.observation_size, config.noise_width, depth=1
        )
        # tanh(0): every sigma begins in the middle.
        nn.init.zeros_(self.noise_net.output.weight)
        nn.init.zeros_(self.noise_net.output.bias)
        self._log_min, self._log_max = math.log(config.sigma_min), math.log(config.sigma_max)

    def step(
        self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and std [B, D] of the step of the chain at x [B, D], t [B]."""
        features = time_features(t)
        mean = x - self.net(x, features, observation).to(x.dtype) / self.spec.sampler.steps
        share = 0.5 * (1 + torch.tanh(self.noise_net(x, features, observation).to(x.dtype)))
        return mean, torch.exp(self._log_min + (self._log_max - self._log_min) * share)

    def chain(self, observation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the chain x_0 .. x_K that noise [B, (1 + K) D] makes, [B, 1 + K, D].

        Raises UserError for the noise of another sampler.
        """
        if noise.shape[-1] != self.spec.noise_size:
            raise UserError(
                f'the rollout holds {noise.shape[-1]} numbers of noise per decision, a chain of '
                f'{self.spec.sampler.steps} steps with learned noise needs {self.spec.noise_size}: '
                'act with the policy that learns'
            )
        draws = noise.chunk(1 + self.spec.sampler.steps, dim=-1)
        states = [draws[0]]
        for t, z in zip(evaluation_times(self.spec.sampler), draws[1:], strict=True):
            mean, sigma = self.step(states[-1], torch.full((len(noise),), t), observation)
            states.append(mean + sigma * z)
        return torch.stack(states, 1)

    def sample(
        self,
        observation: torch.Tensor,
        noise: torch.Tensor,
        sampler: SamplerSpec | None = None,
    ) -> torch.Tensor:
        """Return normalised actions [B, D]; with `sampler` None, by the chain of learned noise.

        A copy `with_sampler` of another kind than a chain samples the flow alone.
        """
        if sampler is None and self.spec.sampler.solver == 'chain':
            return self.chain(observation, noise)[:, -1]
        return super().sample(observation, noise, sampler)

    def to_flow(self, sampler: SamplerSpec | None = None) -> FlowPolicy:
        """Return the flow alone, by default with as many Euler steps as the chain had."""
        sampler = sampler or SamplerSpec('euler', self.spec.sampler.steps)
        flow = FlowPolicy(replace(self.spec, sampler=sampler))
        own = self.state_dict()
        flow.load_state_dict({k: v for k, v in own.items() if not k.startswith('noise_net.')})
        flow.encoder_weights = self.encoder_weights
        return flow.requires_grad_(False)

    def save(self, *args: Any, **options: Any) -> ckpt.Manifest:
        """Write the flow alone (see `to_flow`): a robot acts without exploring noise."""
        return self.to_flow().save(*args, **options)


class ReinFlow(Algorithm):
    """PPO on the density of chains with learned noise (arXiv 2505.22094)."""

    keeps_flow: ClassVar[bool] = False
    config: ReinFlowConfig

    def start(self, policy: FlowPolicy) -> ReinFlowPolicy:
        """Return a copy that learns and acts with learned noise."""
        return ReinFlowPolicy(policy, self.config).requires_grad_(True)

    def parameters(self, policy: ReinFlowPolicy) -> list[nn.Parameter]:
        """Return the weights of both networks."""
        return [*policy.net.parameters(), *policy.noise_net.parameters()]

    def remember(
        self, behaviour: ReinFlowPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return the chains [M, 1 + K, D] and their normalised log-densities [M]."""
        # In float32 whatever the precision of learning: these are the states that were visited.
        with torch.autocast('cpu', enabled=False):
            chain = behaviour.chain(batch.observations, batch.noise)
        old, _ = self._log_prob(behaviour, batch.observations, chain)
        return {'chain': chain, 'log_prob_old': old}

    def loss(self, policy: ReinFlowPolicy, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch."""
        log_prob, entropy = self._log_prob(policy, batch.observations, batch.memory['chain'])
        old = batch.memory['log_prob_old']
        return reinflow_loss(log_prob, old, entropy, batch.advantages, self.config)

    @staticmethod
    def _log_prob(
        policy: ReinFlowPolicy, o: torch.Tensor, chain: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, following = chain[:, :-1], chain[:, 1:]
        count, steps, dim = x.shape
        t = torch.tensor(evaluation_times(policy.spec.sampler))
        mean, sigma = policy.step(
            x.reshape(-1, dim), t.repeat(count), o.repeat_interleave(steps, 0)
        )
        mean, sigma = mean.reshape(x.shape), sigma.reshape(x.shape)
        entropy = (sigma.log() + HALF_LOG_2PI + 0.5).mean((-2, -1))
        return chain_log_prob(following, mean, sigma), entropy
