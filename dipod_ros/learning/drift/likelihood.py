# SPDX-License-Identifier: Apache-2.0
"""Exact log-likelihoods of a flow policy: of what its sampler did, and of any action. torch only.

All densities are those of normalised actions [B, D], in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from dipod_ros.errors import UserError
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec

DETERMINISTIC = ('euler', 'midpoint')
# Tangents carried together, D for each row: they should fit in the cache, and the graph of a
# differentiable solve in memory (which grows with this, the width and the steps).
TANGENTS = 1024
# Rows at a time for a caller that may want to stop: 6 s of a core for the default DiT.
STOPPABLE_ROWS = 8


def executed_log_likelihood(
    policy: FlowPolicy,
    observations: torch.Tensor,
    noise: torch.Tensor,
    between: Callable[[], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return actions [B, D] and log pi_K(a|o) [B] of the K-step policy as it is executed.

    The sampler is a map f from noise to action, so (change of variables, arXiv 1806.07366, Eq. 6)

        log pi_K(f(z)|o) = log N(z; 0, I) - log |det df/dz|

    with the Jacobian of all K steps, column by column. Exact for the sampler itself, however few
    its steps; where f folds (several z give one action) it is the share of this z alone.

    Args:
        policy: its own sampler is the one that is differentiated.
        observations: normalised [B, O].
        noise: standard normal numbers [B, D].
        between: called before every few rows; what it raises ends the work.

    Raises UserError for a sampler that draws noise between its steps, and for wrong shapes.

    """
    require_deterministic(policy.spec.sampler)
    check_rows(policy, observations, noise, 'noise')

    @torch.no_grad()
    def chunk(o: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        action = policy.sample(o, z)
        columns = jacobian_columns(lambda x: policy.sample(o, x), z)
        log_det = torch.linalg.slogdet(columns.permute(1, 2, 0)).logabsdet
        return action, standard_normal_log_density(z) - log_det

    rows = rows_together(policy)
    if between is not None:
        rows = min(rows, STOPPABLE_ROWS)
    pairs = []
    for o, z in zip(observations.split(rows), noise.split(rows), strict=True):
        if between is not None:
            between()
        pairs.append(chunk(o, z))
    actions, log_prob = zip(*pairs, strict=True)
    return torch.cat(actions), torch.cat(log_prob)


def ode_log_likelihood(
    policy: FlowPolicy,
    observations: torch.Tensor,
    actions: torch.Tensor,
    steps: int = 50,
    differentiable: bool = False,
) -> torch.Tensor:
    """Return log pi(a|o) [B] of any action under the flow solved exactly.

    The probability-flow likelihood (arXiv 2011.13456, Eq. 39; arXiv 1810.01367, Eq. 3) in the
    convention where the action is at t = 0:

        dx/dt = v(x, t; o), x(0) = a,   log pi(a|o) = log N(x(1); 0, I) + int_0^1 tr dv/dx dt

    by classical Runge-Kutta on x and the integral together, with the exact trace.

    Args:
        policy: the flow; its sampler does not matter here.
        observations: normalised [B, O].
        actions: normalised [B, D].
        steps: Runge-Kutta steps, four evaluations each.
        differentiable: keep the graph, so that the result can be differentiated in the weights
            (the memory grows with B * D * steps: give few rows).

    """
    if steps < 1:
        raise UserError(f'steps must be at least 1, got {steps}')
    check_rows(policy, observations, actions, 'actions')
    rows = rows_together(policy)
    with torch.set_grad_enabled(differentiable):
        parts = [
            _integrate(policy, o, a, steps)
            for o, a in zip(observations.split(rows), actions.split(rows), strict=True)
        ]
    return torch.cat(parts)


def velocity_and_divergence(
    policy: FlowPolicy, x: torch.Tensor, t: float, observation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return v [B, D] and tr dv/dx [B] at x [B, D]."""
    times = torch.full((len(x),), t, dtype=x.dtype)

    def field(y: torch.Tensor) -> torch.Tensor:
        return policy.velocity(y, times, observation)

    columns = jacobian_columns(field, x)
    return field(x), columns.diagonal(dim1=0, dim2=2).sum(-1)


def jacobian_columns(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """Return [D, B, D'], the derivative of each row's function along each of the D inputs.

    `function` maps rows [B, D] to rows [B, D'] independently, so one forward-mode product carries
    a whole batch.
    """
    basis = torch.eye(x.shape[-1], dtype=x.dtype)

    def along(direction: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(function, (x,), (direction.expand_as(x),))[1]

    return torch.func.vmap(along)(basis)


def rows_together(policy: FlowPolicy) -> int:
    """Return how many rows to differentiate at a time."""
    return max(1, TANGENTS // policy.spec.action_size)


def standard_normal_log_density(x: torch.Tensor) -> torch.Tensor:
    """Return log N(x; 0, I) of rows [B, D], as [B]."""
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2 * math.pi))


def _integrate(
    policy: FlowPolicy, observation: torch.Tensor, action: torch.Tensor, steps: int
) -> torch.Tensor:
    h = 1.0 / steps
    x, integral = action, torch.zeros(len(action), dtype=action.dtype)
    for k in range(steps):
        t = k * h
        v1, d1 = velocity_and_divergence(policy, x, t, observation)
        v2, d2 = velocity_and_divergence(policy, x + h / 2 * v1, t + h / 2, observation)
        v3, d3 = velocity_and_divergence(policy, x + h / 2 * v2, t + h / 2, observation)
        v4, d4 = velocity_and_divergence(policy, x + h * v3, t + h, observation)
        x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        integral = integral + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return standard_normal_log_density(x) + integral


def require_deterministic(sampler: SamplerSpec) -> None:
    """Raise UserError for a sampler that draws noise between its steps."""
    if sampler.solver not in DETERMINISTIC:
        raise UserError(
            f'sampler {sampler} draws noise between its steps, so its likelihood is not a change '
            'of variables; use a deterministic sampler such as midpoint-5'
        )


def check_rows(
    policy: FlowPolicy, observations: torch.Tensor, rows: torch.Tensor, name: str
) -> None:
    """Raise UserError unless observations are [B, O] and rows [B, D], with B >= 1."""
    sizes = (policy.spec.observation_size, policy.spec.action_size)
    for what, value, size in zip(('observations', name), (observations, rows), sizes, strict=True):
        if value.ndim != 2 or value.shape[1] != size:
            raise UserError(f'{what} must have shape [B, {size}], got {list(value.shape)}')
    if not 0 < len(observations) == len(rows):
        raise UserError(
            f'observations and {name} must be as many, at least one: '
            f'{len(observations)} and {len(rows)}'
        )
