# SPDX-License-Identifier: Apache-2.0
"""From a decision that was made to a record that says what became of it. numpy, no ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dipod_ros.policy.decision import Decision
from dipod_ros.serving.observation import SAME_STAMP_NS


@dataclass(frozen=True)
class Outcome:
    """What became of the time since the previous outcome of this world.

    reset: the observation that carries the same stamp belongs to a new episode (`episode` + 1).
    """

    stamp_ns: int
    episode: int
    reward: float = 0.0
    success: bool = False
    terminated: bool = False
    truncated: bool = False
    reset: bool = False

    @property
    def episode_now(self) -> int:
        """The episode that observations with this stamp belong to."""
        return self.episode + 1 if self.reset else self.episode


@dataclass
class _Open:
    """A decision and what became known of it since; one record is made of both, at its end.

    Replacing the record with every piece of news would cost time while a command is waited for.
    """

    record: Decision  # as known when the decision was made
    stamp_ns: int
    end_ns: int | None = None  # when its successor took over
    ended_s: float = 0.0  # the same on the steady clock
    settled: bool = False  # an outcome reached its end
    executed: np.ndarray | None = None
    reward: float = 0.0
    success: bool = False
    terminated: bool = False
    truncated: bool = False
    interrupted: bool = False
    spoiled: bool = False  # an outcome about it was refused
    latency_s: float = 0.0

    def covers(self, stamp_ns: int) -> bool:
        """Tell whether an outcome with this stamp is about it."""
        begun = stamp_ns > self.stamp_ns + SAME_STAMP_NS
        over = self.end_ns is not None and stamp_ns > self.end_ns + SAME_STAMP_NS
        return begun and not over

    def add(self, outcome: Outcome) -> None:
        """Add an outcome that is about this decision."""
        self.reward += outcome.reward
        self.success = self.success or outcome.success
        self.terminated = self.terminated or outcome.terminated
        self.truncated = self.truncated or outcome.truncated

    def close(self) -> Decision:
        """Return the whole record."""
        record = self.record
        return replace(
            record,
            executed=self.executed.astype(np.float32),
            reward=record.reward + self.reward,
            success=record.success or self.success,
            terminated=record.terminated or self.terminated,
            truncated=record.truncated or self.truncated,
            # What nobody judged, nobody may learn from.
            interrupted=record.interrupted or self.interrupted or self.spoiled or not self.settled,
            latency_s=self.latency_s,
        )


class DecisionLog:
    """Attributes outcomes to decisions by their stamps and hands out finished records in order.

    A decision covers the time from its observation to that of its successor. Without an outcome for
    all of it within `patience_s` the record is given out as interrupted.
    """

    def __init__(self, clock: Callable[[], float], patience_s: float = 1.0) -> None:
        """Take a steady clock."""
        self._clock = clock
        self.patience_s = patience_s
        self._open: deque[_Open] = deque()
        self._judged_ns: int | None = None  # stamp of the newest outcome
        self._out_ns = 0  # end of the newest record that is out
        self.unjudged = 0
        self.completed = 0

    @property
    def current(self) -> Decision | None:
        """The decision that is being executed, as it was begun."""
        last = self._open[-1] if self._open else None
        return last.record if last is not None and last.end_ns is None else None

    def begin(self, record: Decision, stamp_ns: int) -> None:
        """Execute a decision from now on; its predecessor must have ended."""
        self._open.append(_Open(record, stamp_ns))

    def sent(self, latency_s: float) -> None:
        """Note that the command of the decision being executed is out."""
        if self.current is not None:
            self._open[-1].latency_s = latency_s

    def end(self, stamp_ns: int, executed: np.ndarray, interrupted: bool = False) -> None:
        """End the decision being executed at `stamp_ns`; executed [H, A] in the policy's order.

        interrupted: it was not executed as sampled up to here.
        """
        if self.current is None:
            return
        last = self._open[-1]
        last.executed, last.interrupted = executed, interrupted
        last.end_ns = stamp_ns
        last.ended_s = self._clock()
        # In lockstep the outcome of a decision is there before its end is noticed.
        last.settled = self._judged_ns is not None and self._judged_ns >= stamp_ns - SAME_STAMP_NS

    def judge(self, outcome: Outcome) -> None:
        """Add an outcome to the decision that it is about."""
        self._judged_ns = outcome.stamp_ns
        for entry in self._open:
            if not entry.settled and entry.covers(outcome.stamp_ns):
                entry.add(outcome)
            # Settled by whatever comes at its end or later, even when that is about another one.
            if entry.end_ns is not None and outcome.stamp_ns >= entry.end_ns - SAME_STAMP_NS:
                entry.settled = True

    def spoil(self, stamp_ns: int) -> bool:
        """Mark what an outcome that is refused is about; return whether it is about a decision.

        One whose record is out already can no longer be marked.
        """
        spoiled = [entry for entry in self._open if entry.covers(stamp_ns)]
        for entry in spoiled:
            entry.spoiled = True
        return bool(spoiled) or stamp_ns <= self._out_ns + SAME_STAMP_NS

    def doubt(self) -> None:
        """Mark all that is not out: an outcome is about it, or is not, and nobody knows."""
        for entry in self._open:
            entry.spoiled = True

    def clock_was_set(self) -> None:
        """Forget stamps of another time: they judge nothing that is decided from now on."""
        self._judged_ns, self._out_ns = None, 0

    def conclude(self, stamp_ns: int) -> int:
        """End the episode at an outcome that was judged; return how many decisions are forgotten.

        What the outcome is about waits for no other one. What was decided on observations of after
        it belongs to no episode.
        """
        count = len(self._open)
        while self._open and stamp_ns <= self._open[-1].stamp_ns + SAME_STAMP_NS:
            self._open.pop()
        for entry in self._open:
            entry.settled = entry.settled or entry.end_ns is not None
        return count - len(self._open)

    def finished(self, flush: bool = False) -> list[Decision]:
        """Return the records that are complete, in order; with `flush`, all that ended."""
        out = []
        while self._open and self._open[0].end_ns is not None:
            entry = self._open[0]
            late = self._clock() - entry.ended_s > self.patience_s
            if not (entry.settled or late or flush):
                break
            self._open.popleft()
            self._out_ns = entry.end_ns
            self.unjudged += not entry.settled
            self.completed += 1
            out.append(entry.close())
        return out
