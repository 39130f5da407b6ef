# SPDX-License-Identifier: Apache-2.0
"""Demonstrations on disk: observations and executed chunks, one safetensors file. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as dump

from dipod_ros.errors import UserError
from dipod_ros.policy.atomic import write_file
from dipod_ros.policy.plain_yaml import dump_yaml, parse_yaml
from dipod_ros.policy.spec import PolicySpec

SCHEMA = 'dipod_ros.demonstrations/1'
IMAGES, PRIVILEGED = 'images.', 'privileged.'
# Training holds them in memory: 70 000 pictures of 96x96 pixels are 2 GB.
MAX_IMAGE_BYTES = 2 << 30
# What the arrays may be stored as; privileged ones are float32, pictures uint8.
TYPES = {
    'observations': ('F32',),
    'actions': ('F32',),
    'episodes': ('I32',),
    'success': ('U8', 'BOOL'),
}


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Demonstrated decisions of one task.

    observations [M, O] raw; actions [M, H, A] executed increments (rad per control step);
    episodes [M] int, the episode each decision belongs to; success [E] bool per episode;
    images uint8 [M, H, W, C] by image stream, whose places in the observations are 0;
    privileged float32 [M, T] by name: what is known of the world where the demonstrations were
    made and never told to the policy (points in m), for encoders to learn from.
    """

    spec: PolicySpec
    observations: np.ndarray
    actions: np.ndarray
    episodes: np.ndarray
    success: np.ndarray
    seed: int
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    privileged: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset atomically.

        Raises UserError when the folder is not writable or the pictures are too many.
        """
        path = Path(path)
        self._check()
        payload = dump(
            {
                'observations': np.ascontiguousarray(self.observations, np.float32),
                'actions': np.ascontiguousarray(self.actions, np.float32),
                'episodes': np.ascontiguousarray(self.episodes, np.int32),
                'success': np.ascontiguousarray(self.success, np.uint8),
                **{f'{IMAGES}{k}': np.ascontiguousarray(v) for k, v in self.images.items()},
                **{
                    f'{PRIVILEGED}{k}': np.ascontiguousarray(v, np.float32)
                    for k, v in self.privileged.items()
                },
            },
            metadata={
                'schema': SCHEMA,
                'spec': dump_yaml(self.spec.to_dict()),
                'seed': json.dumps(self.seed),
            },
        )
        try:
            write_file(path, payload)
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror or error}') from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Demonstrations:
        """Read a dataset; raises UserError when it is missing, corrupt or of another schema."""
        if not Path(path).is_file():
            raise UserError(
                f'no demonstrations at {path}; make them with `dipod demos`, or record them'
            )
        try:
            with safe_open(str(path), framework='np') as handle:
                metadata = handle.metadata() or {}
                if metadata.get('schema') != SCHEMA:
                    raise UserError(f'not a file of schema {SCHEMA}')
                spec = PolicySpec.from_dict(parse_yaml(metadata['spec']))
                names = _checked_names(spec, handle)
                arrays = {k: handle.get_tensor(k) for k in names}
            data = cls(
                spec=spec,
                observations=arrays['observations'],
                actions=arrays['actions'],
                episodes=arrays['episodes'],
                success=arrays['success'].astype(bool),
                seed=int(json.loads(metadata['seed'])),
                images=_named(arrays, IMAGES),
                privileged=_named(arrays, PRIVILEGED),
            )
            data._check()
            return data
        except (
            OSError,
            SafetensorError,
            KeyError,
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
            UserError,
        ) as error:
            reason = str(error).split('\n')[0]
            raise UserError(f'{path} cannot be read as demonstrations: {reason}') from error

    def successful(self) -> Demonstrations:
        """Return the episodes that succeeded; raises UserError when none did."""
        if not self.success.any():
            raise UserError('none of the demonstrations succeeded')
        rows = self.success[self.episodes]
        return replace(
            self,
            observations=self.observations[rows],
            actions=self.actions[rows],
            episodes=(np.cumsum(self.success) - 1)[self.episodes[rows]].astype(np.int32),
            success=self.success[self.success],
            images={name: pictures[rows] for name, pictures in self.images.items()},
            privileged={name: values[rows] for name, values in self.privileged.items()},
        )

    def _check(self) -> None:
        rows = len(self.observations)
        if rows == 0:
            raise UserError('no decisions in it')
        expected = {
            'observations': (rows, self.spec.observation_size),
            'actions': (rows, self.spec.horizon, len(self.spec.joints)),
            'episodes': (rows,),
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise UserError(f'{name} has shape {values.shape}, expected {shape}')
            if not np.all(np.isfinite(values)):
                raise UserError(f'{name} holds numbers that are not finite')
        for name, values in self.privileged.items():
            if values.ndim != 2 or len(values) != rows or not np.all(np.isfinite(values)):
                raise UserError(
                    f'privileged {name} has shape {values.shape}: it must be finite numbers '
                    f'[{rows}, T]'
                )
        if self.success.ndim != 1:
            raise UserError(f'success has shape {self.success.shape}, expected one per episode')
        if self.episodes.min() < 0 or self.episodes.max() >= len(self.success):
            raise UserError(
                f'its decisions are of episodes {self.episodes.min()}..{self.episodes.max()}, '
                f'there are {len(self.success)}'
            )
        needed = {s.name: (rows, *s.image.shape) for s, _ in self.spec.images}
        found = {k: v.shape for k, v in self.images.items() if v.dtype == np.uint8}
        if found != needed or len(found) != len(self.images):
            raise UserError(f'pictures {found} do not fit the image streams {needed}')
        require_space(self.spec, rows)


def _checked_names(spec: PolicySpec, handle: Any) -> list[str]:
    """Return the names of the arrays to read, when what a file's header says of them can be used.

    Nothing of them is read: pictures may be larger than the memory.
    """
    names = []
    for name in handle.keys():  # noqa: SIM118 - no dict
        kinds = TYPES.get(name, ('F32',) if name.startswith(PRIVILEGED) else ('U8',))
        if name in TYPES or name.startswith((IMAGES, PRIVILEGED)):
            kind = handle.get_slice(name).get_dtype()
            if kind not in kinds:
                raise UserError(f'{name} is {kind}, expected {kinds[0]}')
            names.append(name)
    missing = sorted(TYPES.keys() - set(names))
    if missing:
        raise UserError(f'{missing} are missing')
    rows = handle.get_slice('observations').get_shape()[0]
    require_space(spec, rows)
    shapes = {f'{IMAGES}{s.name}': [rows, *s.image.shape] for s, _ in spec.images}
    found = {n: handle.get_slice(n).get_shape() for n in names if n.startswith(IMAGES)}
    if found != shapes:
        raise UserError(f'pictures {found} do not fit the image streams {shapes}')
    return names


def _named(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def require_space(spec: PolicySpec, rows: int) -> None:
    """Raise UserError when the pictures of so many decisions would be too large to train on."""
    size = rows * sum(int(np.prod(s.image.shape)) for s, _ in spec.images)
    if size > MAX_IMAGE_BYTES:
        raise UserError(
            f'{rows} decisions are {size >> 20} MB of pictures, at most '
            f'{MAX_IMAGE_BYTES >> 20} MB can be used: record fewer episodes, or smaller pictures'
        )


def digest(*parts: np.ndarray | Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of arrays, those of a mapping in the order of their names."""
    sha = hashlib.sha256()
    for part in parts:
        for values in [part[k] for k in sorted(part)] if isinstance(part, Mapping) else [part]:
            sha.update(np.ascontiguousarray(values))
    return sha.hexdigest()
