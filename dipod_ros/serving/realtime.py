# SPDX-License-Identifier: Apache-2.0
"""Real time: the world does not wait. numpy, an injected clock, no ROS, no threads.

Two callers: `control` once per control period commits the next control point, `step` samples chunks
in between. Whatever `step` does, however late it is, `control` finds a plan that ends at rest.

An observation of tick s shows the policy what it saw in training, the arm at s with the command of
s. The chunk is for s + 1 on, and what has gone by of it when it is there is left out. With
`forecast` the policy is asked about the tick at which its chunk is expected to be there instead.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.serving.clock_watch import ClockWatch
from dipod_ros.serving.commits import Commits
from dipod_ros.serving.decision_watch import DecisionWatch
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.episode_bounds import EpisodeBounds
from dipod_ros.serving.episode_hold import RESET as WAITS_FOR_RESET
from dipod_ros.serving.following import PATIENCE, PATIENCE_WITH_RESETS, FollowingGuard
from dipod_ros.serving.forecast import roll_forward
from dipod_ros.serving.joining import Joining
from dipod_ros.serving.loop import Command, Decided, Loop, Thought
from dipod_ros.serving.outcome_guard import OutcomeGuard
from dipod_ros.serving.pacing import LEAD, Pacing
from dipod_ros.serving.safety import FOLLOWING, STALE
from dipod_ros.serving.stamp_guard import StampGuard
from dipod_ros.serving.stops import Stops
from dipod_ros.serving.stream_watch import StreamWatch
from dipod_ros.serving.tick_grid import TickGrid

# Control periods that a stop takes besides the braking: those committed before it, and the last.
STOP_PERIODS = 5


class RealTimeLoop(Loop):
    """Receding horizon on a steady grid of control periods."""

    def __init__(self, *args, **kwargs) -> None:
        """Take what `Loop` takes."""
        super().__init__(*args, **kwargs)
        course, safety, notices = self.course, self.safety, self.notices
        config, limits, dt = self.config, safety.limits, safety.dt
        topic, max_age_s = config.joint_topic, config.joint_max_age_s
        self._trajectory = trajectory = config.interface == 'trajectory'
        self._clocks = ClockWatch(notices, dt)
        self._watch = DecisionWatch(config.watchdog_s, safety, notices, self.clock)
        self.grid = TickGrid(dt, LEAD[config.interface], trajectory, self.clock)
        self.buffer.judge = StampGuard(
            config.stamp_tolerance_s, topic, self.grid.robot_ns, lambda: self.grid.on_robot_time
        ).judge
        self._outcomes = OutcomeGuard(
            config.stamp_tolerance_s, self.log.patience_s, topic, self.grid, notices
        )
        self.pacing = Pacing(config, dt, self.grid, self.engine_latency)
        patience = PATIENCE_WITH_RESETS if config.reset_teleports else PATIENCE
        follow = FollowingGuard(config.following, limits, dt, notices, patience)
        self.following = follow
        still_rad, stays = config.still_rad, config.command_stays
        self._joining = Joining(
            course, follow, safety, notices, trajectory, self.clock, still_rad, stays
        )
        self._commits = Commits(course, self.grid, self.pacing, follow, safety, trajectory)
        streams = StreamWatch(self.buffer, notices, topic, max_age_s, self.clock)
        acts = course, self.agent
        self._episodes = EpisodeBounds(
            *acts, self.log, streams, self._joining, notices, config, limits
        )
        self._stops = Stops(*acts, safety, streams, self._episodes, follow, self._newest_stamp_ns)
        self._sent: object = None  # the plan that was sent last

    def on_outcome(self, outcome: Outcome) -> None:
        """Take an outcome; a reset brakes, or makes everything planned void where arms jump."""
        with self.wake:
            if self._outcomes.admit(outcome, self.clock()):
                self._episodes.take(outcome, self.joint_sample)
            self.wake.notify_all()

    @property
    def waiting_for(self) -> str:
        """What the next episode waits for, '' when one is under way."""
        return WAITS_FOR_RESET if self._episodes.hold.waiting else ''

    @property
    def outcomes_out_of_order(self) -> int:
        """How many outcomes were refused because newer ones came before them."""
        return self._episodes.order.refused

    @property
    def late_stream(self) -> str:
        """Why the arm goes slowly, '' when it does not."""
        return self._stops.late_stream

    @property
    def yielding(self) -> bool:
        """Whether the arm is to be left where it is, rather than held where the command is."""
        return self._stops.yielding

    can_make_way = True

    def make_way(self, wanted: bool) -> None:
        """Brake, and decide nothing, while somebody else commands the arm."""
        with self.wake:
            self._stops.others = wanted
            self.wake.notify_all()

    def stop(self) -> None:
        """Brake and decide nothing more; `stopped` tells when it is done."""
        with self.wake:
            self._stops.stopping = True
            self.wake.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called and the arm has come to rest since."""
        return self._stops.stopping and self.course.at_rest

    @property
    def stopping_s(self) -> float:
        """How long (steady clock) the command takes at most to come to rest after `stop`.

        A way that is left to the controller may have to come to its end.
        """
        limits, dt = self.safety.limits, self.safety.dt
        braking_s = float((limits.velocity / limits.acceleration).max())
        longest_s = max(braking_s, self.course.left * dt)
        return (longest_s + STOP_PERIODS * dt) / self.grid.rate

    def next_control_s(self) -> float:
        """Return when `control` is due next, on the steady clock."""
        return self.clock() + self.grid.wait_s(self.course.tick)

    def control(self, at_least: int = 0) -> Command | None:
        """Commit the control point that is due; before its time, just look for reasons to stop.

        Whoever plays the plan (setpoints.py) commits up to tick `at_least`, because it needs it.

        Returns what has to be sent: in `position` once per period, in `trajectory` whenever the
        plan changed; None when there is nothing.
        """
        with self.wake:
            before = self.course.tick
            joints = self.joint_sample()
            self._joining.still.look(joints)
            if joints is not None:
                streams = self.agent.policy.layout.stamped
                others = (self.buffer.sample(s.source, s.topic) for s in streams)
                self.grid.read_clocks([joints, *others])
                self._clocks.look(self.grid.ros_lead_s)
            if not self.grid.begun and not (joints and self.grid.begin(joints, before)):
                self._stops.check(before)
                return None
            if self._episodes.jumped(joints):
                self._stops.held = ''
            if self.grid.was_set():
                self.notices.event("the robot's clock was set: braking, then starting again")
                self._stops.clock_was_set()
                self._joining.clock_was_set()
                self._episodes.clock_was_set(self.joint_sample)
                self.grid.begin(joints, before)
            self._commits.follow(joints, at_least, bool(self._stops.held))
            for outcome in self._outcomes.again(self.clock()):
                self._episodes.take(outcome, self.joint_sample)
            self._stops.check(self._commits.open_tick(before))
            self._episodes.stand_between(joints, self.safety.estop.latched)
            if self._stops.held == FOLLOWING:
                self._joining.take_up(joints)
            else:
                self._joining.stop(joints, self._commits.seen(joints))
            if self._stops.others and self.config.silent_beside_others:
                self._joining.make_way(joints)
            self._commits.count_underrun(before)
            self._watch.look()
            self.notify()
            plan = self.timeline.plan
            if plan is None:
                return None
            news = plan is not self._sent if self._trajectory else self.course.tick > before
            self._sent = plan
            return self._command(self._newest_stamp_ns(), False) if news else None

    def void(self, command: Command) -> bool:
        """Tell whether everything planned became void since a command was made."""
        return command.begun_anew != self.course.begun_anew

    def begin_where_it_is(self) -> None:
        """Put the command where the arm is seen, and brake from the speed that it has there.

        For drives that let the arm go: on the way that was planned nothing held it.
        """
        with self.wake:
            joints = self.joint_sample()
            if self.timeline.plan is None or joints is None:
                return
            speed = self.buffer.sample('joint_velocity', self.config.joint_topic)
            velocity = np.zeros_like(joints.values) if speed is None else speed.values
            self.course.catch(joints.values, velocity, self._newest_stamp_ns())

    def ready(self) -> bool:
        """Tell whether a decision is due; call while holding `wake`."""
        if not self.grid.begun or self.pacing.tried(self.course.tick):
            return False
        if self._stops.forbid_decisions():
            return False
        horizon = self.agent.policy.manifest.spec.horizon
        return self.pacing.due(self.course, horizon, self.joint_sample(), self._stops.anew)

    def step(self) -> tuple[Command, float] | None:
        """Decide on the newest observation; None when that is not wanted or came to nothing.

        Returns the command and when its observation came. In `position`, `control` sends it.
        """
        thought = self.think()
        return None if thought is None else self.act(thought)

    def think(self) -> Thought | None:
        """Ask the policy; the part of `step` that takes long and commands nothing."""
        with self.wake:
            course, stops = self.course, self._stops
            if not self.ready():
                if stops.held == STALE or self._episodes.hold.waiting:
                    # The arm stands: another policy may need less than what this one waits for.
                    self.agent.begin()
                return None
            self.pacing.begin(course.tick)
            stops.anew = False
            before, policy = self.agent.policy, self.agent.begin()
            if policy is not before and policy.layout.problems(self.buffer):
                return None  # a policy that just took over needs a stream that is on its way
            # All of it from one look: another thread goes on storing what arrives.
            snapshot = self.buffer.snapshot()
            if not policy.layout.complete(snapshot):
                return None  # what arrived since `ready` is of another size: a reason to stop
            sample = snapshot.sample('joint_position', self.config.joint_topic)
            if not self._joining.synchronise(sample, bool(stops.held)):
                return None
            generation, seen = course.generation, self._commits.seen(sample)
            expected = self.pacing.expected_tick(course)
            asked = expected if self.config.forecast else seen
            base = self.timeline.command(asked)
            vector = policy.layout.assemble(snapshot, base)
            pictures = policy.layout.pictures(snapshot)
            if asked > seen:
                plan, tip, lag_s = self.timeline.plan, self.config.tip, self._commits.lag_s
                args = (vector, sample.values, plan, seen, asked, lag_s, tip)
                vector = roll_forward(policy.layout, *args)
            guidance = self._guidance(policy, asked, expected)
            self._watch.begin()
            self.pacing.think()
        sampled = self._run(snapshot, vector, pictures, guidance)
        return Thought(sampled, sample, base, asked, generation)

    def act(self, thought: Thought) -> tuple[Command, float] | None:
        """Plan what was thought; None when it is void by now, or came too late.

        The command has to be sent before `control` is called again: what that one returns must not
        be overtaken.
        """
        sampled, sample, asked = thought.sampled, thought.sample, thought.asked
        with self.wake:
            course = self.course
            self._watch.end()
            self.pacing.end()
            if thought.generation != course.generation:
                return None
            if self.safety.estop.latched or self._stops.stopping:
                return None
            self._commits.catch_up()
            if not self._watch.judge(course.tick - asked, len(sampled.chunk)):
                self.decided = Decided(sampled, None, self._seen)
                return None
            # What is committed is executed, also when the chunk is there before its time.
            until = max(course.tick, asked) if sampled.usable else course.tick
            course.end(sample.stamp_ns, tick=until)
            plan = course.schedule(sampled, thought.base, asked)
            self._begin(sampled, plan, sample.stamp_ns)
            self._stops.decided()
            self._sent = plan
            return self._command(sample.stamp_ns, True), sample.received_s

    def _command(self, stamp_ns: int, decided: bool) -> Command:
        course, plan = self.course, self.timeline.plan
        setpoint = plan.knot(course.tick)
        return Command(stamp_ns, plan, course.tick, setpoint, decided, course.begun_anew)
