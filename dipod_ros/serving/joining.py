# SPDX-License-Identifier: Apache-2.0
"""Brings command and arm together: where the command begins, and when it is tried again. No ROS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dipod_ros.serving import taking_up
from dipod_ros.serving.course import Course
from dipod_ros.serving.following import FollowingGuard
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.stillness import Stillness
from dipod_ros.serving.timeline import Plan


class Joining:
    """Has the command of an arm begin where that arm stands."""

    def __init__(
        self,
        course: Course,
        following: FollowingGuard,
        safety: SafetyFilter,
        notices: Notices,
        trajectory: bool,
        clock: Callable[[], float],
        still_rad: float | Sequence[float],
        stays: bool = True,
    ) -> None:
        """Take the command, what knows whether the arm follows, and who is told.

        `trajectory` where whole plans are sent; `still_rad` as in Stillness; `stays` where a
        controller holds the last command.
        """
        self._stays = stays
        self._course, self.following, self.still = course, following, Stillness(notices, still_rad)
        self._limits, self._dt, self._safety = safety.limits, safety.dt, safety
        self._trajectory, self._clock, self._notices = trajectory, clock, notices
        self._refused: np.ndarray | None = None  # where the way to the arm led out of the box
        self._way: taking_up.Way | None = None  # that was left to the controller last
        self._lost: Plan | None = None  # of the way that its controller may have stopped on
        self._vouched = False  # a world said where it put the arm, which stands there

    def vouch(self) -> None:
        """Note that a world said where it put the arm, which stands there."""
        self._vouched = True

    def synchronise(self, sample: Sample, held: bool) -> bool:
        """See to it that the command is where the arm is; False where it must not begin.

        Only a command that was held, and stands, may have been left by its arm.
        """
        course = self._course
        plan = course.timeline.plan
        if plan is not None and not (held and course.stands):
            return True
        position = sample.values
        beginning = course.beginning(position)
        if plan is None and not course.start_place.allows(beginning):
            return False
        self.still.look(sample)  # it may have come after the control thread's last look
        if not (self._vouched or self.still.allows(self._clock())):
            return False
        begun = course.begin_at(beginning) if plan is None else course.resync_if_apart(position)
        if not begun:
            return False
        self._vouched = False
        self.following.resume(course.tick)
        self._allow()
        return True

    def make_way(self, joints: Sample) -> None:
        """Send nothing, once the command stands, until another one begins."""
        course = self._course
        if course.timeline.plan is not None and course.stands:
            if self._stays:
                course.fall_silent(joints.values)
            else:
                course.begin_anew()
            self.following.forget()
            self._allow()

    def take_up(self, joints: Sample) -> None:
        """Bring the command of an arm that did not follow to where the arm stands."""
        course = self._course
        # A reset that puts the arm elsewhere forgets the stop, and where the command is.
        if not self.following.stopped or course.timeline.plan is None:
            return
        if not (course.stands and self.still.stands):
            return
        position, end = joints.values, course.timeline.command(course.tick)
        lost = self._lost is course.timeline.plan
        wanted = lost or self.following.wants(position, end)
        if wanted and course.start_place.allows(position):
            if not self._stays_inside(position):
                self.following.misplaced()
                return
            args = course.timeline.plan, course.tick, position, self._limits, self._dt
            if self._trajectory:
                self._way = taking_up.wait_at(*args, self._way if lost else None)
                plan = self._way.plan
            else:
                plan = taking_up.go(*args)
            course.timeline.replace(plan)
            self.following.placed(position, course.tick + len(plan.motion.points))

    def clock_was_set(self) -> None:
        """Have a way that is left told again when it is over: by then its controller stands.

        Whether it went on or stopped on its way depends on what it does with such a clock.
        """
        self.still.forget()
        if self._course.left:
            self._lost = self._course.timeline.plan
            self.following.misplaced()

    def _stays_inside(self, position: np.ndarray) -> bool:
        """Tell whether the way to an arm at [A] (rad) in the workspace stays in it."""
        workspace, course = self._safety.workspace, self._course
        if workspace is None or workspace.outside(position):
            self._allow()
            return True  # to one that is outside all ways lead out
        refused = self._refused
        if refused is not None and np.all(np.abs(position - refused) <= self.still.agree_rad):
            return False
        plan, tick = course.timeline.plan, course.tick
        points = taking_up.go(plan, tick, position, self._limits, self._dt).motion.points

        def brake(point: np.ndarray, velocity: np.ndarray) -> np.ndarray:
            return self._safety.brake(point, velocity).points

        inside = workspace.admissible(plan.point(tick), points, self._dt, brake)
        if inside == len(points):
            self._allow()
            return True
        self._refused = position
        self._notices.set(
            'way',
            'the straight way from where the command stands to where the arm stands leaves the '
            'workspace: held; bring the arm nearer to where it was, or deactivate and activate',
        )
        return False

    def _allow(self) -> None:
        self._refused = None
        self._notices.clear('way', 'the way to the arm stays in the workspace')

    def stop(self, joints: Sample, seen: int) -> None:
        """Stop an arm on a way that was left to its controller, by what shows it at tick `seen`.

        That may be old: an arm that was seen on its way goes on, however long it is not seen again.
        """
        course, way = self._course, self._way
        if way is None or way.plan is not course.timeline.plan or not way.left(course.tick):
            return
        if way.stops or not self._on(way, joints.values, seen):
            return
        if self._lost is way.plan and not self.still.moves:
            return  # its controller has stopped already
        halt = taking_up.stop_on(way, course.tick, self._limits, self._dt)
        if halt is not None:
            self._way = halt
            course.timeline.replace(halt.plan)

    def _on(self, way: taking_up.Way, position: np.ndarray, seen: int) -> bool:
        """Tell whether an arm seen at [A] (rad) is on a way, and does not stand at its end."""
        if np.all(np.abs(position - way.plan.motion.points[-1]) <= self.still.agree_rad):
            return False
        config, start = self.following.config, way.plan.start
        first = max(seen - math.ceil(config.lag_s / self._dt), start)
        path = np.array([way.state(k, self._dt)[0] for k in range(first, max(seen, start) + 1)])
        return bool(np.any(np.max(np.abs(path - position), axis=1) <= config.tolerance_rad))
