# SPDX-License-Identifier: Apache-2.0
"""Whether the arm may move: looks for reasons to stop or to go slowly, and acts on them. No ROS."""

from __future__ import annotations

from collections.abc import Callable

from dipod_ros.serving.agent import Agent
from dipod_ros.serving.course import Course
from dipod_ros.serving.episode_bounds import EpisodeBounds
from dipod_ros.serving.following import FollowingGuard
from dipod_ros.serving.observation import StreamProblem
from dipod_ros.serving.safety import ESTOP, FOLLOWING, OTHERS, STALE, SafetyFilter
from dipod_ros.serving.stream_watch import StreamWatch

STOPPING = 'stopping'
CLOCK_SET = 'clock set'
RESET = 'reset'
WAITING = 'waiting for a reset'
UNCOUNTED = (STOPPING, RESET, WAITING)  # the arm stands by somebody's will
YIELDING = (ESTOP, FOLLOWING, OTHERS)  # the command comes to the arm, wherever that was moved to


class Stops:
    """Brakes once for each reason, and forbids decisions while there is one."""

    def __init__(
        self,
        course: Course,
        agent: Agent,
        safety: SafetyFilter,
        streams: StreamWatch,
        episodes: EpisodeBounds,
        following: FollowingGuard,
        newest_stamp_ns: Callable[[], int],
    ) -> None:
        """Take what is stopped, and whoever has reasons to."""
        self._course, self._agent, self._safety = course, agent, safety
        self._streams, self._episodes = streams, episodes
        self._following, self._newest_stamp_ns = following, newest_stamp_ns
        self.held = ''  # why nothing may move, '' when it may
        # The arm is to be left where it is, rather than held where the command is: from such a stop
        # on until it is decided anew, whatever else holds it in between.
        self.yielding = False
        self.stopping = False  # for good
        self.others = False  # somebody else commands the arm
        self.anew = False  # decide now, whatever is left of the chunk
        self.late_stream = ''  # why the arm goes slowly, '' when it does not

    def forbid_decisions(self) -> bool:
        """Tell whether there is a reason not to decide now."""
        course, episodes = self._course, self._episodes
        if self.stopping or episodes.hold.waiting or self._safety.estop.latched:
            return True
        if self.others:
            return True
        if self._problems():
            return True
        if self.held == CLOCK_SET and not course.at_rest:
            return True  # a simulation that began again has put the arm somewhere else
        if (episodes.fresh or self._following.stopped) and not course.stands:
            return True  # an episode begins at rest, and so does another try
        return not self._following.may_try(course.tick)

    def decided(self) -> None:
        """Take note that the arm moves by a new decision."""
        self.held, self.yielding, self._episodes.fresh = '', False, False

    def clock_was_set(self) -> None:
        """Brake: the times of what is planned are no longer known."""
        course = self._course
        course.end(self._newest_stamp_ns(), interrupted=True)
        if course.timeline.plan is not None and not course.left:
            course.timeline.brake(course.tick)
        course.generation += 1
        self.held, course.ramp_due = CLOCK_SET, True

    def check(self, before: int) -> None:
        """Brake from tick `before`, once, when there is a reason to."""
        course, reason = self._course, self._reason()
        if reason in YIELDING:
            course.ramp_due = self.yielding = True
        if not reason:
            self._slow_down_if_late(before)
        if not reason or reason == self.held:
            return
        if course.timeline.plan is not None:
            moves = not self.held or (self.held == FOLLOWING and not course.stands)
            if moves and not course.left:  # else the points stand at its end
                # The point of a period that begins now is still to be chosen.
                course.end(self._newest_stamp_ns(), interrupted=True, tick=before)
                course.timeline.brake(before)
            if reason not in UNCOUNTED:
                self._safety.count(reason)
        course.generation += 1
        self.held = reason

    def _reason(self) -> str:
        problems = self._problems()
        self._streams.tell(problems)
        if self._safety.estop.latched:
            return ESTOP
        if problems:
            return STALE
        if self.stopping:
            return STOPPING
        if self.others:
            return OTHERS  # before the next one: what moves the arm is known
        if self._following.stopped:
            return FOLLOWING
        if self._episodes.fresh:
            return RESET
        return WAITING if self._episodes.hold.waiting else ''

    def _slow_down_if_late(self, before: int) -> None:
        """Go slowly while a stream is late, and decide anew when it is there again."""
        course, speed = self._course, self._safety.speed
        layout = self._agent.policy.layout
        self.late_stream = self._streams.late(layout, speed.config.slow_age_share)
        slow = bool(self.late_stream)
        if slow == speed.slow:
            return
        speed.slow = slow
        self.anew = not slow
        plan = course.timeline.plan
        if not slow or plan is None or plan.chunk_start is None:
            return
        motion = course.timeline.follow_again(before)
        if motion is not None and motion.altered:
            course.end(self._newest_stamp_ns(), interrupted=True, tick=before)
            course.timeline.take(before, motion)

    def _problems(self) -> list[StreamProblem]:
        return self._episodes.hold.heeded(self._streams.problems(self._agent.policy.layout))
