# SPDX-License-Identifier: Apache-2.0
"""Percentiles over a sliding window. numpy only."""

from __future__ import annotations

import numpy as np


class LatencyWindow:
    """The last `size` durations in seconds, the first `warmup` of them forgotten.

    A window, not a running maximum: one slow decision while the machine was busy must not lengthen
    every plan from then on.
    """

    def __init__(self, size: int = 512, warmup: int = 0) -> None:
        """Start empty."""
        self._ring = np.zeros(size)
        self._warmup = warmup
        self.count = 0  # all durations ever added, warm-up included

    def add(self, seconds: float) -> None:
        """Add one duration."""
        if self.count >= self._warmup:
            self._ring[(self.count - self._warmup) % len(self._ring)] = seconds
        self.count += 1

    def __len__(self) -> int:
        return min(max(self.count - self._warmup, 0), len(self._ring))

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds, 0.0 while there is nothing to go by."""
        return float(np.percentile(self._ring[: len(self)], percent)) if len(self) else 0.0

    @property
    def max(self) -> float:
        """The longest duration in the window, in seconds."""
        return self.percentile(100.0)
