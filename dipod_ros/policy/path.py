# SPDX-License-Identifier: Apache-2.0
"""The probability path and its evidence bound: conditional flow matching. torch, no ROS.

Convention (that of FPO, arXiv 2507.21053, and DiPOD, arXiv 2606.13795): t=0 is the action, t=1 is
noise, x_t = (1-t) a + t eps, and the velocity target is u = eps - a.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dipod_ros.policy.flow import FlowPolicy

# t is kept away from both ends, where the target velocity is all noise or all action
# (arXiv 2606.13795, appendix F).
T_MIN, T_MAX = 0.005, 0.995
# Of a network of a few hundred units, so that its activations (1 MB a layer of 256) stay in a
# core's own cache.
EVALUATIONS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class PathSamples:
    """Monte-Carlo samples of the bound for a batch: t [B, S], eps [B, S, D].

    The same samples score the old and the new policy, or the ratio is noise (arXiv 2507.21053,
    Eq. 6).
    """

    t: torch.Tensor
    eps: torch.Tensor

    def __getitem__(self, index: torch.Tensor | slice) -> PathSamples:
        return PathSamples(self.t[index], self.eps[index])


def draw_path_samples(
    batch: int, samples: int, action_size: int, generator: torch.Generator | None = None
) -> PathSamples:
    """Draw t ~ U(T_MIN, T_MAX) and eps ~ N(0, I) for `batch` actions of size D."""
    t = torch.rand(batch, samples, generator=generator) * (T_MAX - T_MIN) + T_MIN
    return PathSamples(t, torch.randn(batch, samples, action_size, generator=generator))


def cfm_loss(
    policy: FlowPolicy, action: torch.Tensor, observation: torch.Tensor, samples: PathSamples
) -> torch.Tensor:
    """Conditional flow-matching loss of each sample, [B, S].

        ell(t, eps) = |v_theta(x_t, t; o) - (eps - a)|^2 / sqrt(D)

    FPO (arXiv 2507.21053, section 3) with the sum over dimensions divided by sqrt(D) (FPO++, arXiv
    2602.02481): -ell is a one-sample estimate of the evidence bound of noise-perturbed actions, up
    to scale and a constant.

    Args:
        policy: the flow policy.
        action: normalised actions [B, D].
        observation: normalised observations [B, O].
        samples: t [B, S] and eps [B, S, D].

    """
    batch, count = samples.t.shape
    dim = action.shape[-1]
    a = action[:, None, :].expand(batch, count, dim)
    t = samples.t[..., None]
    x_t = (1 - t) * a + t * samples.eps
    o = observation[:, None, :].expand(batch, count, observation.shape[-1])
    v = policy.velocity(
        x_t.reshape(-1, dim), samples.t.reshape(-1), o.reshape(-1, observation.shape[-1])
    )
    error = v.reshape(batch, count, dim) - (samples.eps - a)
    return error.square().sum(-1) / dim**0.5


@torch.no_grad()
def many_cfm_losses(
    policy: FlowPolicy, action: torch.Tensor, observation: torch.Tensor, samples: PathSamples
) -> torch.Tensor:
    """Return what `cfm_loss` returns, in parts that fit a processor's cache, without gradients.

    Tens of thousands of evaluations at once take twice as long: their activations do not fit.
    """
    step = max(1, EVALUATIONS_AT_ONCE // samples.t.shape[1])
    parts = [slice(i, i + step) for i in range(0, max(1, len(action)), step)]
    return torch.cat([cfm_loss(policy, action[p], observation[p], samples[p]) for p in parts])
