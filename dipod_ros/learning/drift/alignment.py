# SPDX-License-Identifier: Apache-2.0
"""Does training follow the policy gradient? Cosines of gradients, corrected for noise. torch only.

A raw cosine of two noisy gradients mixes two things: noise pulls it towards 0, and noise that the
two share (the same actions and advantages) towards 1. Products across independent groups of
decisions have neither.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.drift.bound import elbo, stratified_path_samples
from dipod_ros.learning.drift.likelihood import ode_log_likelihood, rows_together
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import cfm_loss


@dataclass(frozen=True)
class Cosine:
    """Cosine of an estimated gradient p with another, t; NaN where the data cannot say.

    `error` is the jackknife standard error over groups. `reliability_*` is the share of signal in
    the squared norm of the mean gradient, from 1 (no noise) to 0 (noise alone; below 0 by chance).
    `value` may exceed 1 by its error. `norm_ratio` is |p| / |t|, corrected likewise.
    """

    value: float
    error: float
    raw: float
    reliability_proxy: float
    reliability_true: float
    norm_ratio: float
    note: str = ''


@dataclass(frozen=True)
class Alignment:
    """How two surrogates stand to the true policy gradient, at one policy, on one batch.

    elbo: gradient of the evidence bound in nats. cfm: gradient of minus `cfm_loss`, which is what
    an update follows at its first step (ratio 1, beta 0).
    """

    elbo: Cosine
    cfm: Cosine
    decisions: int
    groups: int

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return asdict(self)


def gradient_alignment(
    policy: FlowPolicy,
    observations: torch.Tensor,
    actions: torch.Tensor,
    advantages: torch.Tensor,
    generator: torch.Generator,
    *,
    episodes: torch.Tensor | None = None,
    groups: int = 8,
    steps: int = 16,
    samples: int = 32,
) -> Alignment:
    """Compare the surrogate policy gradients with the true one (arXiv 2606.13795, section 3.1).

        surrogate  mean_i A_i grad ELBO(a_i|o_i)   and   - mean_i A_i grad cfm_loss(a_i|o_i)
        true       mean_i A_i grad log pi(a_i|o_i), back through the solved ODE, a_i fixed

    each in `groups` groups that share no episode; see `corrected_cosine`.

    Args:
        policy: the flow.
        observations: normalised [B, O].
        actions: normalised [B, D], the policy's own.
        advantages: [B], as given: neither centred nor scaled here.
        generator: of groups, t and eps.
        episodes: episode number of each row [B]; decisions of one episode share their future, so
            they stay in one group. None: each row is an episode of its own.
        groups: independent estimates, at least 2; 2 is a split half.
        steps: Runge-Kutta steps of the likelihood. On pillar_reach_flow the gradient is 1.6 % off
            with 12 and 0.3 % with 20, against 50.
        samples: (t, eps) per action for the surrogates.

    Raises UserError for advantages that are not finite or fewer episodes than groups.

    """
    ids = torch.arange(len(actions)) if episodes is None else episodes
    for name, value in (('advantages', advantages), ('episodes', ids)):
        if value.shape != (len(actions),):
            raise UserError(f'{name} must have shape [{len(actions)}], got {list(value.shape)}')
    if not torch.isfinite(advantages).all():
        raise UserError('advantages hold numbers that are not finite; check rewards and critic')
    unique, which = torch.unique(ids, return_inverse=True)
    if groups < 2 or len(unique) < groups:
        raise UserError(
            f'{groups} groups of {len(unique)} episodes: give at least 2 groups and as many '
            'episodes as groups'
        )
    dealt = torch.randperm(len(unique), generator=generator)[which] % groups
    model = policy.clone().requires_grad_(True)
    rows = [torch.nonzero(dealt == g).squeeze(1) for g in range(groups)]
    gradients = {
        kind: torch.stack(
            [
                policy_gradient(
                    model, observations[r], actions[r], advantages[r], kind, generator,
                    steps=steps, samples=samples,
                )
                for r in rows
            ]
        )
        for kind in ('elbo', 'cfm', 'true')
    }  # fmt: skip
    return Alignment(
        elbo=corrected_cosine(gradients['elbo'], gradients['true']),
        cfm=corrected_cosine(gradients['cfm'], gradients['true']),
        decisions=len(actions),
        groups=groups,
    )


def policy_gradient(
    policy: FlowPolicy,
    observations: torch.Tensor,
    actions: torch.Tensor,
    advantages: torch.Tensor,
    kind: str,
    generator: torch.Generator | None = None,
    *,
    steps: int = 16,
    samples: int = 32,
) -> torch.Tensor:
    """Return mean_i A_i grad score(a_i|o_i) [P] over the weights of the network, flattened.

    kind: `elbo`, `cfm` (minus cfm_loss) or `true` (the ODE's log-likelihood). The policy's weights
    must require gradients.
    """
    weights = list(policy.net.parameters())
    total = torch.zeros(sum(w.numel() for w in weights), dtype=actions.dtype)
    for rows in torch.arange(len(actions)).split(rows_together(policy)):
        o, a = observations[rows], actions[rows]
        if kind == 'true':
            score = ode_log_likelihood(policy, o, a, steps, differentiable=True)
        elif kind == 'elbo':
            score = elbo(policy, o, a, samples, generator)
        elif kind == 'cfm':
            draws = stratified_path_samples(
                len(a), samples, a.shape[1], generator, a.dtype, logit=False
            )
            score = -cfm_loss(policy, a, o, draws).mean(-1)
        else:
            raise UserError(f'kind must be elbo, cfm or true, got {kind!r}')
        grads = torch.autograd.grad((advantages[rows] * score).sum(), weights, allow_unused=True)
        total += torch.cat(
            [
                (torch.zeros_like(w) if g is None else g).flatten()
                for g, w in zip(grads, weights, strict=True)
            ]
        )
    return total / len(actions)


def corrected_cosine(proxy: torch.Tensor, true: torch.Tensor) -> Cosine:
    """Return the cosine of the expectations of two gradients, given G estimates of each [G, P].

    With <x, y>* the mean of <x_i, y_j> over i != j, whose expectation is <E x, E y> because
    different groups are independent:

        cos = <p, t>* / sqrt(<p, p>* <t, t>*)

    For G = 2 that is the split-half correction for attenuation (Spearman, 1904). NaN, with a note,
    when <p, p>* or <t, t>* is not positive: then no signal was found in that gradient.
    """
    products = [x @ y.T for x, y in ((proxy, true), (proxy, proxy), (true, true))]
    groups = len(proxy)
    pt, pp, tt = (_across(m, range(groups)) for m in products)
    means = [float(m.mean()) for m in products]  # products of the overall means
    raw = means[0] / math.sqrt(means[1] * means[2]) if min(means[1:]) > 0 else math.nan
    left_out = [
        _cosine(*(_across(m, [i for i in range(groups) if i != out]) for m in products))
        for out in range(groups)
    ]
    centre = sum(left_out) / groups
    error = math.sqrt((groups - 1) / groups * sum((c - centre) ** 2 for c in left_out))
    silent = [name for name, x in (('surrogate', pp), ('true', tt)) if not x > 0]
    note = ''
    if silent:
        note = f'no signal in the {" and the ".join(silent)} gradient: more decisions are needed'
    elif groups > 2 and math.isnan(error):
        note = 'no standard error: without some group no signal is left'
    if not min(means[1:]) > 0:
        note = 'a gradient is zero: all advantages are zero, or the score does not depend on them'
    return Cosine(
        value=_cosine(pt, pp, tt),
        error=error if groups > 2 and not silent else math.nan,
        raw=raw,
        reliability_proxy=max(0.0, pp / means[1]) if means[1] > 0 else math.nan,
        reliability_true=max(0.0, tt / means[2]) if means[2] > 0 else math.nan,
        norm_ratio=math.sqrt(pp / tt) if min(pp, tt) > 0 else math.nan,
        note=note,
    )


def _across(products: torch.Tensor, groups) -> float:
    """Mean of products [G, G] over pairs of different groups."""
    index = torch.tensor(list(groups))
    if len(index) < 2:
        return math.nan
    part = products[index][:, index]
    return float((part.sum() - part.trace()) / (len(index) * (len(index) - 1)))


def _cosine(pt: float, pp: float, tt: float) -> float:
    return pt / math.sqrt(pp * tt) if pp > 0 and tt > 0 else math.nan
