# SPDX-License-Identifier: Apache-2.0
"""K-step samplers: integrate a velocity field from noise (t=1) to an action (t=0). torch only.

Noise is always an argument, so that a sample can be repeated, replayed, exported and distilled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dipod_ros.policy.spec import SamplerSpec

# v(x [B, D], t) -> [B, D], with t a Python float
Velocity = Callable[[torch.Tensor, float], torch.Tensor]


def evaluation_times(spec: SamplerSpec) -> list[float]:
    """Return the times at which the velocity is evaluated, in order; one per evaluation."""
    dt = 1.0 / spec.steps
    times = []
    for k in range(spec.steps):
        t = 1.0 - k * dt
        times.append(t)
        if spec.solver == 'midpoint':
            times.append(t - dt / 2)
    return times


def ancestral_std(t: float, s: float) -> float:
    """Return the std of x_s given x_t and the action, for 0 <= s < t <= 1 on the linear path.

    The posterior of the forward process with alpha=1-t, sigma=t (arXiv 2107.00630, Eq. 30):
        var = s^2 (1 - ((1-t) s / ((1-s) t))^2)
    """
    ratio = (1 - t) * s / ((1 - s) * t)
    return s * max(0.0, 1 - ratio**2) ** 0.5


def sample(velocity: Velocity, noise: torch.Tensor, spec: SamplerSpec) -> torch.Tensor:
    """Integrate from noise to actions.

    Args:
        velocity: the field v(x, t).
        noise: standard normal numbers [B, D], [B, steps * D] for the `sde` solver and
            [B, (1 + steps) * D] for `chain`: the start, then what is added after each step.
        spec: solver and steps.

    Returns:
        normalised actions [B, D].

    `euler`:    x <- x - v(x, t) / K
    `midpoint`: x <- x - v(x - v(x, t) / 2K, t - 1/2K) / K
    `sde`:      x <- (1-s) a_hat + sqrt(s^2 - var) eps_hat + sqrt(var) z, with a_hat = x - t v,
                eps_hat = x + (1-t) v and var the ancestral variance times sde_scale^2: the sampler
                for which the denoising loss is an evidence bound.
    `chain`:    x <- x - v(x, t) / K + noise_std z, the last step included, so that every step is a
                Gaussian with a density (arXiv 2409.00588, section 4; arXiv 2505.22094).

    """
    dt = 1.0 / spec.steps
    count = spec.noise_size(1)
    draws = noise.chunk(count, dim=-1) if count > 1 else (noise,)
    x = draws[0]
    for k in range(spec.steps):
        t = 1.0 - k * dt
        v = velocity(x, t)
        if spec.solver == 'euler':
            x = x - dt * v
        elif spec.solver == 'midpoint':
            x = x - dt * velocity(x - dt / 2 * v, t - dt / 2)
        elif spec.solver == 'chain':
            x = x - dt * v + spec.noise_std * draws[k + 1]
        else:
            s = max(0.0, t - dt) if k < spec.steps - 1 else 0.0
            std = spec.sde_scale * ancestral_std(t, s)
            x = (1 - s) * (x - t * v) + (s**2 - std**2) ** 0.5 * (x + (1 - t) * v)
            if std > 0:
                x = x + std * draws[k + 1]
    return x
