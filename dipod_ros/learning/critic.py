# SPDX-License-Identifier: Apache-2.0
"""State-value function and generalised advantage estimation, per decision. torch only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    # Whether what the older of them are fitted to is computed anew, with the present values. Of a
    # dense reward they are too low otherwise, for some updates; of one at the end success was lower
    # with it (docs/dipod.md).
    refresh: bool = False
    # Fits in the very first update, each to lambda-returns of the values so far: those of random
    # weights say little of an episode that lasts for longer than 1 / (1 - gamma lambda) decisions.
    first_sweeps: int = 1
    # Whether the critic is told how many decisions the episode is old. It is not deployed, and an
    # episode that ends at a deadline has no value function of the observation alone.
    clock: bool = True

    def __post_init__(self) -> None:
        for name in ('width', 'depth', 'epochs', 'minibatches', 'history', 'first_sweeps'):
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
# What is remembered of a rollout, [M, ...] each.
REMEMBERED = ('inputs', 'following', 'rewards', 'terminated', 'last', 'returns')


@dataclass(frozen=True, eq=False)
class Seen:
    """A rollout of M decisions as the critic sees it."""

    inputs: torch.Tensor  # [M, O+1], at each decision
    following: torch.Tensor  # [M, O+1], after it
    rewards: torch.Tensor  # [M]
    terminated: torch.Tensor  # [M] bool
    last: torch.Tensor  # [M] bool
    returns: torch.Tensor  # [M], what the values are to be

    def __len__(self) -> int:
        return len(self.rewards)


class CriticTrainer:
    """Fits a critic to lambda-returns and turns rollouts into advantages."""

    def __init__(self, observation_size: int, config: CriticConfig) -> None:
        """Build the critic and its optimiser."""
        self.config = config
        self.critic = Critic(observation_size, config)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.learning_rate)
        # The rollouts before, oldest first
        self._memory: deque[Seen] = deque(maxlen=config.history - 1)
        self.gradient_s = 0.0  # processor time of all gradient steps so far

    def advantages(self, policy: FlowPolicy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Return advantages [M] and lambda-returns [M] under the present critic."""
        return self._judge(self.see(policy, rollout))

    def learn(
        self, policy: FlowPolicy, rollout: Rollout, generator: torch.Generator
    ) -> tuple[torch.Tensor, float]:
        """Fit the values to a rollout and to those kept from before, and keep it.

        Returns the advantages [M] under the critic before the last fit, and what it explained then
        (see `fit`).
        """
        seen = self.see(policy, rollout)
        for _ in range(1 if self.optimizer.state else self.config.first_sweeps):
            advantages, returns = self._judge(seen)
            seen = replace(seen, returns=returns)
            explained = self.fit(seen, generator)
        self._memory.append(seen)
        return advantages, explained

    def fit(self, seen: Seen, generator: torch.Generator) -> float:
        """Regress values on the returns of a rollout and of those kept from before.

        Returns 1 - E[(R - V)^2] / Var[R] over the rollout before the fit: the explained variance,
        but that a constant error counts, which makes every action look good, or bad.
        """
        with torch.no_grad():
            error = (seen.returns - self.critic(seen.inputs)).square().mean()
            explained = 1 - float(error / (seen.returns.var(unbiased=False) + 1e-8))
        rollouts = [*self._remembered(), seen]
        x = torch.cat([one.inputs for one in rollouts])
        y = torch.cat([one.returns for one in rollouts])
        begun_s = time.process_time()
        for _ in range(self.config.epochs):
            order = torch.randperm(len(y), generator=generator)
            # As many rows per gradient step as without a memory.
            for index in order.chunk(self.config.minibatches * len(rollouts)):
                loss = (self.critic(x[index]) - y[index]).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        self.gradient_s += time.process_time() - begun_s
        return explained

    def memory(self) -> dict[str, torch.Tensor]:
        """Return the rollouts kept, as tensors by name."""
        return {
            f'critic_memory.{i}.{name}': getattr(seen, name)
            for i, seen in enumerate(self._memory)
            for name in REMEMBERED
        }

    def set_memory(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `memory` returned; other names, and what lacks a part, are ignored."""
        self._memory.clear()
        for i in range(self.config.history - 1):
            names = {name: f'critic_memory.{i}.{name}' for name in REMEMBERED}
            if tensors.keys() >= set(names.values()):
                self._memory.append(Seen(**{k: tensors[name] for k, name in names.items()}))

    def see(self, policy: FlowPolicy, rollout: Rollout) -> Seen:
        """Return a rollout as the critic sees it, with no returns yet."""
        rewards = torch.tensor(rollout.rewards)  # a copy: it is remembered, and saved
        return Seen(
            self._inputs(policy, rollout.observations, rollout.step),
            self._inputs(policy, rollout.next_observations, rollout.step + 1),
            rewards,
            torch.tensor(rollout.terminated),
            torch.tensor(rollout.last),
            torch.zeros_like(rewards),
        )

    def _remembered(self) -> list[Seen]:
        """Return the rollouts kept, with returns of the present values where it is wanted."""
        if not self.config.refresh:
            return list(self._memory)
        return [replace(seen, returns=self._judge(seen)[1]) for seen in self._memory]

    def _judge(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return advantages [M] and lambda-returns [M] under the present critic."""
        with torch.no_grad():
            values, following = self.critic(seen.inputs), self.critic(seen.following)
        advantages = generalized_advantages(
            seen.rewards,
            values,
            following,
            seen.terminated,
            seen.last,
            self.config.gamma,
            self.config.gae_lambda,
        )
        return advantages, advantages + values

    def _inputs(self, policy: FlowPolicy, raw: np.ndarray, step: np.ndarray) -> torch.Tensor:
        """Return what the critic sees of observations [M, O] at ages [M] of their episodes."""
        o = policy.normalizer.observation(torch.from_numpy(raw))
        if not self.config.clock:
            return o
        return torch.cat([o, torch.from_numpy(step).float()[:, None] / CLOCK_UNIT], dim=1)
