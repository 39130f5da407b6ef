# SPDX-License-Identifier: Apache-2.0
"""When a decision is due, and at which tick its chunk will be there. Injected clocks, no ROS.

A control point is committed once per period, a little before or after its tick. The next decision
has to begin early enough that its chunk is there when it is wanted, on an observation that is as
new as it can be.
"""

from __future__ import annotations

import math
from collections import deque

from dipod_ros.serving.course import Course
from dipod_ros.serving.latency import LatencyWindow
from dipod_ros.serving.loop import LoopConfig
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.tick_grid import TickGrid
from dipod_ros.serving.timeline import ChunkTimeline

# Which latency the next decision allows for: nearly the worst of the last few hundred.
LATENCY_PERCENTILE = 99.0
# What is expected of one when nothing is gained by waiting longer.
USUAL_PERCENTILE = 50.0
# When the point of tick k + 1 is committed, in parts of a period before tick k. A trajectory takes
# time to reach the controller, which must not have begun the segment that a new one changes; a
# position is sent when it is due, and waits a little for a decision on the observation of tick k.
LEAD = {'trajectory': 0.5, 'position': -0.25}
# How many ticks the newest observation is behind what is committed then, at best.
LAG = {'trajectory': 1, 'position': 0}
# Joint states that always come late are waited for as long as they took over so many periods; at
# the end of a chunk, where the arm would brake meanwhile, as long as they ever took over more.
LAG_WINDOW, END_WINDOW = 8, 64
# Which part of a period a decision may take, from that observation on, before the next commit.
FREE = {'trajectory': 0.4, 'position': 0.2}
# A sample this much (parts of a period) older than a tick still shows the arm at that tick.
FRESH = 0.1


class Pacing:
    """Chooses the moments of decisions on a grid of control periods."""

    def __init__(
        self, config: LoopConfig, period_s: float, grid: TickGrid, latency: LatencyWindow
    ) -> None:
        """Take how commands are sent, the control period, its ticks, and the engine's latency."""
        interface = config.interface
        self._period_s = period_s
        self._replan_steps, self._forecast = config.replan_steps, config.forecast
        self._grid, self._latency = grid, latency
        self._lag, self._free = LAG[interface], FREE[interface]
        # A decision must be there this part of a period before the commit that it is for.
        self._margin = (1.0 - LEAD[interface]) % 1.0 - self._free
        self._lags: deque[int] = deque(maxlen=LAG_WINDOW)  # what was reached in the last periods
        self._end_lags: deque[int] = deque(maxlen=END_WINDOW)
        self._waits: int | None = None  # the lag that was asked for in vain in this period
        self._thinking = False  # a decision is under way
        self._due_tick: int | None = None  # the first tick at which the next decision was due
        self._tried_tick = -1  # the last tick at which a decision was tried

    def committed(self, course: Course, behind: float) -> None:
        """Take by how many periods the newest observation is older than the tick of a course.

        The point of the next tick is committed now.
        """
        lag = math.ceil(behind - FRESH)  # with which `due` would have found it fresh by now
        self._lags.append(lag)
        if _on_chunk(course.timeline, course.tick):
            # What came in the last moment was there, and was still too late.
            self._end_lags.append(lag if self._waits is None else max(lag, self._waits + 1))
        self._waits = None

    def begin(self, tick: int) -> None:
        """Note that a decision begins at a tick."""
        self._tried_tick, self._due_tick, self._waits = tick, None, None

    def think(self) -> None:
        """Note that the policy is asked; the decision is made when `end` is called."""
        self._thinking = True

    def end(self) -> None:
        """Note that a decision was made: `due` was asked meanwhile, and knew of no successor."""
        self._due_tick, self._thinking = None, False

    def tried(self, tick: int) -> bool:
        """Tell whether a decision was tried at a tick already.

        One try per period: an engine that fails at once must not be asked in a busy loop.
        """
        return tick <= self._tried_tick

    def due(self, course: Course, horizon: int, sample: Sample | None, anew: bool) -> bool:
        """Tell whether to decide now, on a sample; `anew` whatever is left of the chunk."""
        timeline, tick = course.timeline, course.tick
        if timeline.index(tick) is not None and not anew:
            replan = min(self._replan_steps or horizon, timeline.covered)
            # Early enough that the new chunk is there when `replan` steps of this one are behind.
            most = horizon - (0 if self._forecast else 1)
            if timeline.consumed(tick) + min(self.latency_ticks(), most) < replan:
                return False
        if self._due_tick is None:
            self._due_tick = tick
        # The observation of this very tick is about to come; but one tick is all it is waited for.
        reached = min(self._lags, default=0)
        if _on_chunk(timeline, tick) and timeline.remaining(tick) <= self.latency_ticks():
            reached = max(self._end_lags, default=0)  # there it has to have come every time
        lag = max(self._lag, reached)
        if self._grid.behind(sample, tick - lag) <= FRESH or tick > self._due_tick:
            return True
        if not self._thinking:
            self._waits = lag
        return False

    def latency_ticks(self) -> int:
        """Return how many control periods pass while a decision on a new observation is made."""
        latency_s = self._latency.percentile(LATENCY_PERCENTILE)
        return int(latency_s / self._period_s + 1.0 - self._free)

    def expected_tick(self, course: Course) -> int:
        """Return the tick that will be committed when a decision that begins now is made.

        Nearly the worst latency is allowed for while the chunk covers that time. Beyond its end the
        arm would stand and wait for what is probably there already: only the usual latency counts.
        """
        tick = course.tick
        worst, usual = (
            self._grid.tick_after(tick, self._latency.percentile(p), self._margin)
            for p in (LATENCY_PERCENTILE, USUAL_PERCENTILE)
        )
        return max(min(worst, tick + course.timeline.remaining(tick)), usual)


def _on_chunk(timeline: ChunkTimeline, tick: int) -> bool:
    """Tell whether the point of a tick is one of a chunk."""
    plan = timeline.plan
    return plan is not None and plan.chunk_start is not None and tick <= plan.chunk_end
