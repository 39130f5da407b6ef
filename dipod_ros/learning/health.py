# SPDX-License-Identifier: Apache-2.0
"""Is the policy still a flow that fits its own actions? Health check and ELBO gap. torch only.

A policy that learns from its own samples can collapse onto one action per state, or drift until its
velocity field no longer describes what it does. Both show on fresh own samples; what they mean is
said in collapse.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dipod_ros.learning.collapse import HealthConfig, has_collapsed
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import T_MAX, T_MIN, PathSamples, cfm_loss, draw_path_samples


@torch.no_grad()
def own_sample_statistics(
    policy: FlowPolicy, observations: torch.Tensor, actions_per_state: int, generator
) -> tuple[float, float]:
    """Return (mean CFM loss of fresh own actions, mean per-state std of normalised actions)."""
    states = observations.shape[0]
    o = observations.repeat_interleave(actions_per_state, 0)
    noise = torch.randn(o.shape[0], policy.spec.noise_size, generator=generator)
    actions = policy.sample(o, noise)
    samples = draw_path_samples(o.shape[0], 4, actions.shape[-1], generator)
    loss = float(cfm_loss(policy, actions, o, samples).mean())
    std = actions.reshape(states, actions_per_state, -1).std(1).mean()
    return loss, float(std)


def check_health(
    policy: FlowPolicy,
    reference: FlowPolicy,
    observations: torch.Tensor,
    config: HealthConfig,
    generator: torch.Generator,
    keeps_flow: bool = True,
    returns: Sequence[float] = (),
) -> dict[str, float]:
    """Compare a policy with the one it started from, on the same normalised observations [B, O].

    Returns action_std, action_std_ratio, cfm_own, cfm_ratio and collapsed (0 or 1). `keeps_flow`
    and `returns` are those of `collapse.has_collapsed`; without returns narrow actions are always
    a collapse.
    """
    o = observations[torch.randperm(len(observations), generator=generator)[: config.states]]
    cfm, std = own_sample_statistics(policy, o, config.actions_per_state, generator)
    cfm_start, std_start = own_sample_statistics(reference, o, config.actions_per_state, generator)
    cfm_ratio, std_ratio = cfm / max(cfm_start, 1e-8), std / max(std_start, 1e-8)
    collapsed = has_collapsed(cfm_ratio, std_ratio, returns, config, keeps_flow)
    return {
        'action_std': std,
        'action_std_ratio': std_ratio,
        'cfm_own': cfm,
        'cfm_ratio': cfm_ratio,
        'collapsed': float(collapsed),
    }


def elbo_gap_nats(
    policy: FlowPolicy,
    observations: torch.Tensor,
    generator: torch.Generator,
    *,
    actions: int = 2048,
    fit_steps: int = 100,
    batch: int = 512,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Estimate the on-policy gap E[log pi(a) - ELBO(a)] in nats, without any likelihood.

    The gap is the excess of the ELBO-weighted loss on own samples over the best velocity field for
    those samples (Albergo et al., arXiv 2303.08797; Kingma & Gao, arXiv 2303.00848, Eq. 9):

        gap = int ((1-t)/t) E |v_theta - v*|^2 dt = L_w(theta) - min_v L_w(v)

    The minimum is approached by fitting a copy for `fit_steps`, judged on held-out samples: in
    expectation below the gap, and 0 when the copy finds nothing to improve. It is no strict bound:
    the held-out samples are a quarter of `actions`, and the best of the copies, one every 25 steps
    and the policy itself, is chosen on the very samples that it is judged on, which flatters it a
    little. Mostly it is far below: in 35 dimensions a cloned policy's 10 nats show as 2, though it
    follows growth (see docs/drift.md, and `drift.report.executed_gap` for the gap itself at the
    same cost). Never read it without the action std: a collapsed policy has a small gap too.
    `between` is called before each step of the fit; what it raises ends it.
    """
    with torch.no_grad():
        index = torch.randint(len(observations), (actions,), generator=generator)
        o = observations[index]
        a = policy.sample(o, torch.randn(actions, policy.spec.noise_size, generator=generator))
    held_out = actions // 4
    fitted = policy.clone().requires_grad_(True)
    # A large rate that falls to 0 finds more in fewer steps than a small constant one.
    rate = 1e-3
    optimizer = torch.optim.Adam(fitted.net.parameters(), lr=rate)

    def weighted(model: FlowPolicy, rows: torch.Tensor, samples: PathSamples) -> torch.Tensor:
        # cfm_loss carries 1/sqrt(D); logit-uniform t makes the weight (1-t)^2 (du = dt/(t(1-t))).
        loss = cfm_loss(model, a[rows], o[rows], samples) * a.shape[-1] ** 0.5
        span = 2 * torch.logit(torch.tensor(T_MAX))
        return ((1 - samples.t).square() * loss).mean() * span

    def draw(count: int, per_action: int) -> PathSamples:
        u = torch.rand(count, per_action, generator=generator)
        low, high = torch.logit(torch.tensor(T_MIN)), torch.logit(torch.tensor(T_MAX))
        eps = torch.randn(count, per_action, a.shape[-1], generator=generator)
        return PathSamples(torch.sigmoid(low + u * (high - low)), eps)

    rows = torch.arange(held_out)
    probe = draw(held_out, 8)
    with torch.no_grad():
        start = float(weighted(policy, rows, probe))
    best = start
    for step in range(fit_steps):
        between()
        pick = torch.randint(held_out, actions, (batch,), generator=generator)
        loss = weighted(fitted, pick, draw(batch, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]['lr'] = rate * (1 - step / fit_steps)
        optimizer.step()
        if step % 25 == 24:
            with torch.no_grad():
                best = min(best, float(weighted(fitted, rows, probe)))
    return start - best
