# SPDX-License-Identifier: Apache-2.0
"""A small conditional 1-D U-Net along the H steps of a chunk. torch.

The network of Diffusion Policy (Chi et al., arXiv 2303.04137: temporal convolutions with the FiLM
conditioning of arXiv 1709.07871), with SiLU instead of Mish, which not every runtime has. Group
normalisation, not batch normalisation: its statistics are no weights that a swap could forget.
"""

from __future__ import annotations

import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.policy.halving import like

GROUPS = 8


class ConditionalUnet1D(nn.Module):
    """Level i has width * 2^i channels at 1 / 2^i of the steps; depth levels."""

    full_precision = ('time', 'observation', 'down.0', 'output')

    def __init__(
        self,
        joints: int,
        horizon: int,
        observation_size: int,
        time_size: int,
        width: int,
        depth: int,
    ) -> None:
        """Take A, H, O, the number of time features, the channels of level 0 and the levels."""
        super().__init__()
        if depth < 1 or width < 1 or width % GROUPS:
            raise UserError(f'network unet: width must be a multiple of {GROUPS}, got {width}')
        self.joints, self.horizon = joints, horizon
        # Halving and doubling must meet again, so the steps are padded with zeros at the end.
        self.padding = -horizon % 2 ** (depth - 1)
        channels = [width * 2**i for i in range(depth)]
        self.time = nn.Sequential(
            nn.Linear(time_size, width), nn.SiLU(), nn.Linear(width, 2 * width)
        )
        self.observation = nn.Linear(observation_size, 2 * width)
        self.down = nn.ModuleList(
            _Block(before, after)
            for before, after in zip([joints, *channels], channels, strict=False)
        )
        self.downsample = nn.ModuleList(
            nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1]
        )
        self.middle = _Block(channels[-1], channels[-1])
        self.upsample = nn.ModuleList(
            nn.ConvTranspose1d(2 * c, c, 4, stride=2, padding=1) for c in channels[-2::-1]
        )
        self.up = nn.ModuleList(_Block(2 * c, c) for c in channels[-2::-1])
        self.output = nn.Conv1d(width, joints, 1)
        blocks = [*self.down, self.middle, *self.up]
        # The FiLM parameters of all blocks in one matrix: a sampler's K times share one product.
        self.film = nn.Linear(2 * width, 2 * sum(b.channels for b in blocks))
        # Scales are relative to one; added here for all blocks at once, not in each.
        ones = [torch.cat([torch.ones(b.channels), torch.zeros(b.channels)]) for b in blocks]
        self.register_buffer('neutral', torch.cat(ones), persistent=False)

    def condition(self, features: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Return what `step` needs of time features [B, F] and observation [B, O] (or [1, O])."""
        c = self.time(features) + self.observation(observation)
        return self.film(like(nn.functional.silu(c), self.film.weight)) + self.neutral

    def step(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the velocity [B, H * A] at x [B, H * A] under a condition of B rows."""
        film = _Film(condition[:, :, None])
        h = x.reshape(-1, self.horizon, self.joints).transpose(1, 2)
        if self.padding:
            h = nn.functional.pad(h, (0, self.padding))
        kept = []
        for i, block in enumerate(self.down):
            h = like(block(h, film), self.film.weight)
            if i < len(self.downsample):
                kept.append(h)
                h = self.downsample[i](h)
        h = self.middle(h, film)
        for upsample, block in zip(self.upsample, self.up, strict=True):
            h = torch.cat([upsample(h), kept.pop()], dim=1)
            h = block(h, film)
        h = self.output(like(h, self.output.weight))
        if self.padding:
            h = h.narrow(2, 0, self.horizon)
        return h.transpose(1, 2).reshape(-1, self.horizon * self.joints)

    def forward(
        self, x: torch.Tensor, features: torch.Tensor, observation: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity [B, H * A]; all inputs normalised."""
        return self.step(x, self.condition(features, observation))


class _Block(nn.Module):
    """Two convolutions with group normalisation; FiLM after the first; a residual around both."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.channels = after
        self.first = nn.Conv1d(before, after, 3, padding=1)
        self.first_norm = _GroupNorm(after, affine=False)  # FiLM scales and shifts
        self.second = nn.Conv1d(after, after, 3, padding=1)
        self.second_norm = _GroupNorm(after)
        self.around = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, film: _Film) -> torch.Tensor:
        own = self.first.weight
        scale, shift = (like(film.take(self.channels), own) for _ in range(2))
        h = nn.functional.silu(self.first_norm(self.first(x)) * scale + shift)
        return self.around(x) + nn.functional.silu(self.second_norm(self.second(h)))


class _GroupNorm(nn.GroupNorm):
    """Group normalisation (arXiv 1803.08494) written as a layer normalisation of each group.

    Only in the ONNX graph: runtimes have a kernel for the one and unfold the other into many nodes,
    while PyTorch has a kernel for either.
    """

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(GROUPS, channels, affine=affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.onnx.is_in_onnx_export():
            return super().forward(x)
        grouped = x.reshape(-1, GROUPS, x.shape[1] // GROUPS * x.shape[2])
        h = nn.functional.layer_norm(grouped, grouped.shape[-1:], eps=self.eps)
        h = h.reshape(x.shape)
        return h * self.weight[:, None] + self.bias[:, None] if self.affine else h


class _Film:
    """Deals out scales and shifts [B, C, 1] from one tensor, in order.

    Slices: split exports as a sequence, which TensorRT does not have.
    """

    def __init__(self, condition: torch.Tensor) -> None:
        self._condition, self._next = condition, 0

    def take(self, channels: int) -> torch.Tensor:
        first, self._next = self._next, self._next + channels
        return self._condition[:, first : self._next]
