# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: fit the flow to its own fresh actions, and DiPOD interleaved with it. torch.

Maximising E_{a ~ pi_ref}[ELBO(a)] over the policy's own samples keeps the policy and tightens the
bound (Lemma C.7 of arXiv 2606.13795). No reward enters. The noise of the loss is independent of the
noise that made the action: a coupled pair would make it reflow, which is no bound (see distill.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import Batch
from dipod_ros.learning.algorithms.dipod import Dipod, DipodConfig
from dipod_ros.learning.algorithms.spread import require_spread
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import cfm_loss, draw_path_samples


def self_distill(
    policy: FlowPolicy,
    observations: torch.Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int = 512,
    learning_rate: float = 3e-4,
) -> float:
    """Fit `policy` in place to fresh samples of what it was at the call; return the mean loss.

    Args:
        policy: the policy, acting by its own sampler. An Euler sampler of few steps shrinks the
            spread a little in each generation: use midpoint.
        observations: normalised states to act in [M, O].
        generator: of states, actions and (t, eps).
        steps: gradient steps.
        batch: actions per step, each drawn once.
        learning_rate: of an Adam that lives for this call.

    """
    require_spread(policy.spec.sampler)
    teacher = policy.clone()
    optimizer = torch.optim.Adam(policy.net.parameters(), lr=learning_rate)
    total = 0.0
    for _ in range(steps):
        rows = torch.randint(len(observations), (batch,), generator=generator)
        o = observations[rows]
        noise = torch.randn(batch, policy.spec.noise_size, generator=generator)
        with torch.no_grad():
            actions = teacher.sample(o, noise)
        samples = draw_path_samples(batch, 1, actions.shape[-1], generator)
        loss = cfm_loss(policy, actions, o, samples).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / max(1, steps)


@dataclass(frozen=True)
class InterleavedConfig(DipodConfig):
    """Algorithm 1 of arXiv 2606.13795: bursts of self-distillation between policy gradients."""

    beta: float = 0.0
    burst_steps: int = 30
    burst_every: int = 2  # updates between bursts; 0 is none
    # Before the first update (Algorithm 3, all that the paper tries on continuous control).
    initial_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('burst_steps', 'burst_every', 'initial_steps'):
            if getattr(self, name) < 0:
                raise UserError(f'{name} must not be negative, got {getattr(self, name)}')

    def build(self) -> Interleaved:
        """Return the method."""
        return Interleaved(self)


class Interleaved(Dipod):
    """Policy gradients with bursts of self-distillation on fresh samples of the newest policy."""

    config: InterleavedConfig

    def start(self, policy: FlowPolicy) -> FlowPolicy:
        """Return a copy that learns; UserError for a sampler that no burst could use."""
        if self.config.burst_every * self.config.burst_steps or self.config.initial_steps:
            require_spread(policy.spec.sampler)
        return super().start(policy)

    def initial_stage(
        self, policy: FlowPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, float]:
        """Self-distil the policy that learning starts from, in the states of the first rollout."""
        return self._burst(policy, batch, generator, self.config.initial_steps)

    def after_epochs(
        self, policy: FlowPolicy, batch: Batch, update: int, generator: torch.Generator
    ) -> dict[str, float]:
        """Run a burst when it is due."""
        every = self.config.burst_every
        due = every and update % every == 0
        return self._burst(policy, batch, generator, self.config.burst_steps if due else 0)

    def _burst(
        self, policy: FlowPolicy, batch: Batch, generator: torch.Generator, steps: int
    ) -> dict[str, float]:
        if steps == 0:
            return {}
        loss = self_distill(policy, batch.observations, generator, steps=steps)
        return {'self_distillation_loss': loss}
