# SPDX-License-Identifier: Apache-2.0
"""Whether the arm was put elsewhere when an episode began. numpy, no ROS.

A simulated arm may be anywhere from one joint state to the next; a real one gets no further than
its speed allows. Only the former may have its command begin elsewhere while it moves.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.serving.observation import Sample
from dipod_ros.serving.stamp_clock import NS_PER_S

# What a real arm is granted: so many times the way that its speed limit allows, and so much besides
# (rad), for noise and for stamps that are not exact.
FASTER = 2.0
JUMP_RAD = 0.05


class ResetWatch:
    """Looks at joint states from a reset on."""

    def __init__(self, velocity: np.ndarray, max_age_s: float) -> None:
        """Take the largest speeds [A] (rad/s), and how late joint states may come (s)."""
        self._velocity, self._max_age_s = velocity, max_age_s
        self._last: Sample | None = None

    def begin(self, sample: Sample | None) -> None:
        """Take the newest joint positions of before a reset."""
        self._last = sample

    def put_elsewhere(self, sample: Sample) -> bool:
        """Tell whether the arm went further since the sample before than an arm can."""
        last, self._last = self._last, sample
        if last is None or last is sample:
            return False
        elapsed_s = (sample.stamp_ns - last.stamp_ns) / NS_PER_S
        if not (last.stamp_ns and sample.stamp_ns and elapsed_s > 0):
            # When it came says when it was so, but for a delay.
            elapsed_s = sample.received_s - last.received_s + self._max_age_s
        reach = FASTER * self._velocity * elapsed_s + JUMP_RAD
        return bool(np.any(np.abs(sample.values - last.values) > reach))
