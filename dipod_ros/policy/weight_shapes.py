# SPDX-License-Identifier: Apache-2.0
"""The shape of every weight that a spec asks for, without building anything. No torch, no numpy.

A manifest is a few lines that can ask for any size. Whoever knows the shapes compares them with
what is there before a network of that size is made, or a file read that holds more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from dipod_ros.errors import UserError
from dipod_ros.policy.image import PREFIX, encoder_shapes
from dipod_ros.policy.spec import PolicySpec

Shapes = Mapping[str, tuple[int, ...]]
# The largest policy planned is a few hundred MB.
MAX_WEIGHTS_BYTES = 2 << 30
TIME_FEATURES = 16  # that stand for the time in a network's input
MLP_RATIO = 4  # of a transformer block: hidden width of its MLP over the width of the tokens
FLOAT_BYTES = 4


def policy_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a policy by name: normaliser and network, no encoders."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, size in (('observation', spec.observation_size), ('action', spec.action_size)):
        shapes[f'normalizer.{name}_mean'] = shapes[f'normalizer.{name}_std'] = (size,)
    make = {'residual_mlp': _residual_mlp, 'dit': _dit, 'unet': _unet}[spec.network['kind']]
    return shapes | {f'net.{name}': shape for name, shape in make(spec)}


def weight_bytes(spec: PolicySpec) -> int:
    """Return the bytes of all weights of a checkpoint with this spec, image encoders included."""
    shapes = policy_shapes(spec)
    for stream, _ in spec.images:
        of_stream = encoder_shapes(stream).items()
        shapes |= {f'{PREFIX}{stream.name}.{name}': shape for name, shape in of_stream}
    return FLOAT_BYTES * sum(map(math.prod, shapes.values()))


def require_buildable(spec: PolicySpec) -> None:
    """Raise UserError for a network that is too large for any checkpoint that can be loaded."""
    size = weight_bytes(spec)
    if size > MAX_WEIGHTS_BYTES:
        raise UserError(
            f'network {dict(spec.network)} has {size} bytes of weights, at most '
            f'{MAX_WEIGHTS_BYTES} can be loaded: make it narrower or less deep'
        )


def require_shapes(weights: Mapping[str, tuple[int, ...]], expected: Shapes) -> None:
    """Raise UserError unless these shapes have the names and sizes that are expected."""
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unknown:
        raise UserError(
            f'weights do not fit the network: missing {sorted(missing)[:3]}, '
            f'unknown {sorted(unknown)[:3]}'
        )
    for name, shape in weights.items():
        if tuple(shape) != expected[name]:
            raise UserError(
                f'weight {name} has shape {tuple(shape)}, the network needs {expected[name]}'
            )


Named = Iterator[tuple[str, tuple[int, ...]]]


def _layer(name: str, *shape: int, outputs: int = 0) -> Named:
    """Yield weight and bias of a layer; its bias has the first of the sizes, or `outputs`."""
    yield f'{name}.weight', shape
    yield f'{name}.bias', (outputs or shape[0],)


def _residual_mlp(spec: PolicySpec) -> Named:
    width, depth = spec.network['width'], spec.network['depth']
    yield from _layer('input', width, spec.action_size + TIME_FEATURES + spec.observation_size)
    for i in range(depth - 1):
        yield from _layer(f'blocks.{i}', width, width)
    yield from _layer('output', spec.action_size, width)


def _dit(spec: PolicySpec) -> Named:
    width, depth = spec.network['width'], spec.network['depth']
    joints = len(spec.joints)
    yield from _layer('embed', width, joints)
    yield 'position', (1, spec.horizon, width)
    for name, size in (('time', TIME_FEATURES), ('observation', spec.observation_size)):
        yield from _layer(f'{name}.0', width, size)
        yield from _layer(f'{name}.2', width, width)
    for i in range(depth):
        yield from _layer(f'blocks.{i}.qkv', 3 * width, width)
        yield from _layer(f'blocks.{i}.project', width, width)
        yield from _layer(f'blocks.{i}.mlp.0', MLP_RATIO * width, width)
        yield from _layer(f'blocks.{i}.mlp.2', width, MLP_RATIO * width)
    yield from _layer('modulation', (6 * depth + 2) * width, width)
    yield from _layer('output', joints, width)


def _unet(spec: PolicySpec) -> Named:
    width, depth = spec.network['width'], spec.network['depth']
    joints = len(spec.joints)
    channels = [width * 2**i for i in range(depth)]
    yield from _layer('time.0', width, TIME_FEATURES)
    yield from _layer('time.2', 2 * width, width)
    yield from _layer('observation', 2 * width, spec.observation_size)
    for i, (before, after) in enumerate(zip([joints, *channels], channels, strict=False)):
        yield from _unet_block(f'down.{i}', before, after)
    for i, c in enumerate(channels[:-1]):
        yield from _layer(f'downsample.{i}', c, c, 3)
    yield from _unet_block('middle', channels[-1], channels[-1])
    for i, c in enumerate(channels[-2::-1]):
        yield from _layer(f'upsample.{i}', 2 * c, c, 4, outputs=c)  # transposed: inputs first
        yield from _unet_block(f'up.{i}', 2 * c, c)
    yield from _layer('output', joints, width, 1)
    of_blocks = sum(channels) + channels[-1] + sum(channels[:-1])
    yield from _layer('film', 2 * of_blocks, 2 * width)


def _unet_block(name: str, before: int, after: int) -> Named:
    yield from _layer(f'{name}.first', after, before, 3)
    yield from _layer(f'{name}.second', after, after, 3)
    yield from _layer(f'{name}.second_norm', after)
    if before != after:
        yield from _layer(f'{name}.around', after, before, 1)
