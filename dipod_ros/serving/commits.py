# SPDX-License-Identifier: Apache-2.0
"""Commits the control points of a course as the robot's clock goes on. No ROS.

A point that is committed stays: what was sent of it is on its way, or executed.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.serving.course import Course
from dipod_ros.serving.following import FollowingGuard
from dipod_ros.serving.forecast import ODD_RAD, TrackingLag
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.pacing import Pacing
from dipod_ros.serving.safety import UNDERRUN, SafetyFilter
from dipod_ros.serving.tick_grid import TickGrid
from dipod_ros.serving.timeline import TRAIL

# A trajectory is on its way for so long (parts of a period), with some slack.
MARGIN = 0.3


class Commits:
    """Moves the tick of a course along a grid, and watches how the arm follows."""

    def __init__(
        self,
        course: Course,
        grid: TickGrid,
        pacing: Pacing,
        following: FollowingGuard,
        safety: SafetyFilter,
        trajectory: bool,
    ) -> None:
        """Take what is committed, and when; `trajectory` where whole plans are sent."""
        self._following = following
        self._course, self._grid, self._pacing = course, grid, pacing
        self._safety, self._trajectory = safety, trajectory
        self._tracking = TrackingLag(len(safety.limits.joints), safety.dt)
        # An arm that follows is no further from its command; one odd joint state says nothing.
        config = following.config
        self._odd_rad = (config.tolerance_rad or ODD_RAD) + config.lag_s * safety.limits.velocity

    @property
    def lag_s(self) -> np.ndarray:
        """By how much each joint [A] trails its command (s)."""
        return self._tracking.seconds

    def seen(self, sample: Sample) -> int:
        """Return the tick that a sample shows; never one that is not committed."""
        return min(self._grid.nearest(sample), self._course.tick)

    def follow(self, joints: Sample, at_least: int, held: bool) -> None:
        """Commit what is due by now, and up to tick `at_least`; an arm that acts has to follow."""
        course = self._course
        seen, plan = self.seen(joints), course.timeline.plan
        tick = max(self._grid.follow(course.tick), at_least)
        if tick > course.tick:
            self._pacing.committed(course, self._grid.behind(joints, course.tick))
            if plan is not None and seen > plan.start - TRAIL + 1:
                error = joints.values - plan.knot(seen)
                if np.all(np.abs(error) <= self._odd_rad):
                    self._tracking.observe(error, plan.velocity(seen, self._safety.dt))
            if plan is not None:
                self._following.note(plan, tick)
                if not held:
                    self._following.judge(joints, seen, tick)
        course.tick = tick

    def catch_up(self) -> None:
        """Commit what is due by now, if the control thread still waits for a processor.

        Otherwise a decision would change a segment that the controller is on already.
        """
        if self._trajectory:
            before = self._course.tick
            self._course.tick = self._grid.follow(before)
            self.count_underrun(before)

    def open_tick(self, before: int) -> int:
        """Return the tick, `before` if possible, from which what is sent now may differ."""
        if self._trajectory and self._grid.begun and self._grid.until(before) < MARGIN:
            return self._course.tick
        return before

    def count_underrun(self, before: int) -> None:
        """Count a chunk that came to its end since tick `before`, without a successor."""
        plan = self._course.timeline.plan
        chunk = plan is not None and plan.chunk_start is not None
        if chunk and before <= plan.chunk_end < self._course.tick:
            self._safety.count(UNDERRUN)
