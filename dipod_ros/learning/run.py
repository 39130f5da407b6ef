# SPDX-License-Identifier: Apache-2.0
"""One training run on disk: a folder that survives kill -9 and can be resumed. torch, no ROS.

run_dir/checkpoints/v000012/   every version, written whole or not at all
run_dir/students/v000012/      few-step students distilled from them
run_dir/fresh/u000012.safetensors  the fresh student's state after update 12, where there is one
run_dir/learner.safetensors    everything needed to go on, replaced after each update
run_dir/metrics.jsonl          one line per update
run_dir/tensorboard/           the same, for TensorBoard
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning import parallel
from dipod_ros.learning.imitation import load_demonstrations
from dipod_ros.learning.learner import Learner
from dipod_ros.learning.learner_state import LearnerConfig
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.state_io import load_state
from dipod_ros.learning.students.distill import DistillConfig, distill
from dipod_ros.learning.students.fresh_student import FreshConfig, FreshStudent
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.flow import FlowPolicy

# Observations kept to distil a student on: about 30 updates of 64 episodes. Their name in a state.
STUDENT_OBSERVATIONS = 16_000
OBSERVED = 'student.observations'
STATE = 'learner.safetensors'


@dataclass(frozen=True)
class RunConfig:
    """What a run keeps."""

    learner: LearnerConfig = field(default_factory=LearnerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    # Keeps a student beside the flow, so that each checkpoint has one; None is no such student.
    fresh: FreshConfig | None = None
    # A file or folder of demonstrations, for `learner.imitation` and `learner.q_critic`.
    demonstrations: Path | None = None
    keep_checkpoints: int = 20  # the newest ones, and as many fresh students; 0 keeps all
    tensorboard: bool = True


class TrainingRun:
    """A learner with its folder. Not safe for two processes at once: one run, one trainer.

    Processes that learn together (see parallel.py) are one trainer: the first one writes.
    """

    def __init__(self, run_dir: Path, initial: Path, config: RunConfig) -> None:
        """Open `run_dir`, going on where an earlier run from the same checkpoint stopped.

        Raises UserError when the folder holds a run from another checkpoint or is not writable.
        """
        self.run_dir, self.config = Path(run_dir), config
        checkpoint = ckpt.load(initial)
        if checkpoint.manifest.kind != 'flow':
            raise UserError(
                f'{initial} is a {checkpoint.manifest.kind}: online learning starts from a flow '
                '(a student is no longer a bound of its likelihood); give its teacher'
            )
        self.initial = checkpoint.manifest
        shown = load_demonstrations(config.demonstrations) if config.demonstrations else []
        imitation = config.learner.imitation
        if shown and config.learner.q_critic is None and not (imitation and imitation.weight > 0):
            raise UserError(
                f'nothing would learn from the demonstrations {config.demonstrations}: set '
                'demo_weight above 0, or q_critic, or name none'
            )
        self.learner = Learner(FlowPolicy.from_checkpoint(checkpoint), config.learner, shown)
        if self.learner.policy.no_checkpoint:
            # Before anything is learned that could not be kept.
            raise UserError(self.learner.policy.no_checkpoint)
        self._observations: deque[np.ndarray] = deque(maxlen=STUDENT_OBSERVATIONS)
        self._versions = {self.initial.sha256: 0}
        self.latest = self.initial
        self.student: ckpt.Manifest | None = None  # the newest one written
        self._fresh: FreshStudent | None = None
        self.resumed = self._state_file.is_file()
        self._writes = parallel.rank() == 0
        try:
            if self.resumed:
                self._resume()
            elif self._writes:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                self._begin()
            if self._writes:
                self._begin_fresh()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f'cannot write run_dir {self.run_dir}: {reason}') from error
        # Nobody writes before everybody has read.
        parallel.wait()
        self._board = self._open_board() if config.tensorboard and self._writes else None

    @property
    def _state_file(self) -> Path:
        return self.run_dir / STATE

    @property
    def _metrics_file(self) -> Path:
        return self.run_dir / 'metrics.jsonl'

    def version_of(self, sha256: str) -> int | None:
        """Return the version of a policy, or None when it is too old or unknown to learn from."""
        version = self._versions.get(sha256)
        if version is None or self.learner.behaviour(version) is None:
            return None
        return version

    def update(
        self, rollout: Rollout, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], ckpt.Manifest | None]:
        """Learn from one rollout, make it durable, and return (metrics, new checkpoint or None).

        There is no new checkpoint while only the critic warms up, and after a collapse: then the
        version that acted stays the newest good one, unless the learner goes further back (see
        `Learner.update`), which is a checkpoint of its own. When `stop` turns true in the middle,
        UpdateStopped is raised and neither the learner nor the folder has changed.
        """
        before = self.learner.version
        mismatch = self.learner.mismatch(rollout)
        metrics = self.learner.update(rollout, stop)
        metrics['policy_mismatch_rad'] = mismatch
        if not self._writes:
            return metrics, None
        self._observations.extend(rollout.observations)
        manifest = None
        if self.learner.version > before:
            manifest = self._write_checkpoint(metrics)
        if self._fresh is not None:
            start = time.monotonic()
            metrics |= self._fresh.update(self.learner.policy, rollout)
            if manifest is not None:
                self.student = self._write_student(self._fresh.policy)
                self._prune('students')
            # Before the learner's: a kill in between must leave a state for each of the two.
            self._fresh.save(self._fresh_file)
            metrics['student_s'] = time.monotonic() - start
        observed = torch.from_numpy(np.stack(self._observations))
        self.learner.save(self._state_file, {OBSERVED: observed})
        if self._fresh is not None:
            for file in self._fresh_file.parent.glob('u*.safetensors'):
                if file != self._fresh_file:
                    file.unlink(missing_ok=True)
        self._record(metrics)
        return metrics, manifest

    def make_student(
        self,
        progress: Callable[[int, float], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> ckpt.Manifest | None:
        """Distil the newest version into a few-step student; None when `stop` ended it early."""
        student = distill(
            self.learner.policy,
            np.stack(self._observations) if self._observations else np.empty((0, 0)),
            replace(self.config.distill, seed=self.config.learner.seed),
            progress=progress,
            stop=stop,
        )
        if stop():
            return None
        self.student = self._write_student(student)
        self._prune('students')
        return self.student

    @property
    def has_observations(self) -> bool:
        """Whether a student can be distilled: there is something to imitate the teacher on."""
        return bool(self._observations)

    def close(self) -> None:
        """Flush the logs."""
        if self._board is not None:
            self._board.close()

    def _begin(self) -> None:
        (self.run_dir / 'run.json').write_text(
            json.dumps({'initial_sha256': self.initial.sha256, 'initial': str(self.initial.path)})
        )

    def _resume(self) -> None:
        try:
            begun = json.loads((self.run_dir / 'run.json').read_text())
            same = begun['initial_sha256'] == self.initial.sha256
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            same = False
        if not same:
            raise UserError(
                f'{self.run_dir} holds a run that began with another checkpoint than '
                f'{self.initial.path}; give a new run_dir, or the checkpoint it began with'
            )
        self.learner.load(self._state_file)
        tensors, _ = load_state(self._state_file)
        # States of older programs have none: a student is distilled on what comes from now on.
        if OBSERVED in tensors:
            self._observations.extend(tensors[OBSERVED].numpy())
        for folder in sorted((self.run_dir / 'checkpoints').glob('v*')):
            try:
                manifest = ckpt.read_manifest(folder)
            except ckpt.CheckpointError:  # a kill while it was being deleted
                continue
            # A checkpoint newer than the state is of an update whose state was never written: it
            # will be made again.
            if manifest.version <= self.learner.version:
                self._versions[manifest.sha256] = manifest.version
                self.latest = manifest
        if not self._writes:
            return
        if self._metrics_file.is_file() and not self._metrics_file.read_bytes().endswith(b'\n'):
            # A kill cut the last line short: the next one must not continue it.
            with open(self._metrics_file, 'a', encoding='utf-8') as handle:
                handle.write('\n')

    @property
    def _fresh_file(self) -> Path:
        # Named by the update: a kill between this state and the learner's leaves the older one too.
        return self.run_dir / 'fresh' / f'u{self.learner.updates:06d}.safetensors'

    def _begin_fresh(self) -> None:
        if self.config.fresh is None:
            return
        settings = replace(self.config.fresh, seed=self.config.learner.seed)
        self._fresh = FreshStudent(self.learner.policy, settings)
        # A run that had none so far: the student begins with the flow as it is now.
        if not self._fresh_file.is_file():
            return
        self._fresh.load(self._fresh_file)
        try:
            student = ckpt.read_manifest(self.run_dir / 'students' / f'v{self.learner.version:06d}')
        except ckpt.CheckpointError:  # none yet, or a kill while it was being written
            return
        # One of a version that a kill took back is another version's.
        if student.lineage.get('teacher') == self.latest.sha256:
            self.student = student

    def _write_checkpoint(self, metrics: dict[str, float]) -> ckpt.Manifest:
        version = self.learner.version
        keep = ('success_rate', 'episodes', 'control_steps', 'action_std_ratio', 'cfm_ratio')
        if metrics['collapsed']:  # these weights are older ones: what was measured is of others
            keep = ('episodes', 'control_steps')
        self.latest = self.learner.policy.save(
            self.run_dir / 'checkpoints' / f'v{version:06d}',
            version=version,
            lineage={
                'parent': self.latest.sha256,
                'initial': self.initial.sha256,
                'method': 'dipod',
                'update': asdict(self.learner.algorithm.config),
                **self.learner.algorithm.state(),
                'seed': self.config.learner.seed,
            },
            metrics={k: metrics[k] for k in keep if k in metrics},
            overwrite=True,
        )
        self._versions[self.latest.sha256] = version
        self._prune('checkpoints')
        return self.latest

    def _write_student(self, student: FlowPolicy) -> ckpt.Manifest:
        version = self.learner.version
        return student.save(
            self.run_dir / 'students' / f'v{version:06d}',
            kind='student',
            version=version,
            lineage={'teacher': self.latest.sha256, 'initial': self.initial.sha256},
            overwrite=True,
        )

    def _prune(self, what: str) -> None:
        if self.config.keep_checkpoints:
            for folder in sorted((self.run_dir / what).glob('v*'))[: -self.config.keep_checkpoints]:
                shutil.rmtree(folder, ignore_errors=True)

    def _record(self, metrics: dict[str, float]) -> None:
        # JSON has no NaN and no infinity.
        plain = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        file = self._metrics_file
        try:
            with open(file, 'a', encoding='utf-8') as handle:
                handle.write(json.dumps(plain) + '\n')
        except OSError as error:
            raise UserError(f'cannot write {file}: {error.strerror or error}') from error
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f'dipod/{name}', value, self.learner.updates)
            self._board.flush()

    def _open_board(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an optional dependency: metrics.jsonl has the same numbers
            return None
        return SummaryWriter(str(self.run_dir / 'tensorboard'))


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, one dict per update; a line cut short by a kill is left out."""
    file = Path(run_dir) / 'metrics.jsonl'
    if not file.is_file():
        raise UserError(f'{run_dir} holds no metrics.jsonl; is it the folder of a run?')
    rows = []
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows
