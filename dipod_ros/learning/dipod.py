# SPDX-License-Identifier: Apache-2.0
"""DiPOD: FPO++ policy gradients with an on-policy ELBO regulariser. torch only; one file.

The policy gradient of a flow policy is taken through its evidence bound, because the likelihood of
an action is not at hand. Two things then drift: the bound leaves the likelihood (a bad action can
be made "less likely" by spoiling the bound), and with it the gradient of the bound leaves the
policy gradient. DiPOD (arXiv 2606.13795) adds to every update the bound of the policy's own
actions, which is self-distillation: it moves no probability, it keeps the bound tight.

    L = L_PG + beta * mean ell       (Algorithm 2 and Eq. 7 of arXiv 2606.13795, -ell ~ ELBO)

    L_PG  FPO++ (arXiv 2602.02481): per-sample ratio rho = exp(ell_old - ell) on the same (t, eps),
          inside a PPO clip, or ASPO: PPO clip for A >= 0 and SPO for A < 0.
    ell   the conditional flow-matching loss of the stored action, see policy/path.py.

beta is in units of the normalised advantage (std 1): the direction is (A + beta) grad ELBO. It acts
on the stored (a, t, eps), on all advantages, and is never clipped. beta = 0 is FPO++.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import PathSamples, cfm_loss

TRUST_REGIONS = ('ppo', 'aspo')


class UpdateStopped(Exception):  # noqa: N818 - an event, not an error
    """An update was asked to stop before its last epoch."""


@dataclass(frozen=True)
class DipodConfig:
    """Hyper-parameters of the update; the defaults suit 64 episodes per update on a robot."""

    # On-policy ELBO regulariser, in units of the normalised advantage. 0.03 keeps the gap near one
    # nat at little cost in return; 0.1 and more cost return wherever the clip is below 0.5.
    beta: float = 0.03
    # High reuse is what makes learning affordable in robot time: 40 epochs on 64 episodes.
    epochs: int = 40
    minibatches: int = 4
    samples_per_action: int = 8  # Monte-Carlo (t, eps) per action
    clip: float = 0.2
    trust_region: str = 'ppo'
    learning_rate: float = 3e-4
    max_grad_norm: float = 1.0
    # exp() of a large difference of losses is one sample outweighing the batch (FPO++, Table A.1).
    log_ratio_max: float = 3.0

    def __post_init__(self) -> None:
        if self.trust_region not in TRUST_REGIONS:
            raise UserError(
                f'trust_region {self.trust_region!r} is not one of {list(TRUST_REGIONS)}'
            )
        if not self.beta >= 0:
            raise UserError(f'beta must not be negative, got {self.beta}')
        for name in ('epochs', 'minibatches', 'samples_per_action'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')
        for name in ('clip', 'learning_rate', 'max_grad_norm', 'log_ratio_max'):
            if not getattr(self, name) > 0:
                raise UserError(f'{name} must be above 0, got {getattr(self, name)}')


def dipod_loss(
    ell: torch.Tensor, ell_old: torch.Tensor, advantages: torch.Tensor, config: DipodConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the DiPOD loss of one minibatch and what it says about the update.

    Args:
        ell: losses of the present policy [B, S], with gradient.
        ell_old: losses of the policy that acted, on the same (t, eps) [B, S].
        advantages: normalised advantages [B].
        config: beta, clip and trust region.

    The clamp on the log-ratio is straight-through: the value is bounded, the gradient is not cut
    (FPO++ code, `cfm_diff_clamp_max`).

    """
    log_ratio = ell_old - ell
    log_ratio = log_ratio + (log_ratio.clamp(max=config.log_ratio_max) - log_ratio).detach()
    rho = log_ratio.exp()
    a = advantages[:, None]
    clipped = rho.clamp(1 - config.clip, 1 + config.clip)
    surrogate = torch.minimum(rho * a, clipped * a)  # PPO (arXiv 1707.06347, Eq. 7)
    if config.trust_region == 'aspo':
        # SPO on A < 0: a quadratic pull back to rho = 1 (arXiv 2602.02481, Eq. 11-12).
        spo = rho * a - a.abs() / (2 * config.clip) * (rho - 1).square()
        surrogate = torch.where(a >= 0, surrogate, spo)
    loss = -surrogate.mean() + config.beta * ell.mean()
    with torch.no_grad():
        outside = torch.where(a >= 0, rho > 1 + config.clip, rho < 1 - config.clip)
        stats = {
            'clip_fraction': float(outside.float().mean()),
            'ratio_mean': float(rho.mean()),
            'cfm_loss': float(ell.mean()),
        }
    return loss, stats


def dipod_update(
    policy: FlowPolicy,
    optimizer: torch.optim.Optimizer,
    observations: torch.Tensor,
    actions: torch.Tensor,
    advantages: torch.Tensor,
    samples: PathSamples,
    ell_old: torch.Tensor,
    config: DipodConfig,
    generator: torch.Generator,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Run the epochs of one update in place and return the means of its statistics.

    Args:
        policy: the policy to improve.
        optimizer: over `policy.net`.
        observations: normalised [M, O].
        actions: normalised flattened chunks, as sampled [M, D].
        advantages: raw [M]; divided by their root mean square here (not centred: the critic is the
            baseline, and a batch of failures must not look half good).
        samples: the (t, eps) of each action.
        ell_old: losses under the policy that acted [M, S].
        config: hyper-parameters.
        generator: order of the minibatches.
        stop: asked before each epoch; True raises UpdateStopped, with the policy half-way.

    """
    advantages = advantages / (advantages.square().mean().sqrt() + 1e-8)
    totals: dict[str, float] = {}
    updates = 0
    for _ in range(config.epochs):
        if stop():
            raise UpdateStopped
        order = torch.randperm(len(actions), generator=generator)
        for index in order.chunk(config.minibatches):
            ell = cfm_loss(policy, actions[index], observations[index], samples[index])
            loss, stats = dipod_loss(ell, ell_old[index], advantages[index], config)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.net.parameters(), config.max_grad_norm)
            optimizer.step()
            stats |= {'policy_loss': float(loss.detach()), 'gradient_norm': float(norm)}
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value
            updates += 1
    return {name: value / updates for name, value in totals.items()}
