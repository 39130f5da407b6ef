# SPDX-License-Identifier: Apache-2.0
"""DiPOD: FPO++ policy gradients with an on-policy ELBO regulariser. torch only; one file.

The policy gradient of a flow policy is taken through its evidence bound, because the likelihood of
an action is not at hand. Two things then drift: the bound leaves the likelihood (a bad action can
be made "less likely" by spoiling the bound), and with it the gradient of the bound leaves the
policy gradient. DiPOD (arXiv 2606.13795) adds to every update the bound of the policy's own
actions, which is self-distillation: it moves no probability, it keeps the bound tight.

    L = L_PG + beta * mean ell       (Algorithm 2 and Eq. 7 of arXiv 2606.13795, -ell ~ ELBO)

    L_PG  FPO++ (arXiv 2602.02481): per-sample ratio rho = exp(ell_old - ell) on the same (t, eps),
          inside a PPO clip, or ASPO: PPO clip for A >= 0 and SPO for A < 0. With ratio='action'
          the losses of an action are averaged before exp(), which is FPO (arXiv 2507.21053, Eq. 6).
          Of the clamps in FPO++'s code only the log-ratio's is here: none of losses, no Huber.
    ell   the conditional flow-matching loss of the stored action, see policy/path.py.

beta is in units of the normalised advantage (root mean square 1): the direction is
(A + beta) grad ELBO. It acts on the stored (a, t, eps) and is never clipped. beta = 0 is FPO++.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import (
    Algorithm,
    Batch,
    UpdateConfig,
    bounded_log_ratio,
    clip_fraction,
    clipped_surrogate,
)
from dipod_ros.learning.algorithms.spread import REMEDY, narrows
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import (
    PathSamples,
    cfm_loss,
    draw_path_samples,
    many_cfm_losses,
)

log = logging.getLogger(__name__)

TRUST_REGIONS = ('ppo', 'aspo')
RATIOS = ('sample', 'action')
REGULARISED = ('all', 'positive', 'negative')
ANCHORS = ('own', 'start')

# An adaptive beta stays within these; its logarithm moves by at most BETA_STEP per estimate.
BETA_RANGE = (1e-3, 3.0)
BETA_STEP = 0.7


@dataclass(frozen=True)
class DipodConfig(UpdateConfig):
    """Hyper-parameters of the update; the defaults suit 64 episodes per update on a robot."""

    # On-policy ELBO regulariser, in units of the normalised advantage. 0.1 costs a little speed in
    # the beginning and is what keeps a long run, a wide clip or a bad estimate from going wrong.
    beta: float = 0.1
    # Above 0, beta is adapted (dual ascent) until the measured ELBO gap is so many nats above that
    # of the policy that learning started from: a cloned flow has a gap too.
    gap_target: float = 0.0
    # Monte-Carlo (t, eps) that an action keeps, and how many of them each gradient step takes (0 is
    # all). Few that are met again in every epoch are learned by heart: see docs/dipod.md.
    samples_per_action: int = 64
    samples_per_step: int = 4
    clip: float = 0.2
    trust_region: str = 'ppo'
    ratio: str = 'sample'
    # exp() of a large difference of losses is one sample outweighing the batch (FPO++, Table A.1).
    log_ratio_max: float = 3.0
    # Controls that tell the regulariser from its side effects: on which decisions it acts, and
    # whether it holds the policy's own actions or those of the policy that learning started from.
    regularise: str = 'all'
    anchor: str = 'own'

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ('trust_region', TRUST_REGIONS),
            ('ratio', RATIOS),
            ('regularise', REGULARISED),
            ('anchor', ANCHORS),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f'{name} {getattr(self, name)!r} is not one of {list(allowed)}')
        for name in ('beta', 'gap_target', 'samples_per_step'):
            if not getattr(self, name) >= 0:
                raise UserError(f'{name} must not be negative, got {getattr(self, name)}')
        self.require_at_least_one('samples_per_action')
        self.require_above_zero('clip', 'log_ratio_max')

    def build(self) -> Dipod:
        """Return the method."""
        return Dipod(self)


def dipod_loss(
    ell: torch.Tensor,
    ell_old: torch.Tensor,
    advantages: torch.Tensor,
    config: DipodConfig,
    beta: float | None = None,
    regularised: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the DiPOD loss of one minibatch and what it says about the update.

    Args:
        ell: losses of the present policy [B, S], with gradient.
        ell_old: losses of the policy that acted, on the same (t, eps) [B, S].
        advantages: normalised advantages [B].
        config: clip and trust region.
        beta: weight of the regulariser, when not that of `config`.
        regularised: losses that the regulariser holds down [B, S], when not `ell`.

    """
    beta = config.beta if beta is None else beta
    old, new = ell_old, ell
    if config.ratio == 'action':
        old, new = ell_old.mean(1, keepdim=True), ell.mean(1, keepdim=True)
    rho = bounded_log_ratio(old - new, config.log_ratio_max).exp()
    a = advantages[:, None]
    surrogate = clipped_surrogate(rho, a, config.clip)
    if config.trust_region == 'aspo':
        # SPO on A < 0: a quadratic pull back to rho = 1 (arXiv 2602.02481, Eq. 11-12).
        spo = rho * a - a.abs() / (2 * config.clip) * (rho - 1).square()
        surrogate = torch.where(a >= 0, surrogate, spo)
    loss = -surrogate.mean()
    if beta > 0:
        held = ell if regularised is None else regularised
        if config.regularise != 'all':
            chosen = a >= 0 if config.regularise == 'positive' else a < 0
            held = held * chosen
        loss = loss + beta * held.mean()
    stats = {
        'clip_fraction': clip_fraction(rho, a, config.clip, config.trust_region == 'ppo'),
        'ratio_mean': float(rho.detach().mean()),
        'cfm_loss': float(ell.detach().mean()),
    }
    return loss, stats


