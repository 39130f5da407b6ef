# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer over the H steps of a chunk, conditioned by adaLN-zero. torch.

Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2: the
condition c shifts and scales the normalised tokens and gates each residual branch,

    h <- h + g1 * Attention(s1 + (1 + m1) * LN(h))
    h <- h + g2 * MLP(s2 + (1 + m2) * LN(h))          with (s, m, g) = W SiLU(c) + b

and W, b start at zero, so that every block starts as the identity.
"""

from __future__ import annotations

import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.policy.halving import like
from dipod_ros.policy.weight_shapes import MLP_RATIO


class DiffusionTransformer(nn.Module):
    """Tokens are the control steps of the chunk; time and observation condition all of them."""

    full_precision = ('embed', 'time', 'observation', 'output')

    def __init__(
        self,
        joints: int,
        horizon: int,
        observation_size: int,
        time_size: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        """Take A, H, O, the number of time features, and the sizes; width is split among heads."""
        super().__init__()
        if min(width, depth, heads) < 1 or width % heads:
            raise UserError(
                f'network dit: width must be a multiple of heads, got {width} and {heads}'
            )
        self.joints, self.horizon, self.width, self.depth = joints, horizon, width, depth
        self.embed = nn.Linear(joints, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, horizon, width))
        self.time = nn.Sequential(nn.Linear(time_size, width), nn.SiLU(), nn.Linear(width, width))
        self.observation = nn.Sequential(
            nn.Linear(observation_size, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        # All blocks' modulations in one matrix: the K times of a sampler then share one product.
        self.modulation = nn.Linear(width, (6 * depth + 2) * width)
        # Scales are relative to one; added here for all blocks at once, not in each.
        row = torch.zeros(6 * depth + 2, width)
        row[[*(6 * i + j for i in range(depth) for j in (1, 4)), 6 * depth + 1]] = 1.0
        self.register_buffer('neutral', row.reshape(-1), persistent=False)
        self.output = nn.Linear(width, joints)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def condition(self, features: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Return what `step` needs of time features [B, F] and observation [B, O] (or [1, O])."""
        c = self.time(features) + self.observation(observation)
        c = like(nn.functional.silu(c), self.modulation.weight)
        return self.modulation(c) + self.neutral

    def step(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the velocity [B, H * A] at x [B, H * A] under a condition of B rows."""
        rows = condition.reshape(-1, 6 * self.depth + 2, self.width)
        # Slices: split and unbind export as sequences, which TensorRT does not have.
        m = [rows[:, i : i + 1] for i in range(6 * self.depth + 2)]
        h = self.embed(x.reshape(-1, self.horizon, self.joints))
        h = like(h, self.position) + self.position
        for i, block in enumerate(self.blocks):
            h = block(h, m[6 * i : 6 * i + 6])
        h = _modulated(h, *m[6 * self.depth :])
        return self.output(like(h, self.output.weight)).reshape(-1, self.horizon * self.joints)

    def forward(
        self, x: torch.Tensor, features: torch.Tensor, observation: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity [B, H * A]; all inputs normalised."""
        return self.step(x, self.condition(features, observation))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate='tanh'),
            nn.Linear(MLP_RATIO * width, width),
        )

    def forward(self, h: torch.Tensor, m: list[torch.Tensor]) -> torch.Tensor:
        h = h + m[2] * self._attend(_modulated(h, m[0], m[1]))
        return h + m[5] * self.mlp(_modulated(h, m[3], m[4]))

    def _attend(self, h: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = h.shape
        qkv = self.qkv(h).reshape(batch, tokens, 3, self.heads, self.width // self.heads)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        # Written out: the fused operator exports as thrice the nodes, shapes computed at run time.
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5)
        mixed = scores.softmax(-1) @ v
        return self.project(mixed.transpose(1, 2).reshape(batch, tokens, self.width))


def _modulated(h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return shift + scale * nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6)
