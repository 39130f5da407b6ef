# SPDX-License-Identifier: Apache-2.0
"""What all policy-gradient methods share: the batch, the epochs, and the two things that differ.

A method says what to remember of the policy that acted (`remember`) and what the loss of a
minibatch is (`loss`). Everything else, epochs, minibatches, gradient clipping, precision and
data-parallel processes, is here and the same for all of them. torch, no ROS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning import parallel
from dipod_ros.policy.flow import FlowPolicy

PRECISIONS = ('float32', 'bfloat16')

# policy -> (loss, statistics) of a term that is added to every gradient step of an update.
ExtraTerm = Callable[[FlowPolicy], tuple[torch.Tensor, dict[str, float]]]


class UpdateStopped(Exception):  # noqa: N818 - an event, not an error
    """An update was asked to stop before its last epoch."""


@dataclass(frozen=True)
class UpdateConfig:
    """Settings of the loop over epochs; the defaults suit 64 episodes per update on a robot."""

    # High reuse is what makes learning affordable in robot time: 40 epochs on 64 episodes.
    epochs: int = 40
    minibatches: int = 4
    learning_rate: float = 3e-4
    max_grad_norm: float = 1.0
    # Of the network's matrix products; weights, losses and optimiser stay float32. bfloat16 is
    # faster where the processor multiplies it natively.
    precision: str = 'float32'
    # Decay per gradient step of a running average of the weights, which is the policy at the end of
    # the update; 0 is none. The last of many large steps is noise that acts.
    ema: float = 0.0
    # Advantages beyond this many times their root mean square are cut there, and then all are
    # scaled to one again, so that what was cut may still be larger than this (see `normalised`); 0
    # cuts none. Where a few decisions end an episode and the others hardly matter, those few would
    # be the whole update.
    advantage_clip: float = 0.0

    def __post_init__(self) -> None:
        if not self.advantage_clip >= 0:
            raise UserError(f'advantage_clip must be at least 0, got {self.advantage_clip}')
        if not 0 <= self.ema < 1:
            raise UserError(f'ema must be at least 0 and below 1, got {self.ema}')
        if self.precision not in PRECISIONS:
            raise UserError(f'precision {self.precision!r} is not one of {list(PRECISIONS)}')
        self.require_at_least_one('epochs', 'minibatches')
        self.require_above_zero('learning_rate', 'max_grad_norm')

    def require_at_least_one(self, *names: str) -> None:
        """Raise UserError for the first of these settings that is below 1."""
        for name in names:
            if not getattr(self, name) >= 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')

    def require_above_zero(self, *names: str) -> None:
        """Raise UserError for the first of these settings that is not above 0 (NaN included)."""
        for name in names:
            if not getattr(self, name) > 0:
                raise UserError(f'{name} must be above 0, got {getattr(self, name)}')

    def build(self) -> Algorithm:
        """Return the method that these settings belong to."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Batch:
    """M decisions, normalised.

    memory holds what the method remembers of the policy that acted, by name, [M, ...] each.
    """

    observations: torch.Tensor  # [M, O]
    actions: torch.Tensor  # [M, D], as sampled
    noise: torch.Tensor  # [M, Z], of the sampler that made them
    advantages: torch.Tensor  # [M]
    memory: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, index: torch.Tensor) -> Batch:
        return Batch(
            self.observations[index],
            self.actions[index],
            self.noise[index],
            self.advantages[index],
            {name: value[index] for name, value in self.memory.items()},
        )


