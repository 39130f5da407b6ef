# SPDX-License-Identifier: Apache-2.0
"""The networks of an off-policy critic: an ensemble with layer normalisation. torch, no ROS."""

from __future__ import annotations

import torch
from torch import nn

from dipod_ros.policy.spec import PolicySpec


class EnsembleLinear(nn.Module):
    """E linear layers side by side: [E, B, I] -> [E, B, J]."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        """Draw the weights of each from torch's global seed, as nn.Linear does."""
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter((torch.rand(members, inputs, outputs) * 2 - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply layer e to x[e]."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """Layer normalisation [E, B, J] with weights of each member's own."""

    def __init__(self, members: int, size: int) -> None:
        """Begin with the weights 1 and 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each row."""
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class QNetwork(nn.Module):
    """E networks of (o, k, a): [B, O], [B], [B, D] -> [E, B].

    Of a chunk of joint increments they see its mean up to the middle and up to the end, which is
    where the joints are asked to be then: 14 numbers instead of 35, and better advantages.
    """

    def __init__(self, spec: PolicySpec, members: int, width: int, depth: int) -> None:
        """Build the networks with random weights from torch's global seed."""
        super().__init__()
        self.members, self.shape = members, (spec.horizon, len(spec.joints))
        # Steps up to which the mean of a chunk is taken; empty where it is seen whole.
        self.ends: list[int] = []
        if spec.action == 'joint_delta':
            self.ends = sorted({(spec.horizon + 1) // 2, spec.horizon})
        size = spec.observation_size + 1 + len(spec.joints) * (len(self.ends) or spec.horizon)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [EnsembleLinear(members, size, width)]
            layers += [EnsembleNorm(members, width), nn.SiLU()]
            size = width
        layers.append(EnsembleLinear(members, size, 1))
        self.layers = nn.Sequential(*layers)

    def forward(
        self, observation: torch.Tensor, clock: torch.Tensor, action: torch.Tensor
    ) -> torch.Tensor:
        """Return values [E, B]."""
        if self.ends:
            steps = action.unflatten(1, self.shape)
            action = torch.cat([steps[:, :end].mean(1) for end in self.ends], dim=1)
        x = torch.cat([observation, clock[:, None], action], dim=1)
        return self.layers(x.expand(self.members, -1, -1)).squeeze(-1)
