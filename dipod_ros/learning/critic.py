# SPDX-License-Identifier: Apache-2.0
"""State-value function and generalised advantage estimation, per decision. torch only."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dipod_ros.errors import UserError
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
    # Newest rollouts that the values are fitted to. The policy moves little between them, and one
    # rollout of 64 episodes is too little to tell luck from value.
    history: int = 4
    # Whether the critic is told how many decisions the episode is old. It is not deployed, and an
    # episode that ends at a deadline has no value function of the observation alone.
    clock: bool = True

    def __post_init__(self) -> None:
        for name in ('width', 'depth', 'epochs', 'minibatches', 'history'):
            if not getattr(self, name) >= 1:
                raise UserError(f'critic {name} must be at least 1, got {getattr(self, name)}')


class Critic(nn.Module):
    """V(o, k) on normalised observations and, with `clock`, the episode's age: [B, O+1] -> [B]."""

    def __init__(self, observation_size: int, config: CriticConfig) -> None:
        """Build the network with random weights from torch's global seed."""
        super().__init__()
        layers: list[nn.Module] = []
        size = observation_size + config.clock
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
    delta = (rewards + gamma * next_values.masked_fill(terminated, 0.0) - values).numpy()
    decay = np.where(last.numpy(), 0, gamma * gae_lambda).astype(delta.dtype)
    advantages = np.zeros_like(delta)
    # Scalars of numpy: the same numbers as with those of torch, in a fraction of the time.
    running = delta.dtype.type(0)
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + decay[t] * running
        advantages[t] = running
    return torch.from_numpy(advantages)


# A unit of the clock input is this many decisions, which keeps it near the size of the others.
CLOCK_UNIT = 10.0


class CriticTrainer:
    """Fits a critic to lambda-returns and turns rollouts into advantages."""

    def __init__(self, observation_size: int, config: CriticConfig) -> None:
        """Build the critic and its optimiser."""
        self.config = config
        self.critic = Critic(observation_size, config)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.learning_rate)
        # (inputs, lambda-returns) of the rollouts before, oldest first
        self._memory: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=config.history - 1)

    def advantages(self, policy: FlowPolicy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Return advantages [M] and lambda-returns [M] under the present critic."""
        with torch.no_grad():
            values = self.critic(self._inputs(policy, rollout))
            next_values = self.critic(self._inputs(policy, rollout, following=True))
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
        """Regress values on `returns` [M] and on the rollouts kept from before.

        Returns the explained variance of `returns` before the fit.
        """
        inputs = self._inputs(policy, rollout)
        with torch.no_grad():
            residual = returns - self.critic(inputs)
            explained = 1 - float(
                residual.var(unbiased=False) / (returns.var(unbiased=False) + 1e-8)
            )
        rollouts = [*self._memory, (inputs, returns)]
        x, y = (torch.cat(part) for part in zip(*rollouts, strict=True))
        for _ in range(self.config.epochs):
            order = torch.randperm(len(y), generator=generator)
            # As many rows per gradient step as without a memory.
            for index in order.chunk(self.config.minibatches * len(rollouts)):
                loss = (self.critic(x[index]) - y[index]).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        self._memory.append((inputs, returns))
        return explained

    def memory(self) -> dict[str, torch.Tensor]:
        """Return the rollouts kept, as tensors by name."""
        return {
            f'critic_memory.{i}.{name}': value
            for i, pair in enumerate(self._memory)
            for name, value in zip(('inputs', 'returns'), pair, strict=True)
        }

    def set_memory(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `memory` returned; other names are ignored."""
        self._memory.clear()
        for i in range(self.config.history - 1):
            name = f'critic_memory.{i}'
            if f'{name}.inputs' in tensors:
                self._memory.append((tensors[f'{name}.inputs'], tensors[f'{name}.returns']))

    def _inputs(
        self, policy: FlowPolicy, rollout: Rollout, following: bool = False
    ) -> torch.Tensor:
        """Return what the critic sees at each decision, or after it."""
        raw = rollout.next_observations if following else rollout.observations
        o = policy.normalizer.observation(torch.from_numpy(raw))
        if not self.config.clock:
            return o
        index = torch.from_numpy(rollout.step).float() + following
        return torch.cat([o, index[:, None] / CLOCK_UNIT], dim=1)
