# SPDX-License-Identifier: Apache-2.0
"""The robot's clock, read off its stamps: no clock of our own has to agree with it. No ROS."""

from __future__ import annotations

from collections import deque

NS_PER_S = 1_000_000_000
# Messages remembered: a few seconds at control rate, over which clocks drift by microseconds.
WINDOW = 64
# A bigger step than this is no transport delay: the clock was set, or a simulation began again.
JUMP_NS = 500_000_000
# A message this far ahead of all before it, which nothing but delays far above a sensor's would
# explain, is believed when the next one agrees: one odd stamp must not move the clock.
ODD_NS = 100_000_000
# Clocks that differ by less than this run alike and only the delays differ; more is a simulation
# that is slower or faster than real time. Judged over at least so many messages and seconds.
SAME_RATE = 0.05
RATE_MESSAGES = 16
RATE_SPAN_S = 0.5


class StampClock:
    """Maps steady time to the sender's stamps from (stamp, receipt) pairs.

    A message is never received before it is stamped, so the pair that puts the sender's clock
    furthest ahead is the best one. Good enough to know when something is due; not to date a knot of
    a trajectory, which a shift of a millisecond would tear apart.
    """

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._rate = 1.0  # sender's seconds per steady second
        self._best: tuple[int, float] | None = None
        self._newest: tuple[int, float] | None = None
        self._odd = False  # whether the last message was too far ahead to be believed by itself
        self._first_s: float | None = None
        self._last_s = 0.0
        self._messages = 0
        self.jumps = 0  # how often the sender's clock was set

    @property
    def known(self) -> bool:
        """Whether the sender has a clock."""
        return self._best is not None

    @property
    def rate(self) -> float:
        """Sender's seconds per steady second; 1 but for simulations."""
        return self._rate

    @property
    def settled(self) -> bool:
        """Whether enough was heard to rely on `known` and on `stamp_ns`."""
        return (
            self._messages >= RATE_MESSAGES
            and self._first_s is not None
            and self._last_s - self._first_s >= RATE_SPAN_S
        )

    def observe(self, stamp_ns: int, received_s: float) -> None:
        """Take one message; one that was received before, or stamped so, teaches nothing."""
        if received_s == self._last_s:
            return
        self._first_s = received_s if self._first_s is None else self._first_s
        self._last_s = received_s
        self._messages += 1
        if not stamp_ns or (self._pairs and self._pairs[-1][0] == stamp_ns):
            return
        if self._pairs and abs(stamp_ns - self._ahead_ns(self._pairs[-1], received_s)) > JUMP_NS:
            self._pairs.clear()
            self.jumps += 1
        elif self._best is not None and not self._odd:
            self._odd = stamp_ns - self._ahead_ns(self._best, received_s) > ODD_NS
            if self._odd:
                return
        self._odd = False
        self._newest = (stamp_ns, received_s)
        self._pairs.append(self._newest)
        self._rate = self._measure_rate()
        self._best = max(self._pairs, key=lambda p: self._ahead_ns(p, received_s))

    def stamp_ns(self, steady_s: float) -> int | None:
        """Return the sender's time at a steady time, None when it has no clock."""
        return None if self._best is None else round(self._ahead_ns(self._best, steady_s))

    def about_ns(self, steady_s: float) -> int | None:
        """Return the sender's time to within a delay, by its newest message, None without a clock.

        Unlike `stamp_ns` it follows a simulation that gets slower at once.
        """
        newest = self._newest  # another thread may ask while `observe` runs
        return None if newest is None else round(self._ahead_ns(newest, steady_s))

    def _ahead_ns(self, pair: tuple[int, float], steady_s: float) -> float:
        return pair[0] + (steady_s - pair[1]) * self._rate * NS_PER_S

    def _measure_rate(self) -> float:
        (first_ns, first_s), (last_ns, last_s) = self._pairs[0], self._pairs[-1]
        if len(self._pairs) < RATE_MESSAGES or last_s - first_s < RATE_SPAN_S:
            return self._rate if len(self._pairs) > 1 else 1.0
        rate = (last_ns - first_ns) / NS_PER_S / (last_s - first_s)
        return 1.0 if abs(rate - 1) < SAME_RATE or rate <= 0 else rate
