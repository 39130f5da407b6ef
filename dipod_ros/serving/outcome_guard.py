# SPDX-License-Identifier: Apache-2.0
"""Refuses outcomes whose stamps cannot be of now, by the robot's clock, in real time. No ROS.

What an outcome is about is told by its stamp alone. One of a clock that is ahead would judge
decisions that nobody has judged yet, and its reset would wait for joint states of the future.
"""

from __future__ import annotations

from collections import deque

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.stamp_clock import NS_PER_S
from dipod_ros.serving.tick_grid import TickGrid

# A simulation that began again says so before its joint states have set the robot's clock: what
# was refused is looked at again for so long, far above the time that setting a clock takes.
HOLD_S = 1.0
HELD = 16  # outcomes at most; of more than these the oldest say nothing of the present


class OutcomeGuard:
    """Judges the stamp of each outcome as it comes, once the robot's clock is known."""

    def __init__(
        self,
        tolerance_s: float,
        patience_s: float,
        joint_topic: str,
        grid: TickGrid,
        notices: Notices,
    ) -> None:
        """Take the clock, and how far off a stamp may be.

        Args:
            tolerance_s: how far from the robot's clock; 0 accepts all.
            patience_s: how much later than that an outcome may come: whoever judges takes time.
            joint_topic: whose clock it is.
            grid: knows the robot's clock; decisions begin when the grid does.
            notices: told of outcomes that are refused.

        """
        self._tolerance_s, self._patience_s = tolerance_s, patience_s
        self._joint_topic = joint_topic
        self._grid = grid
        self._notices = notices
        self._held: deque[tuple[Outcome, float]] = deque(maxlen=HELD)  # with their receipt

    def admit(self, outcome: Outcome, received_s: float) -> bool:
        """Tell whether an outcome counts now; one that does not may come back from `again`."""
        if not self._tolerance_s:
            return True
        if self._grid.begun:
            reason = self._refusal(outcome, received_s)
            if not reason:
                self._notices.clear('outcome', 'outcomes are of now again')
                return True
            self._notices.set('outcome', reason)
        self._held.append((outcome, received_s))
        return False

    def again(self, now_s: float) -> list[Outcome]:
        """Return those that were refused, or came before the clock was known, and count now."""
        if not self._held or not self._grid.begun:
            return []
        held, admitted = list(self._held), []
        self._held.clear()
        for outcome, received_s in held:
            reason = self._refusal(outcome, received_s)
            if not reason:
                admitted.append(outcome)
            elif now_s - received_s < HOLD_S:
                self._held.append((outcome, received_s))
            else:
                self._notices.set('outcome', reason)
        if admitted:
            self._notices.clear('outcome', 'outcomes are of now again')
        return admitted

    def _refusal(self, outcome: Outcome, received_s: float) -> str:
        """Return why an outcome is refused, '' when it is not."""
        robot_ns = self._grid.robot_ns(received_s) if outcome.stamp_ns else None
        off_s = 0.0 if robot_ns is None else (outcome.stamp_ns - robot_ns) / NS_PER_S
        late_s = self._tolerance_s + self._patience_s
        if -late_s <= off_s <= self._tolerance_s:
            return ''
        # How far exactly stays out of the text, so that a lasting problem is one problem.
        side, allowed_s = ('ahead of', self._tolerance_s) if off_s > 0 else ('behind', late_s)
        return (
            f"outcomes are refused: their stamps are {side} the robot's clock, that of "
            f'{self._joint_topic}, by more than {allowed_s:g} s; give their sender that clock'
        )
