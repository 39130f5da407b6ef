# SPDX-License-Identifier: Apache-2.0
"""An off-policy critic of chunks and how it is learned. torch, no ROS.

Q(o, k, a) is learned from every decision so far and from demonstrations, half and half, by an
ensemble with layer normalisation and many gradient steps per update (RLPD, arXiv 2302.02948), with
a chunk as one action (arXiv 2507.07969). What it adds to an update of the policy is in
q_advantages.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import UpdateStopped
from dipod_ros.learning.critic import CLOCK_UNIT
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.q_memory import (
    Decisions,
    demonstrated_decisions,
    newest_decisions,
    require_sparse,
    thinned,
)
from dipod_ros.learning.q_network import QNetwork
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.state_io import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from dipod_ros.policy.flow import FlowPolicy

# Of a network of a hundred units, so that its activations stay in a core's cache.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class QCriticConfig:
    """How Q is learned and how much of it an update uses."""

    members: int = 4
    width: int = 128
    depth: int = 2
    learning_rate: float = 1e-3
    gamma: float = 0.99  # discount per decision
    td_lambda: float = 0.7
    # Targets are computed anew in each round of so many gradient steps; the first update has more
    # rounds.
    first_rounds: int = 16
    rounds: int = 6
    steps: int = 50
    batch: int = 256  # half of it demonstrations, where there are any
    samples: int = 8  # own chunks per state whose mean value is the baseline
    weight: float = 1.0  # of A_Q beside the usual advantage of executed decisions
    imagined: int = 512  # own chunks in remembered states that join each update; 0 is none
    # Newest decisions that are kept, and about so many of the demonstrations': every update draws
    # an own chunk for each.
    memory: int = 8192

    def __post_init__(self) -> None:
        for name in ('members', 'width', 'depth', 'first_rounds', 'rounds', 'steps', 'memory'):
            if not getattr(self, name) >= 1:
                raise UserError(f'q critic {name} must be at least 1, got {getattr(self, name)}')
        for name in ('batch', 'samples'):
            if not getattr(self, name) >= 2:
                raise UserError(f'q critic {name} must be at least 2, got {getattr(self, name)}')
        for name in ('weight', 'imagined'):
            if not getattr(self, name) >= 0:
                raise UserError(f'q critic {name} must not be negative, got {getattr(self, name)}')
        for name in ('gamma', 'td_lambda'):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f'q critic {name} must be within 0..1, got {getattr(self, name)}')
        if not self.learning_rate > 0:
            raise UserError(f'q critic learning_rate must be above 0, got {self.learning_rate}')


def td_lambda_targets(
    rewards: torch.Tensor,
    next_values: torch.Tensor,
    terminated: torch.Tensor,
    last: torch.Tensor,
    gamma: float,
    td_lambda: float,
) -> torch.Tensor:
    """Return targets [M] of Q over concatenated episodes: Peng's Q(lambda), arXiv 2103.00107.

        G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) Q(o_{t+1}, a') + lambda G_{t+1})

    with a' ~ pi, and Q in place of the bracket at the last decision of an episode that was cut off.
    What other policies did afterwards is not corrected for: earlier versions of this one, and
    whoever demonstrated.
    """
    # In lists: thousands of rows in thousands of steps of a tensor would take seconds.
    r, ahead = rewards.tolist(), next_values.masked_fill(terminated, 0.0).tolist()
    ends = (terminated | last).tolist()
    running = 0.0
    for t in range(len(r) - 1, -1, -1):
        following = ahead[t] if ends[t] else (1 - td_lambda) * ahead[t] + td_lambda * running
        running = r[t] = r[t] + gamma * following
    return torch.tensor(r, dtype=rewards.dtype)


class QCritic:
    """The networks, their optimiser and the decisions that they are fitted to."""

    def __init__(
        self,
        policy: FlowPolicy,
        config: QCriticConfig,
        demonstrations: Sequence[Demonstrations] = (),
    ) -> None:
        """Build the networks; raises UserError when the demonstrations do not fit the policy."""
        self.config = config
        self.network = QNetwork(policy.spec, config.members, config.width, config.depth)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        shown = [demonstrated_decisions(policy, one) for one in demonstrations]
        self.shown = thinned(Decisions.concatenate(shown), config.memory) if shown else None
        self.own: Decisions | None = None
        self.gradient_s = 0.0  # processor time of all gradient steps so far

    def require_fits(self, rollout: Rollout) -> None:
        """Raise UserError when a rollout's rewards are not those of the demonstrations."""
        if self.shown is not None:
            require_sparse(rollout)

    @property
    def tells_apart(self) -> bool:
        """Whether some remembered decision, own or demonstrated, was worth more than another."""
        known = [part.rewards for part in (self.own, self.shown) if part is not None]
        return any(bool(rewards.min() < rewards.max()) for rewards in known)

    @torch.no_grad()
    def values(self, o: torch.Tensor, clock: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return the mean of the ensemble [M] for [M, O], [M], [M, D]."""
        parts = [slice(i, i + ROWS_AT_ONCE) for i in range(0, max(1, len(o)), ROWS_AT_ONCE)]
        return torch.cat([self.network(o[p], clock[p], a[p]).mean(0) for p in parts])

    def learn(
        self,
        policy: FlowPolicy,
        rollout: Rollout,
        generator: torch.Generator,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Remember a rollout and fit Q of the present policy; return statistics.

        `stop` is asked before each round; True raises UpdateStopped, with Q half-way.
        """
        config, new = self.config, newest_decisions(policy, rollout)
        first = self.own is None
        # Copies, also of the first one: a rollout is its caller's.
        own = Decisions.concatenate([new] if self.own is None else [self.own, new])
        self.own = own = own[max(0, len(own) - config.memory) :]
        table = own if self.shown is None else Decisions.concatenate([own, self.shown])
        following, _ = own_chunks(policy, table.next_observations, 1, generator)
        returns = self._targets(table, torch.zeros(len(table)), td_lambda=1.0)
        loss = torch.zeros(())
        for _ in range(config.first_rounds if first else config.rounds):
            if stop():
                raise UpdateStopped
            clock = table.clock + 1 / CLOCK_UNIT
            ahead = self.values(table.next_observations, clock, following[0])
            # No decision is worth more, or less, than one was: an error that feeds itself ends.
            ahead = ahead.clamp(returns.min(), returns.max())
            targets = self._targets(table, ahead, config.td_lambda)
            begun_s = time.process_time()
            for _ in range(config.steps):
                rows = self._rows(len(own), len(table), generator)
                q = self.network(table.observations[rows], table.clock[rows], table.actions[rows])
                error = (q - targets[rows]).square().mean(1)
                self.optimizer.zero_grad()
                # The sum: each member learns as it would alone.
                error.sum().backward()
                self.optimizer.step()
                loss = error.detach().mean()
            self.gradient_s += time.process_time() - begun_s
        return {'q_loss': float(loss)}

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that changes, as tensors by name."""
        return (
            pack_module('q', self.network)
            | pack_optimizer('q_adam', self.optimizer)
            | ({} if self.own is None else self.own.tensors())
        )

    def set_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state` returned; other names are ignored."""
        unpack_module('q', self.network, tensors)
        unpack_optimizer('q_adam', self.optimizer, tensors)
        self.own = Decisions.from_tensors(tensors)

    def _targets(self, table: Decisions, ahead: torch.Tensor, td_lambda: float) -> torch.Tensor:
        return td_lambda_targets(
            table.rewards, ahead, table.terminated, table.last, self.config.gamma, td_lambda
        )

    def _rows(self, own: int, total: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the rows of a gradient step: half of them demonstrations, which come last."""
        shown = self.config.batch // 2 if total > own else 0
        rows = torch.randint(own, (self.config.batch - shown,), generator=generator)
        if shown:
            more = torch.randint(own, total, (shown,), generator=generator)
            rows = torch.cat([rows, more])
        return rows


@torch.no_grad()
def own_chunks(
    policy: FlowPolicy, observations: torch.Tensor, samples: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return chunks [J, M, D] of the policy in states [M, O], normalised, and their noise."""
    count = len(observations)
    noise = torch.randn(samples, count, policy.spec.noise_size, generator=generator)
    chunks = [policy.sample(observations, z) for z in noise]
    return torch.stack(chunks), noise
