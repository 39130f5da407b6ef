# SPDX-License-Identifier: Apache-2.0
"""One decision of the policy, as it travels on the replay topic. numpy only, no pickle.

The payload is a safetensors blob: tensors by name, scalars as string metadata, a schema version.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from dipod_ros.errors import UserError

SCHEMA = 'dipod_ros.decision/1'
# A decision of a state policy is about 1 kB; images never travel in it.
MAX_BYTES = 1 << 20


class DecisionError(UserError):
    """A replay payload that is not a decision of this schema."""


@dataclass(frozen=True, eq=False)
class Decision:
    """One observation, the chunk that was sampled for it, and what became of it.

    `executed` are the control points that were really commanded (absolute rad), NaN where the chunk
    was cut short. `interrupted` marks a chunk that was not executed as sampled (hold, stale stream,
    e-stop, NaN, watchdog, swap): nobody may learn from it, nor from what led to it.
    """

    actor: str  # who acted: one running server; (actor, seq) is unique
    seq: int
    episode: int
    step: int  # decisions since the episode began
    policy_sha: str  # sha256 of the weights that acted
    stamp_s: float  # time of the observation
    observation: np.ndarray  # [O] raw units, float32
    noise: np.ndarray  # [N] float32
    chunk: np.ndarray  # [H, A] as sampled, rad per control step, float32
    executed: np.ndarray  # [H, A] rad, float32
    reward: float
    success: bool
    terminated: bool
    truncated: bool
    clamp_rad: float  # largest distance between target and command within the chunk
    interrupted: bool
    latency_s: float  # observation received -> command sent


_ARRAYS = {'observation': 1, 'noise': 1, 'chunk': 2, 'executed': 2}
_SCALARS = {f.name: f.type for f in fields(Decision) if f.name not in _ARRAYS}
_PARSERS = {
    'str': str,
    'int': int,
    'float': float,
    'bool': lambda text: {'1': True, '0': False}[text],
}


def encode(decision: Decision) -> bytes:
    """Return the payload of one decision."""
    tensors = {
        name: np.ascontiguousarray(getattr(decision, name), dtype=np.float32) for name in _ARRAYS
    }
    metadata = {'schema': SCHEMA}
    for name, kind in _SCALARS.items():
        value = getattr(decision, name)
        metadata[name] = str(int(value)) if kind == 'bool' else str(value)
    return dump_safetensors(tensors, metadata=metadata)


def decode(payload: bytes) -> Decision:
    """Read a payload; raises DecisionError when it is anything else than a whole decision."""
    if len(payload) > MAX_BYTES:
        raise DecisionError(f'a decision of {len(payload)} bytes; at most {MAX_BYTES} are read')
    payload = bytes(payload)  # of a message: array.array
    try:
        (header_size,) = struct.unpack_from('<Q', payload)
        header = json.loads(payload[8 : 8 + header_size])
        metadata = header['__metadata__']
        if metadata.get('schema') != SCHEMA:
            raise DecisionError(f'schema {metadata.get("schema")!r}, expected {SCHEMA!r}')
        tensors = parse_safetensors(payload)
        values: dict = {}
        for name, ndim in _ARRAYS.items():
            array = tensors[name]
            if array.dtype != np.float32 or array.ndim != ndim:
                raise DecisionError(f'{name} is {array.dtype} with {array.ndim} axes')
            values[name] = array
        for name, kind in _SCALARS.items():
            values[name] = _PARSERS[kind](metadata[name])
    except DecisionError:
        raise
    except (
        SafetensorError,
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DecisionError(f'not a decision: {type(error).__name__}: {error}') from error
    if values['chunk'].shape != values['executed'].shape:
        raise DecisionError('chunk and executed differ in shape')
    if not all(np.all(np.isfinite(values[n])) for n in ('observation', 'noise', 'chunk')):
        raise DecisionError('observation, noise or chunk is not finite')
    return Decision(**values)
