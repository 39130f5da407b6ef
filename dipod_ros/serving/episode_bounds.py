# SPDX-License-Identifier: Apache-2.0
"""What an outcome does to the arm: where one episode ends and the next begins. No ROS."""

from __future__ import annotations

from collections.abc import Callable

from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.course import Course
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.episode_hold import EpisodeHold
from dipod_ros.serving.joining import Joining
from dipod_ros.serving.loop import LoopConfig
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.outcome_order import OutcomeOrder
from dipod_ros.serving.reset_watch import ResetWatch
from dipod_ros.serving.stream_watch import StreamWatch


class EpisodeBounds:
    """Judges decisions by outcomes and ends episodes; the arm brakes, stands, begins anew."""

    def __init__(
        self,
        course: Course,
        agent: Agent,
        log: DecisionLog,
        streams: StreamWatch,
        joining: Joining,
        notices: Notices,
        config: LoopConfig,
        limits: JointLimits,
    ) -> None:
        """Take what outcomes act on, who is told, and how fast an arm can get elsewhere."""
        self._course, self._agent, self._log = course, agent, log
        self._streams, self._joining, self._notices = streams, joining, notices
        self._resets = ResetWatch(limits.velocity, config.joint_max_age_s)
        self._teleports = config.reset_teleports
        self._overtaken_reset: Outcome | None = None  # perhaps the first word of another time
        self.order = OutcomeOrder(notices)
        self.hold = EpisodeHold(config.hold_between_episodes, config.joint_topic)
        self.fresh = False  # a reset came, and no decision since

    def take(self, outcome: Outcome, joint_sample: Callable[[], Sample | None]) -> None:
        """Take an outcome; a reset brakes, or makes everything planned void where arms jump.

        One that was overtaken judges nothing and lets nothing move; what stops the arm counts.
        """
        if self.order.overtaken(outcome):
            self._take_overtaken(outcome)
            return
        course = self._course
        self.order.take(outcome)
        self._overtaken_reset = None
        if outcome.stamp_ns:
            self._log.judge(outcome)
            self._notices.clear('undated', 'outcomes are dated again')
        else:
            self._take_undated(outcome, joint_sample())
        waited = self.hold.waiting
        if self.hold.take(outcome):
            self._end(outcome.stamp_ns)
        if outcome.reset:
            course.end(outcome.stamp_ns)
            course.steps = 0
            if waited:
                self._leave_hold(joint_sample())
            if self._teleports:
                self._begin_anew()
                self._joining.vouch()
                self._streams.world_was_reset(outcome.stamp_ns)
            else:
                course.generation += 1
                self.fresh = True
                self._resets.begin(joint_sample())
        self._agent.episodes.take(outcome)

    def clock_was_set(self, joint_sample: Callable[[], Sample | None]) -> None:
        """Forget stamps of another time."""
        self.hold.clock_was_set()
        self.order.clock_was_set()
        self._log.clock_was_set()
        reset, self._overtaken_reset = self._overtaken_reset, None
        if reset is not None:
            self.take(reset, joint_sample)  # a world that began again: it had not been overtaken

    def jumped(self, joints: Sample) -> bool:
        """Tell whether a reset has put an arm that can jump elsewhere; begin anew there."""
        if not self.fresh or self._course.timeline.plan is None:
            return False
        if not self._resets.put_elsewhere(joints) or self._course.left:
            return False  # a controller that goes somewhere may have an arm that was switched on
        self._notices.event('a reset has put the arm elsewhere: starting from where it is')
        self._begin_anew()
        self._course.ramp_due = True
        return True

    def stand_between(self, joints: Sample, estop: bool) -> None:
        """Send nothing where an e-stop holds the arm between episodes: it may be moved."""
        between = self.fresh or self.hold.waiting
        if not between or self._course.timeline.plan is None or not self._course.stands:
            return
        self.hold.stands(joints.values)
        if estop:
            self._joining.make_way(joints)
            self.fresh = False

    def _take_overtaken(self, outcome: Outcome) -> None:
        matters = self._log.spoil(outcome.stamp_ns)
        if outcome.reset:
            self._overtaken_reset = outcome
            matters = True
        elif self.hold.take(outcome):
            self._end(outcome.stamp_ns)
            matters = True
        if matters:
            self.order.refuse()

    def _take_undated(self, outcome: Outcome, joints: Sample | None) -> None:
        """Learn from nothing that an outcome without a stamp may be about; it acts all the same."""
        self._log.doubt()
        if outcome == Outcome(0, outcome.episode, reset=True):
            return  # by hand, perhaps: to begin an episode takes no date
        unstamped = joints is not None and not joints.stamp_ns
        why = (
            'joint states carry no stamp: nothing is learned until their driver stamps them'
            if unstamped
            else 'they carry no stamp: nothing is learned until their sender copies that of the '
            'newest joint state'
        )
        self._notices.set('undated', f'outcomes cannot be dated: {why}')

    def _end(self, stamp_ns: int) -> None:
        """End the episode; whoever waits for the next one brakes."""
        if stamp_ns:
            self._agent.withdraw(self._log.conclude(stamp_ns))
        self._course.end(stamp_ns)
        self._course.generation += 1

    def _leave_hold(self, joints: Sample | None) -> None:
        """Begin slowly, and where the arm is: a person was there."""
        course = self._course
        course.ramp_due = course.ramp_due or not self._teleports
        planned = course.timeline.plan is not None
        if planned and course.stands and self.hold.moved(joints.values):
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._course.begin_anew()
        self._joining.following.forget()
        self.fresh = False
