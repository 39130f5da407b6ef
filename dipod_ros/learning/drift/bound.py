# SPDX-License-Identifier: Apache-2.0
"""The evidence bound of a flow policy in nats, with its constants and little noise. torch only.

The flow-matching loss that training uses is this bound up to weight, scale and constants; only the
bound itself can be compared with a log-likelihood.
"""

from __future__ import annotations

import math

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.drift.likelihood import check_rows
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import T_MAX, T_MIN, PathSamples, cfm_loss

LOGIT_LOW, LOGIT_HIGH = math.log(T_MIN / (1 - T_MIN)), math.log(T_MAX / (1 - T_MAX))
# Velocity evaluations in one go without gradient.
EVALUATIONS = 16384


def elbo(
    policy: FlowPolicy,
    observations: torch.Tensor,
    actions: torch.Tensor,
    samples: int = 64,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Estimate the evidence bound ELBO(a|o) <= log p(a|o) in nats, as [B].

    The variational bound of diffusion models in continuous time (arXiv 2107.00630, Eq. 11 and 15)
    for the path x_t = (1-t) a + t eps, over t0 = T_MIN to t1 = T_MAX, D dimensions summed:

        ELBO = - int_{t0}^{t1} ((1-t)/t) E_eps |v(x_t, t) - (eps - a)|^2 dt + R - K(a)
        R    = - D/2 log(2 pi s0^2) - D/2,   s0 = t0 / (1 - t0)              reconstruction
        K(a) = 1/2 (D (t1^2 - 1 - log t1^2) + (1 - t1)^2 |a|^2)              prior

    p is the density of the stochastic sampler; the ODE's own may be below the bound pointwise.

    Unbiased, with t stratified over its logit (where the weight becomes (1-t)^2), eps in pairs of
    either sign, and |eps|^2 - D as a control variate: near the action the loss is |eps|^2, which
    nothing can predict. Its coefficients for one half of the rows come from the other half.
    Differentiable in the weights where gradients are enabled.

    Args:
        policy: the flow.
        observations: normalised [B, O].
        actions: normalised [B, D].
        samples: velocity evaluations per action, an even number.
        generator: of t and eps.

    """
    check_rows(policy, observations, actions, 'actions')
    count, dim = actions.shape
    draws = stratified_path_samples(count, samples, dim, generator, actions.dtype)
    rows = len(actions) if torch.is_grad_enabled() else max(1, EVALUATIONS // samples)
    loss = torch.cat(
        [
            cfm_loss(policy, actions[i : i + rows], observations[i : i + rows], draws[i : i + rows])
            for i in range(0, count, rows)
        ]
    )
    weighted = (1 - draws.t).square() * loss * dim**0.5  # cfm_loss carries 1/sqrt(D)
    # One value for each stratum and its pair: [B, samples / 2].
    value = weighted.unflatten(1, (-1, 2)).mean(-1)
    excess = draws.eps[:, ::2].square().sum(-1) - dim
    value = value - _coefficients(value.detach(), excess) * excess
    integral = (LOGIT_HIGH - LOGIT_LOW) * value.mean(-1)
    reconstruction = -0.5 * dim * (math.log(2 * math.pi * (T_MIN / (1 - T_MIN)) ** 2) + 1)
    prior = 0.5 * (
        dim * (T_MAX**2 - 1 - 2 * math.log(T_MAX)) + (1 - T_MAX) ** 2 * actions.square().sum(-1)
    )
    return reconstruction - prior - integral


def stratified_path_samples(
    batch: int,
    samples: int,
    action_size: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    logit: bool = True,
) -> PathSamples:
    """Draw t [B, S], one in each of S/2 strata with a pair of eps and -eps [B, S, D] next to it.

    With `logit` t is uniform over its logit, else uniform as in training; from T_MIN to T_MAX.
    """
    if samples < 2 or samples % 2:
        raise UserError(f'samples must be an even number of at least 2, got {samples}')
    strata = samples // 2
    u = torch.rand(batch, strata, generator=generator, dtype=dtype)
    u = (torch.arange(strata, dtype=dtype) + u) / strata
    if logit:
        t = torch.sigmoid(LOGIT_LOW + u * (LOGIT_HIGH - LOGIT_LOW))
    else:
        t = T_MIN + u * (T_MAX - T_MIN)
    eps = torch.randn(batch, strata, action_size, generator=generator, dtype=dtype)
    pairs = torch.stack([eps, -eps], dim=2).flatten(1, 2)
    return PathSamples(t.repeat_interleave(2, dim=1), pairs)


def _coefficients(value: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    """Regress each stratum's value on its control variate: even rows for the odd ones, and back.

    From the other half, the coefficient is independent of the excess that it multiplies, so the
    estimate stays unbiased. Returns [B, strata].
    """
    out = torch.zeros_like(value)
    if len(value) < 16:  # too few to regress on
        return out
    for own, other in ((0, 1), (1, 0)):
        y, x = value[other::2], excess[other::2]
        x = x - x.mean(0)
        out[own::2] = ((y - y.mean(0)) * x).sum(0) / x.square().sum(0)
    return out
