# SPDX-License-Identifier: Apache-2.0
"""A file of demonstrations that grows by episodes. No ROS.

What is on disk is always whole: every change writes the file anew, in place of the one before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.dataset import MAX_IMAGE_BYTES, Demonstrations, require_space
from dipod_ros.learning.demonstrations.recording import Episode
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.policy.writable import require_writable

# What must agree with the file that is there. Network and sampler are chosen when training.
SAME = ('task', 'robot', 'joints', 'limits', 'streams', 'horizon', 'control_period_s', 'action')


class DemonstrationFile:
    """The episodes of a file, those that were there and those of this session."""

    def __init__(self, path: str | Path, spec: PolicySpec) -> None:
        """Read the file if it is there.

        Raises UserError when it is none, is of another spec, or cannot be written.
        """
        self.path = Path(path).expanduser()
        self.spec = spec
        self._before: Demonstrations | None = None
        self._added: list[tuple[Episode, bool]] = []
        self.unsaved = False
        require_writable(self.path)
        if self.path.exists():
            self._before = Demonstrations.load(self.path)
            self._check_same(self._before.spec)
            if self._before.privileged:
                raise UserError(
                    f'{self.path} was made in simulation and holds what a robot does not know '
                    f'({", ".join(self._before.privileged)}); choose another output'
                )

    @property
    def session_episodes(self) -> int:
        """Episodes added since the file was opened."""
        return len(self._added)

    @property
    def success(self) -> list[bool]:
        """Whether each episode succeeded, in order."""
        before = [] if self._before is None else self._before.success.tolist()
        return before + [success for _, success in self._added]

    @property
    def decisions(self) -> int:
        """Decisions of all episodes."""
        before = 0 if self._before is None else len(self._before.observations)
        return before + sum(len(e.observations) for e, _ in self._added)

    @property
    def room(self) -> int | None:
        """How many decisions there is room for, None without pictures."""
        size = sum(int(np.prod(s.image.shape)) for s, _ in self.spec.images)
        return MAX_IMAGE_BYTES // size - self.decisions if size else None

    def add(self, episode: Episode, success: bool) -> None:
        """Add an episode and write the file.

        Raises UserError when there is no room for its pictures: it is not added; and when the file
        cannot be written: it is kept, `unsaved` says so, and `save` tries again.
        """
        require_space(self.spec, self.decisions + len(episode.observations))
        self._added.append((episode, success))
        self.save()

    def discard(self) -> bool:
        """Drop the last episode of this session and write the file.

        Returns whether it succeeded. Raises UserError when this session has none, or the file
        cannot be written.
        """
        if not self._added:
            raise UserError('this session has recorded no episode; older ones stay in the file')
        _, success = self._added.pop()
        self.save()
        return success

    def save(self) -> None:
        """Write everything; a file without episodes is removed. Raises UserError."""
        self.unsaved = True
        if self.decisions:
            self._demonstrations().save(self.path)
        else:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f'cannot remove {self.path}: {error.strerror}') from error
        self.unsaved = False

    def _demonstrations(self) -> Demonstrations:
        before, first = self._before, len(self.success) - len(self._added)
        episodes = [e for e, _ in self._added]
        parts = episodes if before is None else [before, *episodes]
        owners = [np.full(len(e.observations), first + k) for k, e in enumerate(episodes)]
        if before is not None:
            owners.insert(0, before.episodes)
        return Demonstrations(
            spec=self.spec if before is None else before.spec,
            observations=np.concatenate([p.observations for p in parts]),
            actions=np.concatenate([p.actions for p in parts]),
            episodes=np.concatenate(owners).astype(np.int32),
            success=np.array(self.success),
            seed=0 if before is None else before.seed,
            images={
                s.name: np.concatenate([p.images[s.name] for p in parts])
                for s, _ in self.spec.images
            },
        )

    def _check_same(self, other: PolicySpec) -> None:
        mine, theirs = self.spec.to_dict(), other.to_dict()
        for name in SAME:
            if mine[name] != theirs[name]:
                raise UserError(
                    f'{self.path} is there and has another {name}: {_short(theirs[name])}, '
                    f'not {_short(mine[name])}; choose another output'
                )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 100 else f'{text[:97]}...'
