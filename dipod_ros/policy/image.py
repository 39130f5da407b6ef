# SPDX-License-Identifier: Apache-2.0
"""What an image stream is: the picture a policy looks at and the encoder that makes features of it.

A policy never sees pixels: an encoder turns one picture into `size` numbers, which stand in the
observation like any other stream. Its weights are in the checkpoint as `encoder.<stream>.<name>`.
numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dipod_ros.errors import UserError

if TYPE_CHECKING:
    from dipod_ros.policy.spec import Stream

# Channels of the pictures an encoder looks at.
COLOURS = {'rgb8': 3, 'mono8': 1}
# A policy's own eye is small; a camera's picture is resized to it.
MIN_SIDE, MAX_SIDE = 16, 512
# Kinds of encoder, with their default settings (policy/vision.py has the networks). No strides are
# those that encoders had before they could be chosen: the first two convolutions halve the picture.
ENCODERS: dict[str, dict[str, Any]] = {
    'keypoints': {'channels': (16, 32, 32), 'keypoints': 24, 'strides': (), 'hidden': 0}
}
STRIDES = (1, 2)
# Numbers in one layer of an encoder, for one picture: 128 MB.
MAX_ACTIVATIONS = 1 << 25
# Channels that share a group norm.
GROUP = 8
PREFIX = 'encoder.'
GOLDEN_SEED = 0


@dataclass(frozen=True)
class ImageSettings:
    """Width and height in pixels, colour, and the settings of the encoder."""

    width: int = 96
    height: int = 96
    encoding: str = 'rgb8'
    encoder: Mapping[str, Any] = field(default_factory=lambda: {'kind': 'keypoints'})

    def __post_init__(self) -> None:
        for name in ('width', 'height'):
            if not MIN_SIDE <= getattr(self, name) <= MAX_SIDE:
                raise UserError(
                    f'image {name} must be within {MIN_SIDE}..{MAX_SIDE}, got {getattr(self, name)}'
                )
        if self.encoding not in COLOURS:
            raise UserError(f'image encoding {self.encoding!r} is not one of {list(COLOURS)}')
        kind = self.encoder.get('kind')
        if kind not in ENCODERS:
            raise UserError(f'image encoder {kind!r} is not one of {list(ENCODERS)}')
        unknown = self.encoder.keys() - ENCODERS[kind].keys() - {'kind'}
        if unknown:
            raise UserError(f'encoder {kind} has no setting {sorted(unknown)}')
        complete = {**ENCODERS[kind], **self.encoder}
        channels = tuple(int(c) for c in complete['channels'])
        if not 2 <= len(channels) <= 8 or any(c < GROUP or c % GROUP for c in channels):
            raise UserError(
                f'encoder channels must be 2 to 8 multiples of {GROUP}, got {list(channels)}'
            )
        strides = tuple(int(s) for s in complete['strides'])
        strides = strides or tuple(2 if i < 2 else 1 for i in range(len(channels)))
        if len(strides) != len(channels) or any(s not in STRIDES for s in strides):
            raise UserError(
                f'encoder strides must be {len(channels)} numbers of {list(STRIDES)}, one per '
                f'channel, got {list(strides)}'
            )
        complete |= {'channels': channels, 'strides': strides}
        for name, least in (('keypoints', 1), ('hidden', 0)):
            complete[name] = int(complete[name])
            if complete[name] < least:
                raise UserError(f'encoder {name} must be at least {least}, got {complete[name]}')
        self._check_activations(complete)
        object.__setattr__(self, 'encoder', complete)

    def _check_activations(self, encoder: Mapping[str, Any]) -> None:
        height, width = self.height, self.width
        most = encoder['hidden']
        for channels, stride in zip(encoder['channels'], encoder['strides'], strict=True):
            height, width = -(-height // stride), -(-width // stride)
            most = max(most, channels * height * width)
        most = max(most, encoder['keypoints'] * height * width)
        if most > MAX_ACTIVATIONS:
            raise UserError(
                f'an encoder with {most} numbers in one layer; at most {MAX_ACTIVATIONS}: give it '
                'fewer channels or keypoints, or a smaller picture'
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture."""
        return self.height, self.width, COLOURS[self.encoding]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a YAML manifest."""
        encoder = {k: list(v) if isinstance(v, tuple) else v for k, v in self.encoder.items()}
        return {
            'width': self.width,
            'height': self.height,
            'encoding': self.encoding,
            'encoder': encoder,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageSettings:
        """Read what `to_dict` wrote; raises UserError naming what is wrong."""
        return cls(
            int(data['width']), int(data['height']), str(data['encoding']), dict(data['encoder'])
        )


def encoder_shapes(stream: Stream) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a stream's encoder, without building it."""
    settings = stream.image
    channels, keypoints = settings.encoder['channels'], settings.encoder['keypoints']
    hidden = settings.encoder['hidden']
    shapes: dict[str, tuple[int, ...]] = {}
    before = settings.shape[2]
    for i, count in enumerate(channels):
        side = 5 if i == 0 else 3
        shapes[f'convolutions.{i}.weight'] = (count, before, side, side)
        shapes[f'convolutions.{i}.bias'] = (count,)
        shapes[f'norms.{i}.weight'] = (count,)
        shapes[f'norms.{i}.bias'] = (count,)
        before = count
    shapes['maps.weight'], shapes['maps.bias'] = (keypoints, before, 1, 1), (keypoints,)
    before = 3 * keypoints
    if hidden:
        shapes['hidden.weight'], shapes['hidden.bias'] = (hidden, before), (hidden,)
        before = hidden
    shapes['head.weight'], shapes['head.bias'] = (stream.size, before), (stream.size,)
    return shapes


def split_weights(
    weights: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the weights of the policy's network, and those of its encoders (full names)."""
    own = {k: v for k, v in weights.items() if not k.startswith(PREFIX)}
    return own, {k: v for k, v in weights.items() if k.startswith(PREFIX)}


def weights_of(weights: Mapping[str, np.ndarray], stream: str) -> dict[str, np.ndarray]:
    """Return one stream's encoder weights under the encoder's own names."""
    prefix = f'{PREFIX}{stream}.'
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def check_encoder_weights(streams: Iterable[Stream], weights: Mapping[str, np.ndarray]) -> None:
    """Raise UserError unless `weights` has exactly the encoders that the streams need."""
    expected = {
        f'{PREFIX}{s.name}.{name}': shape
        for s in streams
        if s.image is not None
        for name, shape in encoder_shapes(s).items()
    }
    _, given = split_weights(weights)
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected)
    if missing or unknown:
        raise UserError(
            f'image encoder: weights {missing[:3]} are missing, {unknown[:3]} are unknown'
        )
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise UserError(
                f'image encoder: {name} has shape {tuple(given[name].shape)}, expected {shape}'
            )


def golden_image(settings: ImageSettings, seed: int = GOLDEN_SEED) -> np.ndarray:
    """Return a fixed uint8 picture [H, W, C] of coloured blocks.

    Of PCG64's raw stream, which numpy promises never to change (its distributions may).
    """
    height, width, channels = settings.shape
    block = 8
    rows, columns = -(-height // block), -(-width // block)
    raw = np.random.PCG64(seed).random_raw(rows * columns * channels)
    blocks = (raw >> np.uint64(56)).astype(np.uint8).reshape(rows, columns, channels)
    large = blocks.repeat(block, axis=0).repeat(block, axis=1)
    return np.ascontiguousarray(large[:height, :width])
