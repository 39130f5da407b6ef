# SPDX-License-Identifier: Apache-2.0
"""Whether the arm stands, by several joint states. numpy, no ROS.

A command begins where the arm is. One joint state does not tell: it may be the odd one of a driver
that starts, or of an arm that something else moves, and a command that begins there is a jump.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.stamp_clock import NS_PER_S

# So many joint states, over so long (s, the robot's clock), have to agree within so much (rad)
# unless told otherwise: well above the noise of most encoders, and an arm that passes is no slower
# than 0.05 rad/s. Hobby servos count in steps of that size, and flicker between two.
SAMPLES = 3
SPAN_S = 0.1
AGREE_RAD = 5e-3
# It is told that the arm moves when a beginning waits for it for longer than this (s): in the first
# moments there are too few joint states.
PATIENCE_S = 0.5


class Stillness:
    """Remembers the joint states of the last moments."""

    def __init__(self, notices: Notices, agree_rad: float | Sequence[float] = AGREE_RAD) -> None:
        """Take whom to tell, and within what joint states agree, one for all or [A] (rad)."""
        self._notices = notices
        self.agree_rad = np.asarray(agree_rad, dtype=np.float64)
        self._past: deque[Sample] = deque()
        self._waits_since_s: float | None = None

    def look(self, sample: Sample | None) -> None:
        """Take the newest joint positions; those that were taken before teach nothing."""
        last = self._past[-1] if self._past else None
        if sample is None or sample is last:
            return
        if last is not None and not _seconds(last, sample) > 0:
            self._past.clear()  # the robot's clock was set, or the same joint state came again
        self._past.append(sample)
        while len(self._past) > SAMPLES and _seconds(self._past[1], sample) >= SPAN_S:
            self._past.popleft()

    def forget(self) -> None:
        """Forget the joint states so far: the time between them and the next says nothing."""
        self._past.clear()

    @property
    def stands(self) -> bool:
        """Whether the last joint states agree on where the arm is."""
        return self._enough and self._agree

    @property
    def moves(self) -> bool:
        """Whether the last joint states are enough to tell that the arm does not stand."""
        return self._enough and not self._agree

    @property
    def _enough(self) -> bool:
        past = self._past
        return len(past) >= SAMPLES and _seconds(past[0], past[-1]) >= SPAN_S * (1 - 1e-6)

    @property
    def _agree(self) -> bool:
        newest = self._past[-1].values
        return all(np.all(np.abs(s.values - newest) <= self.agree_rad) for s in self._past)

    def allows(self, now_s: float) -> bool:
        """Return whether the command may begin; tell, when that takes long, what it waits for."""
        if self.stands:
            self._waits_since_s = None
            self._notices.clear('moving', 'the arm stands')
            return True
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        if now_s - self._waits_since_s > PATIENCE_S:
            bounds = ', '.join(f'{b:g}' for b in np.unique(self.agree_rad))
            self._notices.set(
                'moving',
                f'the arm is moving: its joint states differ by more than still_rad {bounds} '
                f'within {SPAN_S:g} s; the command begins where it stands',
            )
        return False


def _seconds(earlier: Sample, later: Sample) -> float:
    """Return the time between two samples on the robot's clock, ours where it stamps nothing."""
    if earlier.stamp_ns and later.stamp_ns:
        return (later.stamp_ns - earlier.stamp_ns) / NS_PER_S
    return later.received_s - earlier.received_s
