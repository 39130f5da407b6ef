# SPDX-License-Identifier: Apache-2.0
"""Outcomes have to come in the order of their stamps; knows those that do not, and tells. No ROS.

What was earned since the outcome before is only known when nothing came in between. One that was
overtaken by a newer one cannot be made up for: the decision it is about may be recorded already.
"""

from __future__ import annotations

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import SAME_STAMP_NS

# It is told of until outcomes came in order for so long, by their stamps.
CALM_NS = 10_000_000_000


class OutcomeOrder:
    """Remembers the newest stamp."""

    def __init__(self, notices: Notices) -> None:
        """Take who is told."""
        self._notices = notices
        self._newest_ns = 0  # 0 before there is one
        self._told_ns: int | None = None  # newest stamp when one was refused last
        self.refused = 0

    def overtaken(self, outcome: Outcome) -> bool:
        """Tell whether one that is stamped later came before it."""
        return 0 < outcome.stamp_ns < self._newest_ns - SAME_STAMP_NS

    def take(self, outcome: Outcome) -> None:
        """Take note of one that came in order."""
        self._newest_ns = outcome.stamp_ns or self._newest_ns
        if self._told_ns is not None and self._newest_ns - self._told_ns > CALM_NS:
            self._told_ns = None
            self._notices.clear('outcome order', 'outcomes come in the order of their stamps again')

    def refuse(self) -> None:
        """Tell of one that was overtaken, and matters."""
        self.refused += 1
        self._told_ns = self._newest_ns
        self._notices.set(
            'outcome order',
            'outcomes are refused: others that are stamped later came before them; publish them '
            'in the order of their stamps, from one node',
        )

    def clock_was_set(self) -> None:
        """Forget stamps of another time."""
        self._newest_ns = 0
        if self._told_ns is not None:
            self._told_ns = 0
