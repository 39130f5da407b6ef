# SPDX-License-Identifier: Apache-2.0
"""Percentiles over a sliding window."""

from __future__ import annotations

import bisect
import threading
from collections import deque


class LatencyWindow:
    """The last `size` durations in seconds, the first `warmup` of them forgotten.

    A window, not a running maximum: one slow decision while the machine was busy must not lengthen
    every plan from then on. Percentiles are asked for while a command is waited for, so the window
    is kept sorted: what costs time is `add`, after the command.
    """

    def __init__(self, size: int = 512, warmup: int = 0) -> None:
        """Start empty."""
        self._newest: deque[float] = deque()
        self._ordered: list[float] = []
        self._size = size
        self._warmup = warmup
        self._lock = threading.Lock()  # diagnostics ask from another thread
        self.count = 0  # all durations ever added, warm-up included

    def add(self, seconds: float) -> None:
        """Add one duration."""
        with self._lock:
            self.count += 1
            if self.count <= self._warmup:
                return
            if len(self._newest) == self._size:
                del self._ordered[bisect.bisect_left(self._ordered, self._newest.popleft())]
            self._newest.append(seconds)
            bisect.insort(self._ordered, seconds)

    def __len__(self) -> int:
        return len(self._newest)

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds, 0.0 while there is nothing to go by.

        Between two durations it is interpolated, as numpy.percentile does by default.
        """
        with self._lock:
            if not self._ordered:
                return 0.0
            at = percent / 100.0 * (len(self._ordered) - 1)
            below = int(at)
            low = self._ordered[below]
            high = self._ordered[min(below + 1, len(self._ordered) - 1)]
            return low + (high - low) * (at - below)

    @property
    def max(self) -> float:
        """The longest duration in the window, in seconds."""
        return self.percentile(100.0)
