# SPDX-License-Identifier: Apache-2.0
"""One training run: a learner and its students, durable after each update, resumable after kill -9.

What lies in its folder is in run_folder.py, its metrics are in run_log.py. torch, no ROS.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning import parallel
from dipod_ros.learning.imitation import load_demonstrations
from dipod_ros.learning.learner import Learner
from dipod_ros.learning.learner_state import LearnerConfig
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.run_folder import RunFolder
from dipod_ros.learning.run_log import RunLog
from dipod_ros.learning.state_io import load_state
from dipod_ros.learning.students.distill import DistillConfig, distill
from dipod_ros.learning.students.fresh_student import FreshConfig, FreshStudent
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec

# Observations kept to distil a student on: about 30 updates of 64 episodes. Their name in a state.
STUDENT_OBSERVATIONS = 16_000
OBSERVED = 'student.observations'


@dataclass(frozen=True)
class RunConfig:
    """What a run keeps."""

    learner: LearnerConfig = field(default_factory=LearnerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    # Keeps a student beside the flow, so that each checkpoint has one; None is no such student.
    fresh: FreshConfig | None = None
    # A file or folder of demonstrations, for `learner.imitation` and `learner.q_critic`.
    demonstrations: Path | None = None
    # Instead of the one of the initial checkpoint: version 0 is then a checkpoint with this one.
    sampler: SamplerSpec | None = None
    keep_checkpoints: int = 20  # the newest ones, and as many fresh students; 0 keeps all
    tensorboard: bool = True


class TrainingRun:
    """A learner with its folder, which it keeps from other processes until `close`.

    Processes that learn together (see parallel.py) are one trainer: the first one alone reads and
    writes the folder, the others begin with what it holds, on whatever machine they are.
    """

    def __init__(self, run_dir: Path, initial: Path, config: RunConfig) -> None:
        """Open `run_dir`, going on where an earlier run from the same checkpoint stopped.

        Raises UserError when the folder holds a run from another checkpoint, is not writable or
        another process learns there, and in every process when they were given different things.
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
        policy = FlowPolicy.from_checkpoint(checkpoint)
        self._sampler = None if config.sampler == policy.spec.sampler else config.sampler
        if self._sampler is not None:
            policy = policy.with_sampler(self._sampler)
        self.learner = Learner(policy, config.learner, shown)
        if self.learner.policy.no_checkpoint:
            # Before anything is learned that could not be kept.
            raise UserError(self.learner.policy.no_checkpoint)
        self._observations: deque[np.ndarray] = deque(maxlen=STUDENT_OBSERVATIONS)
        # Also of version 0 with another sampler: the weights are the same.
        self._versions = {self.initial.sha256: 0}
        self.latest = self.initial
        self.student: ckpt.Manifest | None = None  # the newest one written
        self._fresh: FreshStudent | None = None
        self.resumed = False
        self._folder = RunFolder(self.run_dir)
        self._log: RunLog | None = None
        self._writes = parallel.rank() == 0
        settings = hashlib.sha256(repr(config.learner).encode()).hexdigest()
        parallel.require_same(
            {
                'initial checkpoint': self.initial.sha256,
                'settings': settings,
                'sampler': str(self._sampler),
            }
        )
        try:
            if self._writes:
                self._open()
            self._share()
        except BaseException:
            self._folder.release()
            raise

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
        UpdateStopped is raised and neither the learner nor the folder has changed. Processes that
        learn together must have the same rollout: UserError when theirs differ in length.
        """
        parallel.require_same({'updates': self.learner.updates, 'decisions': len(rollout)})
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
            self._fresh.save(self._folder.fresh(self.learner.updates))
            metrics['student_s'] = time.monotonic() - start
        observed = torch.from_numpy(np.stack(self._observations))
        self.learner.save(self._folder.state, {OBSERVED: observed})
        if self._fresh is not None:
            self._folder.prune_fresh(self.learner.updates)
        if self._log is not None:
            self._log.record(metrics, self.learner.updates)
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
        """Flush the logs and let other processes have the folder; nothing is learned after it."""
        if self._log is not None:
            self._log.close()
        self._folder.release()

    def _open(self) -> None:
        try:
            self._folder.lock()
            self.resumed = self._folder.state.is_file()
            if self.resumed:
                self._resume()
            else:
                self._folder.begin(self.initial, self._sampler)
                if self._sampler is not None:
                    self._write_start()
            self._begin_fresh()
            self._log = RunLog(self.run_dir, self.config.tensorboard)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f'cannot write run_dir {self.run_dir}: {reason}') from error

    def _resume(self) -> None:
        self._folder.require_begun_with(self.initial, self._sampler)
        self.learner.load(self._folder.state)
        tensors, _ = load_state(self._folder.state)
        # States of older programs have none: a student is distilled on what comes from now on.
        if OBSERVED in tensors:
            self._observations.extend(tensors[OBSERVED].numpy())
        for manifest in self._folder.checkpoints():
            # A checkpoint newer than the state is of an update whose state was never written: it
            # will be made again.
            if manifest.version <= self.learner.version:
                self._versions[manifest.sha256] = manifest.version
                self.latest = manifest

    def _share(self) -> None:
        """Give every process what the first one holds: the others have no folder to read."""
        if parallel.world_size() == 1:
            return
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / self._folder.state.name
            if self._writes:
                self.learner.save(file)
                parallel.broadcast(file.read_bytes())
                parallel.broadcast(json.dumps([self.resumed, self._versions]).encode())
                return
            file.write_bytes(parallel.broadcast())
            self.learner.load(file)
        self.resumed, self._versions = json.loads(parallel.broadcast())

    def _begin_fresh(self) -> None:
        if self.config.fresh is None:
            return
        settings = replace(self.config.fresh, seed=self.config.learner.seed)
        self._fresh = FreshStudent(self.learner.policy, settings)
        # A run that had none so far: the student begins with the flow as it is now.
        file = self._folder.fresh(self.learner.updates)
        if not file.is_file():
            return
        self._fresh.load(file)
        try:
            student = ckpt.read_manifest(self._folder.student(self.learner.version))
        except ckpt.CheckpointError:  # none yet, or a kill while it was being written
            return
        # One of a version that a kill took back is another version's.
        if student.lineage.get('teacher') == self.latest.sha256:
            self.student = student

    def _write_start(self) -> None:
        self.latest = self.learner.policy.save(
            self._folder.checkpoint(0),
            lineage={'parent': self.initial.sha256, 'initial': self.initial.sha256},
            overwrite=True,
        )

    def _write_checkpoint(self, metrics: dict[str, float]) -> ckpt.Manifest:
        version = self.learner.version
        keep = ('success_rate', 'episodes', 'control_steps', 'action_std_ratio', 'cfm_ratio')
        if metrics['collapsed']:  # these weights are older ones: what was measured is of others
            keep = ('episodes', 'control_steps')
        self.latest = self.learner.policy.save(
            self._folder.checkpoint(version),
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
            self._folder.student(version),
            kind='student',
            version=version,
            lineage={'teacher': self.latest.sha256, 'initial': self.initial.sha256},
            overwrite=True,
        )

    def _prune(self, what: str) -> None:
        self._folder.prune(what, self.config.keep_checkpoints)
