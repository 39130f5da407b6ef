# SPDX-License-Identifier: Apache-2.0
"""Guides a flow sampler towards known actions: inpainting by pseudo-inverse guidance. torch only.

Real-time chunking (arXiv 2506.07339, section on inference-time inpainting; the guidance is that of
arXiv 2310.04432) has a chunk continue the steps that are committed before it. In our convention
(t = 0 action, t = 1 noise, tau = 1 - t there, velocity of the opposite sign) a step evaluates

    a_hat = x - t v(x, t)                                 the action that x is heading for
    g     = (d a_hat / d x)^T W (y - a_hat)               a vector-Jacobian product
    v'    = v - min(beta, ((1-t)^2 + t^2) / ((1-t) t)) g

with y the known actions and W the diagonal of weights. With W = 0 it is the plain sampler, to the
bit. The exporters of torch cannot trace a vector-Jacobian product, so networks write their own
(`with_pullback`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dipod_ros.errors import UserError
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.networks import time_features
from dipod_ros.policy.samplers import Velocity, sample
from dipod_ros.policy.spec import SamplerSpec

# The bound beta that arXiv 2506.07339 found good; fewer steps than this bear less.
STRONGEST = 5.0
# pull(c [B, D]) -> (dv / dx)^T c [B, D]
Pullback = Callable[[torch.Tensor], torch.Tensor]
# field(x [B, D], t) -> (v [B, D], its pullback there)
Field = Callable[[torch.Tensor, float], tuple[torch.Tensor, Pullback]]


def strength(t: float, spec: SamplerSpec) -> float:
    """Return the factor of the guidance at time t in (0, 1].

    Bounded by 5 and by the number of steps: one step moves x by its share 1 / K of the velocity,
    so more than K would overshoot the known actions.
    """
    bound = min(STRONGEST, float(spec.steps))
    if t >= 1.0:
        return bound
    return min(bound, ((1 - t) ** 2 + t**2) / ((1 - t) * t))


def guide(field: Field, known: torch.Tensor, weights: torch.Tensor, spec: SamplerSpec) -> Velocity:
    """Return the velocity field that also heads for known actions.

    Args:
        field: the policy's field with its pullback.
        known: normalised actions [B, D].
        weights: [B, D] within 0..1; 0 leaves an entry free, whatever `known` says of it.
        spec: the sampler that will integrate the field.

    """

    def guided(x: torch.Tensor, t: float) -> torch.Tensor:
        v, pull = field(x, t)
        error = weights * (known - (x - t * v))
        return v - strength(t, spec) * (error - t * pull(error))

    return guided


def guided_sample(
    policy: FlowPolicy,
    observation: torch.Tensor,
    noise: torch.Tensor,
    prefix: torch.Tensor,
    weights: torch.Tensor,
    features: Callable[[float], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return raw chunks [B, H, A] that continue known steps.

    Args:
        policy: one whose network has `with_pullback`.
        observation: raw [B, O].
        noise: [B, N].
        prefix: known steps [B, H, A] in rad per control step; anything where the weight is 0.
        weights: [B, H] within 0..1.
        features: time features [1, 16] of a time; an exported graph has them as constants.

    """
    require_pullback(policy)
    spec = policy.spec
    o = policy.normalizer.observation(observation)
    known = policy.normalizer.action(prefix.reshape(-1, spec.action_size))
    per_entry = weights[:, :, None].expand(-1, -1, len(spec.joints))
    of_time = features or (lambda t: time_features(torch.full((1,), t, dtype=noise.dtype)))

    def field(x: torch.Tensor, t: float) -> tuple[torch.Tensor, Pullback]:
        return policy.net.with_pullback(x, of_time(t).expand(x.shape[0], -1), o)

    velocity = guide(field, known, per_entry.reshape(-1, spec.action_size), spec.sampler)
    x = sample(velocity, noise, spec.sampler)
    raw = policy.normalizer.action_inverse(x)
    return raw.reshape(-1, spec.horizon, len(spec.joints))


def require_pullback(policy: FlowPolicy) -> None:
    """Raise UserError for a network that does not say how its velocity changes with the action."""
    if not hasattr(policy.net, 'with_pullback'):
        raise UserError(
            f'a {policy.spec.network["kind"]} network cannot be guided: '
            'use seam replace or ensemble'
        )