class Dipod(Algorithm):
    """Algorithm 2 of arXiv 2606.13795 on FPO++."""

    config: DipodConfig

    def __init__(self, config: DipodConfig) -> None:
        """Begin with the configured beta."""
        super().__init__(config)
        self.beta = config.beta if config.gap_target == 0 else max(config.beta, BETA_RANGE[0])
        # The first gap that was measured.
        self._first_gap = math.nan
        self._start: FlowPolicy | None = None
        self._columns: torch.Tensor | slice = slice(None)

    @property
    def adapts_to_gap(self) -> bool:
        """True with a `gap_target`."""
        return self.config.gap_target > 0

    def start(self, policy: FlowPolicy) -> FlowPolicy:
        """Return a copy that learns; warns of a sampler that the regulariser narrows."""
        sampler, config = policy.spec.sampler, self.config
        if self.beta > 0 and config.anchor == 'own' and narrows(sampler):
            log.warning(
                'the actions of %s are narrower than the policy, and beta %g fits the flow to '
                'them: their spread shrinks from update to update; learn with midpoint (%s), or '
                'with beta 0',
                sampler,
                self.beta,
                REMEDY,
            )
        self._start = policy.clone() if self.config.anchor == 'start' else None
        return super().start(policy)

    def remember(
        self, behaviour: FlowPolicy, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return (t, eps) [M, S], [M, S, D] and the losses of the policy that acted [M, S]."""
        dim = batch.actions.shape[-1]
        samples = draw_path_samples(len(batch), self.config.samples_per_action, dim, generator)
        ell = many_cfm_losses(behaviour, batch.actions, batch.observations, samples)
        memory = {'t': samples.t, 'eps': samples.eps, 'ell_old': ell}
        if self._start is not None:
            noise = torch.randn(len(batch), self._start.spec.noise_size, generator=generator)
            memory['anchor'] = self._start.sample(batch.observations, noise)
        return memory

    def before_minibatch(self, batch: Batch, generator: torch.Generator) -> None:
        """Choose the (t, eps) of this gradient step."""
        kept, taken = batch.memory['t'].shape[1], self.config.samples_per_step
        if 0 < taken < kept:
            self._columns = torch.randperm(kept, generator=generator)[:taken]
        else:
            self._columns = slice(None)

    def loss(self, policy: FlowPolicy, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a minibatch; the regulariser reuses the surrogate's forward pass."""
        chosen = self._columns
        samples = PathSamples(batch.memory['t'][:, chosen], batch.memory['eps'][:, chosen])
        ell_old = batch.memory['ell_old'][:, chosen]
        ell = cfm_loss(policy, batch.actions, batch.observations, samples)
        held = None
        if 'anchor' in batch.memory and self.beta > 0:
            held = cfm_loss(policy, batch.memory['anchor'], batch.observations, samples)
        return dipod_loss(ell, ell_old, batch.advantages, self.config, self.beta, held)

    def observe(self, metrics: dict[str, float]) -> None:
        """Adapt beta to a gap that was measured.

        Dual ascent on E[log pi - ELBO] <= its first estimate + gap_target. The exact gap, or its
        fitted bound where the sampler has no exact likelihood.
        """
        fitted, target = metrics.get('elbo_gap_nats', math.nan), self.config.gap_target
        gap = metrics.get('exact_gap_nats', fitted)
        if target > 0 and math.isfinite(gap):
            if math.isnan(self._first_gap):
                self._first_gap = gap
            excess = gap - self._first_gap
            step = max(-BETA_STEP, min(BETA_STEP, 0.5 * (excess / target - 1)))
            low, high = BETA_RANGE
            self.beta = max(low, min(high, self.beta * math.exp(step)))

    def state(self) -> dict[str, float]:
        """Return the present beta, and the gap it is adapted from once that is known."""
        known = {} if math.isnan(self._first_gap) else {'first_gap_nats': self._first_gap}
        return {'beta': self.beta} | known

    def load_state(self, state: dict[str, float]) -> None:
        """Put an adapted beta back; a fixed one is that of the configuration."""
        if self.config.gap_target > 0:
            self.beta = float(state['beta'])
            self._first_gap = float(state.get('first_gap_nats', math.nan))
