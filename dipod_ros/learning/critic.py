# SPDX-License-Identifier: Apache-2.0
"""State-value function and generalised advantage estimation, per decision. torch only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dipod_ros.learning.rollout import Rollout
from dipod_ros.policy.flow import FlowPolicy


@dataclass(frozen=True)
class CriticConfig:
    """How the critic is fitted after each rollout."""

    width: int = 256
    depth: int = 2
    learning_rate: float = 1e-3
    epochs: int = 10
    minibatches: int = 4
    gamma: float = 0.99  # discount per decision
    gae_lambda: float = 0.95


class Critic(nn.Module):
    """V(o) on normalised observations [B, O] -> [B]."""

    def __init__(self, observation_size: int, config: CriticConfig) -> None:
        """Build the network with random weights from torch's global seed."""
        super().__init__()
        layers: list[nn.Module] = []
        size = observation_size
        for _ in range(config.depth):
            layers += [nn.Linear(size, config.width), nn.SiLU()]
            size = config.width
        layers.append(nn.Linear(size, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Return values [B]."""
        return self.layers(observation).squeeze(-1)


def generalized_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    next_values: torch.Tensor,
    terminated: torch.Tensor,
    last: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> torch.Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, Eq. 16) over concatenated episodes.

        delta_t = r_t + gamma (1 - terminated_t) V(o_{t+1}) - V(o_t)
        A_t     = delta_t + gamma lambda (1 - last_t) A_{t+1}

    All arguments [M]; `last` marks the final decision of each episode in the batch, whether the
    episode ended there or was cut off.
    """
    # Not a product with ~terminated: what followed an end may be no number.
    delta = rewards + gamma * next_values.masked_fill(terminated, 0.0) - values
    advantages = torch.zeros_like(delta)
    running = torch.zeros(())
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + gamma * gae_lambda * (0.0 if last[t] else 1.0) * running
        advantages[t] = running
    return advantages


class CriticTrainer:
    """Fits a critic to lambda-returns and turns rollouts into advantages."""

    def __init__(self, observation_size: int, config: CriticConfig) -> None:
        """Build the critic and its optimiser."""
        self.config = config
        self.critic = Critic(observation_size, config)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.learning_rate)

    def advantages(self, policy: FlowPolicy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Return advantages [M] and lambda-returns [M] under the present critic."""
        with torch.no_grad():
            o = policy.normalizer.observation(torch.from_numpy(rollout.observations))
            n = policy.normalizer.observation(torch.from_numpy(rollout.next_observations))
            values, next_values = self.critic(o), self.critic(n)
        advantages = generalized_advantages(
            torch.from_numpy(rollout.rewards),
            values,
            next_values,
            torch.from_numpy(rollout.terminated),
            torch.from_numpy(rollout.last),
            self.config.gamma,
            self.config.gae_lambda,
        )
        return advantages, advantages + values

    def fit(
        self,
        policy: FlowPolicy,
        rollout: Rollout,
        returns: torch.Tensor,
        generator: torch.Generator,
    ) -> float:
        """Regress values on `returns` [M]; return the explained variance before the fit."""
        o = policy.normalizer.observation(torch.from_numpy(rollout.observations))
        with torch.no_grad():
            residual = returns - self.critic(o)
            explained = 1 - float(
                residual.var(unbiased=False) / (returns.var(unbiased=False) + 1e-8)
            )
        count = len(returns)
        for _ in range(self.config.epochs):
            order = torch.randperm(count, generator=generator)
            for index in order.chunk(self.config.minibatches):
                loss = (self.critic(o[index]) - returns[index]).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return explained
