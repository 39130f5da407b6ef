# SPDX-License-Identifier: Apache-2.0
"""Flows for the drift tests: the exact one of a Gaussian, and one trained in few seconds.

For a ~ N(mu, s^2) and eps ~ N(0, 1), (eps - a, x_t) is jointly Gaussian, x_t = (1-t) a + t eps:
    Var x_t = (1-t)^2 s^2 + t^2,   Cov(eps - a, x_t) = t - (1-t) s^2
    v*(x, t) = -mu + (t - (1-t) s^2) / Var x_t * (x - (1-t) mu)
"""

import math

import torch
from torch import nn

from dipod_ros.policy.path import cfm_loss, draw_path_samples


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


class GaussianVelocity(nn.Module):
    """v* of N(mu, s^2) in each dimension, plus `wrong` times x; t is read from its features."""

    def __init__(self, mu, s, wrong=0.0):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.tensor(math.log(s), dtype=torch.float64))
        self.wrong = wrong

    def forward(self, x, features, observation):
        t = torch.acos(features[:, :1].clamp(-1, 1)) / math.pi  # the first feature is cos(pi t)
        variance = torch.exp(2 * self.log_s)
        slope = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
        return -self.mu + slope * (x - (1 - t) * self.mu) + self.wrong * x


def gaussian_policy(make_policy, mu=0.3, s=0.5, size=1, wrong=0.0, **options):
    policy = make_policy(size=size, **options).double()
    policy.net = GaussianVelocity([mu] * size, s, wrong)
    return policy


def train(policy, draw, steps=600, rate=1e-2, batch=256):
    """Fit a policy to actions draw(observations, generator); returns it."""
    optimizer = torch.optim.Adam(policy.net.parameters(), lr=rate)
    for step in range(steps):
        generator = rng(step)
        o = torch.randn(batch, policy.spec.observation_size, generator=generator)
        a = draw(o, generator)
        samples = draw_path_samples(batch, 2, a.shape[-1], generator)
        loss = cfm_loss(policy, a, o, samples).mean()
        for group in optimizer.param_groups:
            group['lr'] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def two_modes(o, generator):
    """Actions around +1 or -1 by chance, moved by the first observation."""
    shape = (len(o), 1)
    side = torch.sign(torch.randn(shape, generator=generator))
    return side + 0.3 * o[:, :1] + 0.3 * torch.randn(shape, generator=generator)
