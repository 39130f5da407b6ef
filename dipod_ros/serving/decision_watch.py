# SPDX-License-Identifier: Apache-2.0
"""Tells of decisions that take too long. An injected clock, no ROS.

The arm needs none of this: its plans end at rest. Whoever looks at it wants to know why it stopped.
"""

from __future__ import annotations

from collections.abc import Callable

from dipod_ros.serving.notices import Notices
from dipod_ros.serving.safety import WATCHDOG, SafetyFilter, Watchdog


class DecisionWatch:
    """Watches one decision at a time."""

    def __init__(
        self, timeout_s: float, safety: SafetyFilter, notices: Notices, clock: Callable[[], float]
    ) -> None:
        """Take how long a decision may take, where it is counted and told, and a steady clock."""
        self._watchdog = Watchdog(timeout_s, clock)
        self._safety, self._notices = safety, notices

    def begin(self) -> None:
        """Note that a decision begins."""
        self._watchdog.begin()

    def end(self) -> None:
        """Note that a decision was made."""
        self._watchdog.end()
        self._notices.clear('watchdog', 'decisions are in time again')

    def look(self) -> None:
        """Tell, once, of a decision that takes too long."""
        if self._watchdog.expired:
            timeout_s = self._watchdog.timeout_s
            text = f'a decision takes longer than watchdog_s {timeout_s:g}: braking'
            if text not in self._notices.active:
                self._safety.count(WATCHDOG)
            self._notices.set('watchdog', text)

    def judge(self, ticks: int, horizon: int) -> bool:
        """Tell whether a chunk of `horizon` steps is there in time, `ticks` after its tick."""
        if ticks < horizon:
            self._notices.clear('late', 'decisions are in time again')
            return True
        self._notices.set(
            'late',
            f'a decision, with the age of its joint states, takes longer than the {horizon} '
            'control periods of its chunk: none of it can be executed',
        )
        return False
