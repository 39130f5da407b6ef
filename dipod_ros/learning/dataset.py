# SPDX-License-Identifier: Apache-2.0
"""Demonstrations on disk: observations and executed chunks, one safetensors file. No pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as dump

from dipod_ros.errors import UserError
from dipod_ros.policy.atomic import write_file
from dipod_ros.policy.spec import PolicySpec

SCHEMA = 'dipod_ros.demonstrations/1'


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Demonstrated decisions of one task.

    observations [M, O] raw; actions [M, H, A] executed increments (rad per control step);
    episodes [M] int, the episode each decision belongs to; success [E] bool per episode.
    """

    spec: PolicySpec
    observations: np.ndarray
    actions: np.ndarray
    episodes: np.ndarray
    success: np.ndarray
    seed: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset atomically; raises UserError when the folder is not writable."""
        path = Path(path)
        payload = dump(
            {
                'observations': np.ascontiguousarray(self.observations, np.float32),
                'actions': np.ascontiguousarray(self.actions, np.float32),
                'episodes': np.ascontiguousarray(self.episodes, np.int32),
                'success': np.ascontiguousarray(self.success, np.uint8),
            },
            metadata={
                'schema': SCHEMA,
                'spec': yaml.safe_dump(self.spec.to_dict()),
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
            raise UserError(f'no demonstrations at {path}; make them with `dipod demos`')
        try:
            with safe_open(str(path), framework='np') as handle:
                metadata = handle.metadata() or {}
                if metadata.get('schema') != SCHEMA:
                    raise UserError(f'not a file of schema {SCHEMA}')
                arrays = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
            data = cls(
                spec=PolicySpec.from_dict(yaml.safe_load(metadata['spec'])),
                observations=arrays['observations'],
                actions=arrays['actions'],
                episodes=arrays['episodes'],
                success=arrays['success'].astype(bool),
                seed=int(json.loads(metadata['seed'])),
            )
            data._check()
            return data
        except (OSError, SafetensorError, KeyError, ValueError, yaml.YAMLError, UserError) as error:
            reason = str(error).split('\n')[0]
            raise UserError(f'{path} cannot be read as demonstrations: {reason}') from error

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
