# SPDX-License-Identifier: Apache-2.0
"""Velocity networks v(x, t; o). torch only.

A network has two parts so that the exported graph can hold the time features of its K fixed times
as constants: `time_features(t)` has no weights, `forward(x, features, observation)` has them all.
A network whose time and observation act through one condition vector also gives `condition` and
`step`, with forward(x, f, o) = step(x, condition(f, o)): a graph then computes the conditions of
its K times in one product. Another architecture is another class in
`build_network`, with the shapes of its weights in weight_shapes.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.policy.dit import DiffusionTransformer
from dipod_ros.policy.halving import like
from dipod_ros.policy.spec import NETWORKS
from dipod_ros.policy.unet import ConditionalUnet1D
from dipod_ros.policy.weight_shapes import TIME_FEATURES


def time_features(t: torch.Tensor) -> torch.Tensor:
    """Return sinusoidal features [B, 16] of t [B] in [0, 1], from half a period to 16 periods."""
    octaves = torch.arange(TIME_FEATURES // 2, dtype=t.dtype, device=t.device)
    angle = t[:, None] * (math.pi * 2.0 ** (octaves * 5 / 7))
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class ResidualMLP(nn.Module):
    """Residual multi-layer perceptron on [x, time features, observation].

    SiLU rather than Mish: every inference runtime has it.
    """

    # Stay float32 when the rest is halved. They are small, and rounding what comes in and goes out
    # makes most of the error: on the shipped flow 8e-3 of a standard deviation, without it 1.5e-3.
    full_precision = ('input', 'output')

    def __init__(self, action_size: int, observation_size: int, width: int, depth: int) -> None:
        """Take D, O, the hidden width and the number of hidden layers (at least 1)."""
        super().__init__()
        if width < 1 or depth < 1:
            raise UserError(f'network: width and depth must be at least 1, got {width}, {depth}')
        self.input = nn.Linear(action_size + TIME_FEATURES + observation_size, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, action_size)

    def forward(
        self, x: torch.Tensor, features: torch.Tensor, observation: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity [B, D] at x [B, D]; all inputs normalised."""
        h = nn.functional.silu(self.input(torch.cat([x, features, observation], dim=-1)))
        if self.blocks:
            h = like(h, self.blocks[0].weight)
        for block in self.blocks:
            h = h + nn.functional.silu(block(h))
        return self.output(like(h, self.output.weight))

    def with_pullback(
        self, x: torch.Tensor, features: torch.Tensor, observation: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """Return the velocity v [B, D] and a function c [B, D] -> (dv / dx)^T c [B, D].

        Written out, because exporters cannot trace automatic differentiation.
        """
        layers, z = [self.input, *self.blocks], []
        z.append(self.input(torch.cat([x, features, observation], dim=-1)))
        h = nn.functional.silu(z[0])
        for block in self.blocks:
            z.append(block(h))
            h = h + nn.functional.silu(z[-1])

        def pull(cotangent: torch.Tensor) -> torch.Tensor:
            g = cotangent @ self.output.weight
            for layer, before in zip(layers[:0:-1], z[:0:-1], strict=True):
                g = g + (g * _silu_slope(before)) @ layer.weight
            return (g * _silu_slope(z[0])) @ self.input.weight[:, : x.shape[-1]]

        return self.output(h), pull


def _silu_slope(z: torch.Tensor) -> torch.Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def build_network(
    network: Mapping[str, Any], action_size: int, observation_size: int, horizon: int = 1
) -> nn.Module:
    """Build the network a spec names, for example {kind: residual_mlp, width: 256, depth: 3}.

    Takes D = H * A, O and H. Raises UserError when the kind is unknown or its sizes do not fit.
    """
    kind = network['kind']
    sizes = {name: int(network[name]) for name in NETWORKS.get(kind, ())}
    if kind == 'residual_mlp':
        return ResidualMLP(action_size, observation_size, **sizes)
    shape = (action_size // horizon, horizon, observation_size, TIME_FEATURES)
    if kind == 'dit':
        return DiffusionTransformer(*shape, **sizes)
    if kind == 'unet':
        return ConditionalUnet1D(*shape, **sizes)
    raise UserError(f'unknown network kind {kind!r}')
