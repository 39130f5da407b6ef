# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run: what lies where, who may write, which of it is kept. No torch.

run_dir/run.json               which checkpoint the run began with
run_dir/checkpoints/v000012/   every version, written whole or not at all
run_dir/students/v000012/      few-step students distilled from them
run_dir/fresh/u000012.safetensors  the fresh student's state after update 12, where there is one
run_dir/learner.safetensors    everything needed to go on, replaced after each update
run_dir/.lock                  held by the process that writes
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from dipod_ros.errors import UserError
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.spec import SamplerSpec

STATE = 'learner.safetensors'


class RunFolder:
    """Paths in a run's folder, and what is done with them; raises OSError unless it says else."""

    def __init__(self, path: Path) -> None:
        """Take the folder, which need not exist."""
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def state(self) -> Path:
        """The state of the learner."""
        return self.path / STATE

    def checkpoint(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.path / 'checkpoints' / f'v{version:06d}'

    def student(self, version: int) -> Path:
        """Return the folder of the student of a version."""
        return self.path / 'students' / f'v{version:06d}'

    def fresh(self, updates: int) -> Path:
        """Return the file of the fresh student's state after so many updates.

        Named by the update: a kill between this state and the learner's leaves the older one too.
        """
        return self.path / 'fresh' / f'u{updates:06d}.safetensors'

    def lock(self) -> None:
        """Make the folder, and keep it from every other process until `release` or the end.

        Raises UserError when another one has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = open(self.path / '.lock', 'a', encoding='utf-8')  # noqa: SIM115 - kept open
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise UserError(
                f'run_dir {self.path} is in use: another process learns there; end it, or give '
                'another run_dir'
            ) from None
        except OSError:
            handle.close()
            raise
        self._lock = handle

    def release(self) -> None:
        """Let other processes have the folder; does nothing when it is not locked."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def begin(self, initial: ckpt.Manifest, sampler: SamplerSpec | None = None) -> None:
        """Note the checkpoint that a new run begins with, and a sampler other than its own."""
        begun = {'initial_sha256': initial.sha256, 'initial': str(initial.path)}
        if sampler is not None:
            begun['sampler'] = asdict(sampler)
        (self.path / 'run.json').write_text(json.dumps(begun))

    def require_begun_with(
        self, initial: ckpt.Manifest, sampler: SamplerSpec | None = None
    ) -> None:
        """Raise UserError unless the run here began with this checkpoint and this sampler."""
        sampled = None
        try:
            begun = json.loads((self.path / 'run.json').read_text())
            same = begun['initial_sha256'] == initial.sha256
            sampled = begun.get('sampler')
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            same = False
        if not same:
            raise UserError(
                f'{self.path} holds a run that began with another checkpoint than '
                f'{initial.path}; give a new run_dir, or the checkpoint it began with'
            )
        if sampled != (None if sampler is None else asdict(sampler)):
            raise UserError(
                f'{self.path} holds a run that began with another sampler than '
                f'{sampler or initial.spec.sampler}; give a new run_dir, or the same sampler'
            )

    def checkpoints(self) -> Iterator[ckpt.Manifest]:
        """Yield the versions that are there and whole, the oldest first."""
        for folder in sorted((self.path / 'checkpoints').glob('v*')):
            try:
                yield ckpt.read_manifest(folder)
            except ckpt.CheckpointError:  # a kill while it was being deleted
                continue

    def prune(self, what: str, keep: int) -> None:
        """Remove all but the newest `keep` of the checkpoints or students; 0 keeps all."""
        if keep:
            for folder in sorted((self.path / what).glob('v*'))[:-keep]:
                shutil.rmtree(folder, ignore_errors=True)

    def prune_fresh(self, updates: int) -> None:
        """Remove every state of the fresh student but that after so many updates."""
        kept = self.fresh(updates)
        for file in kept.parent.glob('u*.safetensors'):
            if file != kept:
                file.unlink(missing_ok=True)