class Algorithm(ABC):
    """A policy-gradient method.

    `config` is replaced, never changed in place, when learning has to go on more gently.
    """

    # Whether the method keeps v_theta the velocity field of its own actions. Where it does not, a
    # rising flow-matching loss is no sign of a collapse.
    keeps_flow: ClassVar[bool] = True

    def __init__(self, config: UpdateConfig) -> None:
        """Take the settings."""
        self.config = config

    @property
    def adapts_to_gap(self) -> bool:
        """Whether `observe` goes by the measured gap, which then has to be precise."""
        return False

    def start(self, policy: FlowPolicy) -> FlowPolicy:
        """Return the policy that learns and acts, made from the one given, which is not touched."""
        return policy.clone().requires_grad_(True)

    def parameters(self, policy: FlowPolicy) -> list[torch.nn.Parameter]:
        """Return what the optimiser may move."""
        return list(policy.net.parameters())

    @abstractmethod
    def remember(
        self, behaviour: FlowPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return what the ratio needs of the policy that took these decisions, [M, ...] each."""

    def before_minibatch(self, batch: Batch, generator: torch.Generator) -> None:  # noqa: B027
        """Draw what a gradient step needs; the same in every process that learns together."""

    @abstractmethod
    def loss(self, policy: FlowPolicy, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch, a mean over its rows, and statistics."""

    def initial_stage(
        self, policy: FlowPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, float]:
        """Do what the method does once, with the first rollout; return statistics when it did."""
        return {}

    def after_epochs(
        self, policy: FlowPolicy, batch: Batch, update: int, generator: torch.Generator
    ) -> dict[str, float]:
        """Do what the method does once per update, after its epochs; return statistics."""
        return {}

    def observe(self, metrics: dict[str, float]) -> None:  # noqa: B027 - most need not
        """Look at the metrics of a finished update; may adapt the method's own state."""

    def state(self) -> dict[str, float]:
        """Return the method's own state as plain numbers, for `load_state`."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: B027 - most have none
        """Put back what `state` returned."""

    def gentler(self) -> None:
        """Go on with half the learning rate and half the epochs, after a collapse."""
        config = self.config
        self.config = replace(
            config, learning_rate=config.learning_rate / 2, epochs=max(1, config.epochs // 2)
        )


def autocast(precision: str) -> torch.autocast:
    """Return the context in which the network's products run at `precision`."""
    return torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16')


def root_mean_square(advantages: torch.Tensor) -> torch.Tensor:
    """Return sqrt(mean A^2), the unit in which beta and clip are felt."""
    return advantages.square().mean().sqrt()


def normalised(advantages: torch.Tensor, clip: float = 0.0) -> torch.Tensor:
    """Return advantages [M] scaled to a root mean square of one, a few enormous ones cut before.

        A_i = c_i / rms(c),   c_i = clamp(a_i, -clip rms(a), clip rms(a))        (clip 0: c_i = a_i)

    What is bounded is c: no decision counts for more than `clip` root mean squares of the
    advantages as they came. A is not: where something was cut, rms(c) is below rms(a), and |A_i| is
    at most clip rms(a) / rms(c), which is more than `clip`.
    """
    units = advantages / (root_mean_square(advantages) + 1e-8)
    if not clip:
        return units
    units = units.clamp(-clip, clip)
    return units / (root_mean_square(units) + 1e-8)


def run_epochs(
    algorithm: Algorithm,
    policy: FlowPolicy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    generator: torch.Generator,
    stop: Callable[[], bool] = lambda: False,
    extra: ExtraTerm | None = None,
) -> dict[str, float]:
    """Run the epochs of one update in place and return the means of its statistics.

    Args:
        algorithm: whose loss falls.
        policy: the policy to improve.
        optimizer: over `algorithm.parameters(policy)`.
        batch: with raw advantages; they are divided by their root mean square here (not centred:
            the critic is the baseline, and a batch of failures must not look half good).
        generator: order of the minibatches.
        stop: asked before each epoch; True raises UpdateStopped, with the policy half-way.
        extra: a term that is added to the loss of every gradient step.

    """
    config = algorithm.config
    batch = replace(batch, advantages=normalised(batch.advantages, config.advantage_clip))
    parameters = algorithm.parameters(policy)
    totals: dict[str, float] = {}
    updates = 0
    average = [p.detach().clone() for p in parameters] if config.ema else []
    for _ in range(config.epochs):
        if stop():
            raise UpdateStopped
        order = torch.randperm(len(batch), generator=generator)
        for index in order.chunk(config.minibatches):
            algorithm.before_minibatch(batch, generator)
            mine = parallel.share(index)
            part = len(mine) / len(index)
            optimizer.zero_grad()
            stats: dict[str, float] = {}
            if len(mine):
                with autocast(config.precision):
                    loss, stats = algorithm.loss(policy, batch[mine])
                (loss * part).backward()
                stats |= {'policy_loss': float(loss.detach())}
                stats = {name: value * part for name, value in stats.items()}
            if extra is not None:
                with autocast(config.precision):
                    loss, more = extra(policy)
                loss.backward()
                stats |= more
            parallel.sum_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            # The same in every process: counted once.
            stats['gradient_norm'] = float(norm) / parallel.world_size()
            _add(totals, stats)
            updates += 1
            for slow, fast in zip(average, parameters, strict=bool(average)):
                slow.lerp_(fast.detach(), 1 - config.ema)
    for slow, fast in zip(average, parameters, strict=bool(average)):
        fast.data.copy_(slow)
    return {name: value / updates for name, value in parallel.sum_values(totals).items()}


def _add(totals: dict[str, float], values: dict[str, float]) -> None:
    for name, value in values.items():
        totals[name] = totals.get(name, 0.0) + value


def clipped_surrogate(
    rho: torch.Tensor, advantages: torch.Tensor, clip: float | torch.Tensor
) -> torch.Tensor:
    """Return min(rho A, clip(rho, 1-c, 1+c) A), elementwise (PPO, arXiv 1707.06347, Eq. 7)."""
    clipped = rho.clamp(1 - clip, 1 + clip)
    return torch.minimum(rho * advantages, clipped * advantages)


@torch.no_grad()
def clip_fraction(
    rho: torch.Tensor,
    advantages: torch.Tensor,
    clip: float | torch.Tensor,
    bad_actions: bool = True,
) -> float:
    """Return the share of ratios whose gradient the clip cuts; without `bad_actions` of A >= 0."""
    below = (rho < 1 - clip) & bad_actions
    outside = torch.where(advantages >= 0, rho > 1 + clip, below)
    return float(outside.float().mean())


def bounded_log_ratio(log_ratio: torch.Tensor, maximum: float) -> torch.Tensor:
    """Bound a log-ratio from above, straight through: its gradient is not cut.

    exp() of a large difference of losses is one sample outweighing the batch (FPO++ code,
    `cfm_diff_clamp_max`).
    """
    return log_ratio + (log_ratio.clamp(max=maximum) - log_ratio).detach()
