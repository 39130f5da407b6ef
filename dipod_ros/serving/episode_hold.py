# SPDX-License-Identifier: Apache-2.0
"""Between episodes: whether nothing may be decided until the world says `reset`. numpy, no ROS.

Where a person sets the scene anew, the end of an episode and the beginning of the next are minutes
apart. The arm stands meanwhile, and what it does not need may be switched off.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.observation import SAME_STAMP_NS, StreamProblem

# What it waits for, as it is told.
RESET = 'reset'
# An arm that stood still is measured at one place but for noise and creep (rad). Further away it
# was moved by somebody, and what it was told before is not where it is.
MOVED_RAD = 0.02


class EpisodeHold:
    """Waits from an outcome that ends an episode to the one with `reset` that begins the next."""

    def __init__(self, enabled: bool, joint_topic: str) -> None:
        """Take whether to wait at all, and what is watched while waiting."""
        self._enabled, self._joint_topic = enabled, joint_topic
        self._reset_ns = 0  # stamp of the newest reset; 0 before there is one
        self._stood: np.ndarray | None = None  # where the arm was measured when it had come to rest
        self.waiting = False

    def take(self, outcome: Outcome) -> bool:
        """Take an outcome; return whether it ends the episode that is under way."""
        if outcome.reset:
            self.waiting, self._reset_ns = False, outcome.stamp_ns
            return False
        over = outcome.terminated or outcome.truncated
        if not (self._enabled and over) or self.waiting or self._of_the_one_before(outcome):
            return False
        self.waiting, self._stood = True, None
        return True

    def clock_was_set(self) -> None:
        """Forget stamps of another time."""
        self._reset_ns = 0

    def stands(self, position: np.ndarray) -> None:
        """Note where the arm is measured [A] (rad) while its command stands."""
        if self._stood is None:
            self._stood = position

    def moved(self, position: np.ndarray) -> bool:
        """Tell whether somebody moved the arm, now at [A] (rad), since it stood."""
        stood = self._stood
        return stood is not None and bool(np.any(np.abs(position - stood) > MOVED_RAD))

    def heeded(self, problems: list[StreamProblem]) -> list[StreamProblem]:
        """Return the problems that count now.

        Whoever publishes a goal or a picture may pause between episodes; the joint states say where
        the arm is, always.
        """
        if not self.waiting:
            return problems
        return [p for p in problems if p.topic == self._joint_topic]

    def _of_the_one_before(self, outcome: Outcome) -> bool:
        """Tell whether an outcome is about a time before the newest reset, and came late."""
        dated = outcome.stamp_ns and self._reset_ns
        return bool(dated) and outcome.stamp_ns <= self._reset_ns + SAME_STAMP_NS
