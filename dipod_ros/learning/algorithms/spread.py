# SPDX-License-Identifier: Apache-2.0
"""Samplers whose actions are narrower than the policy, and so must not teach it. No torch.

K-step Euler shrinks the spread of the actions (std x0.68 at K=4 and x0.86 at K=10 for a Gaussian of
std 0.5). What is fitted to such actions makes the flow itself as narrow, and its next actions are
narrower again: a little in each update, until hardly any spread is left.
"""

from __future__ import annotations

from dipod_ros.errors import UserError
from dipod_ros.policy.spec import SamplerSpec

REMEDY = 'dipod finetune --sampler midpoint-5, or sampler of the trainer'
# So many Euler steps lose 2 % of the spread, as little as matters.
ENOUGH_EULER_STEPS = 64


def narrows(sampler: SamplerSpec) -> bool:
    """Return whether a sampler's own actions are clearly narrower than the policy."""
    return sampler.solver == 'euler' and sampler.steps < ENOUGH_EULER_STEPS


def require_spread(sampler: SamplerSpec) -> None:
    """Raise UserError for a sampler whose own actions are narrower than the policy."""
    if narrows(sampler):
        raise UserError(
            f'self-distillation needs a sampler that keeps the spread of the actions, '
            f'{sampler} does not: choose midpoint ({REMEDY})'
        )
