# SPDX-License-Identifier: Apache-2.0
"""Image encoders: one picture in, a few numbers out. torch only.

An encoder is a network of its own, trained together with the flow in behaviour cloning and frozen
after that. SiLU and group norm: no state of a batch, and every inference runtime has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from dipod_ros.policy.image import (
    GROUP,
    PREFIX,
    check_encoder_weights,
    golden_image,
    weights_of,
)
from dipod_ros.policy.spec import PolicySpec, Stream

# Features stay within this, smoothly: a policy clamps what it observes (flow.OBSERVATION_CLAMP),
# and what training saw beyond the clamp, acting would not.
BOUND = 6.0
# Pictures encoded at a time: bounds the memory.
BATCH = 64


class KeypointEncoder(nn.Module):
    """Convolutions, then where in the picture each of K maps is active, then a small head.

    Spatial softmax (Levine et al., arXiv 1504.00702, section 5.1): p_k(i, j) is the softmax of map
    k over the picture, and (sum p x, sum p y) the expected place of what it looks for, in -1..1.
    Beside the place stands the expected value of the map, which tells whether there was anything.
    The head is a linear layer, after a hidden one where the settings give its width: what a place
    in the world is of places in a picture is not linear.
    """

    def __init__(self, stream: Stream) -> None:
        """Take an image stream; weights are random, from torch's global seed."""
        super().__init__()
        settings = stream.image
        channels, keypoints = settings.encoder['channels'], settings.encoder['keypoints']
        strides, hidden = settings.encoder['strides'], settings.encoder['hidden']
        before = [settings.shape[2], *channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before[i], count, 5 if i == 0 else 3, strides[i], padding=2 if i == 0 else 1)
            for i, count in enumerate(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(count // GROUP, count) for count in channels)
        self.maps = nn.Conv2d(channels[-1], keypoints, 1)
        if hidden:
            self.hidden = nn.Linear(3 * keypoints, hidden)
        self.head = nn.Linear(hidden or 3 * keypoints, stream.size)
        shrink = math.prod(strides)  # ceil of a ceil is the ceil of the whole
        height, width = (-(-side // shrink) for side in settings.shape[:2])
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing='ij'
        )
        self.register_buffer('grid', torch.stack([x.ravel(), y.ravel()], 1), persistent=False)

    def keypoints(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return [B, 3 K] for uint8 pictures [B, H, W, C]: x, y and value of every map."""
        maps = self._activations(pictures)
        share = maps.softmax(dim=-1)
        place = share @ self.grid
        value = (share * maps).sum(-1)
        return torch.cat([place.flatten(1), value], dim=1)

    def _activations(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the maps [B, K, places] before the softmax."""
        # Stays channels-last in memory, as the pictures are: a fifth faster on a CPU.
        h = pictures.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = nn.functional.silu(norm(convolution(h)))
        return self.maps(h).flatten(2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features [B, F] for uint8 pictures [B, H, W, C]."""
        features = self.head(self._before_head(pictures))
        return BOUND * torch.tanh(features / BOUND)

    def _before_head(self, pictures: torch.Tensor) -> torch.Tensor:
        found = self.keypoints(pictures)
        return nn.functional.silu(self.hidden(found)) if hasattr(self, 'hidden') else found

    @torch.no_grad()
    def sharpen(self, pictures: torch.Tensor, deviation: float) -> None:
        """Scale the maps so that they deviate this much over these pictures, and what follows.

        Before training starts: random maps are so flat that every place is the middle of the
        picture, and their gradients next to nothing (data-dependent initialisation, as `whiten`).
        """
        spread = self._activations(pictures).std(dim=-1).mean(0)
        self.maps.weight.mul_((deviation / spread.clamp(min=1e-6))[:, None, None, None])
        if hasattr(self, 'hidden'):
            _whiten(self.hidden, self.hidden(self.keypoints(pictures)))

    @torch.no_grad()
    def whiten(self, pictures: torch.Tensor) -> None:
        """Scale the last layer so that features of these pictures have mean 0 and deviation 1.

        Before the flow is trained: features then need no normaliser that would move under the
        policy (data-dependent initialisation, arXiv 1602.07868, section 3). The bound is not
        counted in.
        """
        _whiten(self.head, self.head(self._before_head(pictures)))

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Return features float32 [N, F] for uint8 pictures [N, H, W, C]."""
        parts = [
            self(torch.from_numpy(np.ascontiguousarray(pictures[i : i + BATCH]))).numpy()
            for i in range(0, len(pictures), BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.head.out_features), np.float32)


def _whiten(layer: nn.Linear, outputs: torch.Tensor) -> None:
    """Scale a layer so that these outputs [B, F] of it would have mean 0 and deviation 1."""
    mean, std = outputs.mean(0), outputs.std(0, unbiased=False).clamp(min=1e-6)
    layer.weight.div_(std[:, None])
    layer.bias.sub_(mean).div_(std)


def build_encoders(spec: PolicySpec) -> nn.ModuleDict:
    """Return a new encoder for every image stream, by its name."""
    return nn.ModuleDict({stream.name: KeypointEncoder(stream) for stream, _ in spec.images})


def load_encoder(stream: Stream, weights: Mapping[str, np.ndarray]) -> KeypointEncoder:
    """Return the frozen encoder of a stream from the weights of a checkpoint.

    Raises UserError when they do not fit.
    """
    check_encoder_weights([stream], {k: v for k, v in weights.items() if _of(stream, k)})
    encoder = KeypointEncoder(stream)
    own = weights_of(weights, stream.name)
    encoder.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in own.items()})
    return encoder.requires_grad_(False).eval()


def encoder_weights(encoders: nn.ModuleDict) -> dict[str, np.ndarray]:
    """Return the weights of all encoders under the names that a checkpoint gives them."""
    return {
        f'{PREFIX}{name}': value.detach().cpu().numpy().copy()
        for name, value in encoders.state_dict().items()
    }


def golden_features(spec: PolicySpec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what each encoder makes of the golden image of its stream."""
    return {
        stream.name: load_encoder(stream, weights).encode(golden_image(stream.image)[None])[0]
        for stream, _ in spec.images
    }


def _of(stream: Stream, name: str) -> bool:
    return name.startswith(f'{PREFIX}{stream.name}.')
