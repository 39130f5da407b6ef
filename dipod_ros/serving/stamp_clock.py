# SPDX-License-Identifier: Apache-2.0
"""The robot's clock, read off its stamps: no clock of our own has to agree with it. No ROS."""

from __future__ import annotations

NS_PER_S = 1_000_000_000
# How fast two clocks may drift apart: 500 ppm is what NTP slews at most, 100 ppm a bad crystal.
DRIFT_NS_PER_S = 500_000
# A bigger step than this is no transport delay: the clock was set, or a simulation began again.
JUMP_NS = 500_000_000


class StampClock:
    """Maps steady time to the sender's stamps from (stamp, receipt) pairs.

    A message is never received before it is stamped, so the largest `stamp - receipt` seen is the
    best; it decays slowly so that drifting clocks are followed. Good enough to know when something
    is due; not to date a knot of a trajectory, which a shift of a millisecond would tear apart.
    """

    def __init__(self) -> None:
        self._offset_ns: float | None = None
        self._at_s = 0.0
        self.jumps = 0  # how often the sender's clock was set

    def observe(self, stamp_ns: int, received_s: float) -> None:
        """Take one message; stamp 0 (no clock) and repeats teach nothing."""
        if not stamp_ns:
            return
        sample = stamp_ns - received_s * NS_PER_S
        if self._offset_ns is None:
            self._offset_ns = sample
        elif abs(sample - self._offset_ns) > JUMP_NS:
            self._offset_ns = sample
            self.jumps += 1
        else:
            decayed = self._offset_ns - DRIFT_NS_PER_S * max(0.0, received_s - self._at_s)
            self._offset_ns = max(decayed, sample)
        self._at_s = received_s

    @property
    def known(self) -> bool:
        """Whether the sender has a clock."""
        return self._offset_ns is not None

    def stamp_ns(self, steady_s: float) -> int | None:
        """Return the sender's time at a steady time, None when it has no clock."""
        if self._offset_ns is None:
            return None
        return round(steady_s * NS_PER_S + self._offset_ns)
