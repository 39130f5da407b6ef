# SPDX-License-Identifier: Apache-2.0
"""Real time: the world does not wait. numpy, an injected clock, no ROS, no threads.

Two callers: `control` once per control period commits the next control point, `step` samples chunks
in between. Whatever `step` does, however late it is, `control` finds a plan that ends at rest.

An observation of tick s shows the policy what it saw in training, the arm at s with the command of
s. The chunk is for s + 1 on, and what has gone by of it when it is there is left out. With
`forecast` the policy is asked about the tick at which its chunk is expected to be there instead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from dipod_ros.serving import taking_up
from dipod_ros.serving.agent import Sampled
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.episode_hold import RESET as WAITS_FOR_RESET
from dipod_ros.serving.episode_hold import EpisodeHold
from dipod_ros.serving.following import PATIENCE, PATIENCE_WITH_RESETS, FollowingGuard
from dipod_ros.serving.forecast import TrackingLag, roll_forward
from dipod_ros.serving.loop import Command, Decided, Loop
from dipod_ros.serving.observation import Sample, StreamProblem
from dipod_ros.serving.outcome_guard import OutcomeGuard
from dipod_ros.serving.reset_watch import ResetWatch
from dipod_ros.serving.safety import ESTOP, FOLLOWING, RESYNC, STALE, UNDERRUN, WATCHDOG, Watchdog
from dipod_ros.serving.stamp_guard import StampGuard
from dipod_ros.serving.stillness import Stillness
from dipod_ros.serving.stream_watch import StreamWatch
from dipod_ros.serving.tick_grid import TickGrid
from dipod_ros.serving.timeline import TRAIL

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
# Joint states that always come late are waited for as long as they took over so many periods.
LAG_WINDOW = 8
# Which part of a period a decision may take, from that observation on, before the next commit.
FREE = {'trajectory': 0.4, 'position': 0.2}
# A trajectory is on its way for so long (parts of a period), with some slack.
MARGIN = 0.3
# A sample this much (parts of a period) older than a tick still shows the arm at that tick.
FRESH = 0.1
# Control periods that a stop takes besides the braking: those committed before it, and the last.
STOP_PERIODS = 5
STOPPING = 'stopping'
CLOCK_SET = 'clock set'
RESET = 'reset'
WAITING = 'waiting for a reset'
UNCOUNTED = (STOPPING, RESET, WAITING)  # the arm stands by somebody's will


@dataclass(frozen=True, eq=False)
class Thought:
    """What the policy said to an observation, and all that is needed to act on it."""

    sampled: Sampled
    sample: Sample  # the joint positions that were seen
    base: np.ndarray  # [A] rad, the command that the increments count from
    asked: int  # the tick that the chunk answers
    generation: int  # of the loop when it began


class RealTimeLoop(Loop):
    """Receding horizon on a steady grid of control periods."""

    def __init__(self, *args, **kwargs) -> None:
        """Take what `Loop` takes."""
        super().__init__(*args, **kwargs)
        self.watchdog = Watchdog(self.config.watchdog_s, self.clock)
        interface = self.config.interface
        self._trajectory = interface == 'trajectory'
        self.grid = TickGrid(self.safety.dt, LEAD[interface], self._trajectory, self.clock)
        guard = StampGuard(
            self.config.stamp_tolerance_s, self.config.joint_topic, self.grid.robot_ns
        )
        self.buffer.judge = guard.judge
        self._outcomes = OutcomeGuard(
            self.config.stamp_tolerance_s,
            self.log.patience_s,
            self.config.joint_topic,
            self.grid,
            self.notices,
        )
        self._streams = StreamWatch(
            self.buffer,
            self.notices,
            self.config.joint_topic,
            self.config.joint_max_age_s,
            self.clock,
        )
        self._lag, self._free = LAG[interface], FREE[interface]
        # A decision must be there this part of a period before the commit that it is for.
        self._margin = (1.0 - LEAD[interface]) % 1.0 - self._free
        self._lags: deque[int] = deque(maxlen=LAG_WINDOW)  # what was reached in the last periods
        self.tracking = TrackingLag(len(self.safety.limits.joints), self.safety.dt)
        limits, dt = self.safety.limits, self.safety.dt
        patience = PATIENCE_WITH_RESETS if self.config.reset_teleports else PATIENCE
        self.following = FollowingGuard(self.config.following, limits, dt, self.notices, patience)
        self._still = Stillness(self.notices)
        self._vouched = False  # a world said where it put the arm, which stands there
        self._due_tick: int | None = None  # the first tick at which the next decision was due
        self._resets = ResetWatch(self.safety.limits.velocity, self.config.joint_max_age_s)
        self._new_episode = False  # a reset came, and no decision since
        self.hold = EpisodeHold(self.config.hold_between_episodes, self.config.joint_topic)
        self._held = ''  # why nothing may move, '' when it may
        self._sent: object = None  # the plan that was sent last
        self._tried_tick = -1  # the last tick at which a decision was tried
        self._generation = 0  # changes when whatever is being sampled is void
        self._stopping = False
        self._anew = False  # decide now, whatever is left of the chunk
        self.late_stream = ''  # why the arm goes slowly, '' when it does not
        self.begun_anew = 0  # how often everything planned became void

    def on_outcome(self, outcome: Outcome) -> None:
        """Take an outcome; a reset brakes, or makes everything planned void where arms jump."""
        with self.wake:
            if self._outcomes.admit(outcome, self.clock()):
                self._take_outcome(outcome)
            self.wake.notify_all()

    @property
    def waiting_for(self) -> str:
        """What the next episode waits for, '' when one is under way."""
        return WAITS_FOR_RESET if self.hold.waiting else ''

    def stop(self) -> None:
        """Brake and decide nothing more; `at_rest` tells when it is done."""
        with self.wake:
            self._stopping = True
            self.wake.notify_all()

    @property
    def at_rest(self) -> bool:
        """Whether the command has come to its end."""
        plan = self.timeline.plan
        return plan is None or (
            plan.chunk_start is None
            and self.tick > plan.start + len(plan.motion.points) - plan.unsaid
        )

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called and the arm has come to rest since."""
        return self._stopping and self.at_rest

    @property
    def stopping_s(self) -> float:
        """How long (steady clock) the command takes at most to come to rest after `stop`."""
        limits = self.safety.limits
        braking_s = float((limits.velocity / limits.acceleration).max())
        return (braking_s + STOP_PERIODS * self.safety.dt) / self.grid.rate

    def next_control_s(self) -> float:
        """Return when `control` is due next, on the steady clock."""
        return self.clock() + self.grid.wait_s(self.tick)

    def control(self, at_least: int = 0) -> Command | None:
        """Commit the control point that is due; before its time, just look for reasons to stop.

        Whoever plays the plan (setpoints.py) commits up to tick `at_least`, because it needs it.

        Returns what has to be sent: in `position` once per period, in `trajectory` whenever the
        plan changed; None when there is nothing.
        """
        with self.wake:
            before = self.tick
            joints = self.joint_sample()
            self._still.look(joints)
            if joints is not None:
                streams = self.agent.policy.layout.stamped
                others = (self.buffer.sample(s.source, s.topic) for s in streams)
                self.grid.read_clocks([joints, *others])
            if not self.grid.begun and not (joints and self.grid.begin(joints, self.tick)):
                self._check_streams(before)
                return None
            self._look_for_a_jump(joints)
            self._follow_grid(joints, at_least)
            for outcome in self._outcomes.again(self.clock()):
                self._take_outcome(outcome)
            self._check_streams(self._open_tick(before))
            self._stand_between_episodes(joints)
            self._take_up(joints)
            self._check_decisions(before)
            self.notify()
            plan = self.timeline.plan
            if plan is None:
                return None
            news = self.tick > before
            if self._trajectory:
                news = plan is not self._sent
            self._sent = plan
            if not news:
                return None
            return self._command(self._newest_stamp_ns(), False)

    def void(self, command: Command) -> bool:
        """Tell whether everything planned became void since a command was made."""
        return command.begun_anew != self.begun_anew

    def begin_where_it_is(self) -> None:
        """Put the command where the arm is seen, and brake from the speed that it has there.

        For drives that let the arm go: on the way that was planned nothing held it.
        """
        with self.wake:
            joints = self.joint_sample()
            if self.timeline.plan is None or joints is None:
                return
            self._end_decision(self._newest_stamp_ns(), interrupted=True)
            self._generation += 1
            self._ramp_due = True
            if not self.start_place.allows(joints.values):
                self.timeline.clear()
                self.begun_anew += 1
                return
            speed = self.buffer.sample('joint_velocity', self.config.joint_topic)
            still = np.zeros_like(joints.values)
            velocity = still if speed is None else speed.values
            self.timeline.catch(joints.values, velocity, self.tick)
            self.safety.count(RESYNC)

    def ready(self) -> bool:
        """Tell whether a decision is due; call while holding `wake`."""
        # One try per period: an engine that fails at once must not be asked in a busy loop.
        if self._stopping or not self.grid.begun or self.tick <= self._tried_tick:
            return False
        if self.hold.waiting or self.safety.estop.latched or self._problems():
            return False
        if self._held == CLOCK_SET and not self.at_rest:
            return False  # a simulation that began again has put the arm somewhere else
        if self._new_episode and not self._stands():
            return False  # an episode begins at rest
        if not self.following.may_try(self.tick):
            return False
        if self.timeline.index(self.tick) is not None and not self._anew:
            replan = min(self.config.replan_steps or self._horizon, self.timeline.covered)
            # Early enough that the new chunk is there when `replan` steps of this one are behind.
            most = self._horizon - (0 if self.config.forecast else 1)
            if self.timeline.consumed(self.tick) + min(self.latency_ticks(), most) < replan:
                return False
        if self._due_tick is None:
            self._due_tick = self.tick
        # The observation of this very tick is about to come; but one tick is all it is waited for.
        lag = max(self._lag, min(self._lags, default=0))
        behind = self.grid.behind(self.joint_sample(), self.tick - lag)
        return behind <= FRESH or self.tick > self._due_tick

    def latency_ticks(self) -> int:
        """Return how many control periods pass while a decision on a new observation is made."""
        latency_s = self.engine_latency.percentile(LATENCY_PERCENTILE)
        return int(latency_s / self.safety.dt + 1.0 - self._free)

    def _expected_tick(self) -> int:
        """Return the tick that will be committed when a decision that begins now is made.

        Nearly the worst latency is allowed for while the chunk covers that time. Beyond its end the
        arm would stand and wait for what is probably there already: only the usual latency counts.
        """
        worst, usual = (
            self.grid.tick_after(self.tick, self.engine_latency.percentile(p), self._margin)
            for p in (LATENCY_PERCENTILE, USUAL_PERCENTILE)
        )
        return max(min(worst, self.tick + self.timeline.remaining(self.tick)), usual)

    def step(self) -> tuple[Command, float] | None:
        """Decide on the newest observation; None when that is not wanted or came to nothing.

        Returns the command and when its observation came. In `position`, `control` sends it.
        """
        thought = self.think()
        return None if thought is None else self.act(thought)

    def think(self) -> Thought | None:
        """Ask the policy; the part of `step` that takes long and commands nothing."""
        with self.wake:
            if not self.ready():
                if self._held == STALE or self.hold.waiting:
                    # The arm stands: another policy may need less than what this one waits for.
                    self.agent.begin()
                return None
            self._tried_tick, self._due_tick, self._anew = self.tick, None, False
            before, policy = self.agent.policy, self.agent.begin()
            if policy is not before and policy.layout.problems(self.buffer):
                return None  # a policy that just took over needs a stream that is on its way
            sample = self.joint_sample()
            if not self._synchronise(sample):
                return None
            generation, seen = self._generation, self._observed_tick(sample)
            expected = self._expected_tick()
            asked = expected if self.config.forecast else seen
            base = self.timeline.command(asked)
            vector = policy.layout.assemble(self.buffer, base)
            pictures = policy.layout.pictures(self.buffer)
            if asked > seen:
                plan, tip = self.timeline.plan, self.config.tip
                args = (vector, sample.values, plan, seen, asked, self.tracking.seconds, tip)
                vector = roll_forward(policy.layout, *args)
            guidance = self._guidance(policy, asked, expected)
            self.watchdog.begin()
        return Thought(self._run(vector, pictures, guidance), sample, base, asked, generation)

    def act(self, thought: Thought) -> tuple[Command, float] | None:
        """Plan what was thought; None when it is void by now, or came too late.

        The command has to be sent before `control` is called again: what that one returns must not
        be overtaken.
        """
        sampled, sample, asked = thought.sampled, thought.sample, thought.asked
        with self.wake:
            self.watchdog.end()
            self._due_tick = None  # `ready` was asked meanwhile, and knew of no successor
            self.notices.clear('watchdog', 'decisions are in time again')
            if thought.generation != self._generation:
                return None
            if self.safety.estop.latched or self._stopping:
                return None
            self._catch_up()
            if self.tick - asked >= len(sampled.chunk):
                self.notices.set(
                    'late',
                    f'a decision takes longer than the {len(sampled.chunk)} control periods of its '
                    'chunk: none of it can be executed',
                )
                self.decided = Decided(sampled, None, self._seen)
                return None
            self.notices.clear('late', 'decisions are in time again')
            # What is committed is executed, also when the chunk is there before its time.
            until = max(self.tick, asked) if sampled.usable else self.tick
            self._end_decision(sample.stamp_ns, tick=until)
            plan = self._schedule(sampled, thought.base, asked)
            self._begin_decision(sampled, plan, sample.stamp_ns)
            self._held, self._new_episode = '', False
            self._sent = plan
            return self._command(sample.stamp_ns, True), sample.received_s

    def _command(self, stamp_ns: int, decided: bool) -> Command:
        plan = self.timeline.plan
        return Command(stamp_ns, plan, self.tick, plan.knot(self.tick), decided, self.begun_anew)

    def _take_outcome(self, outcome: Outcome) -> None:
        self.log.judge(outcome)
        waited = self.hold.waiting
        if self.hold.take(outcome):
            self.agent.withdraw(self.log.conclude(outcome.stamp_ns))
            self._end_decision(outcome.stamp_ns)
            self._generation += 1
        if outcome.reset:
            self._end_decision(outcome.stamp_ns)
            self._step = 0
            if waited:
                self._leave_hold()
            if self.config.reset_teleports:
                self._begin_anew()
                self._vouched = True
                self._streams.world_was_reset(outcome.stamp_ns)
            else:
                self._generation += 1
                self._new_episode = True
                self._resets.begin(self.joint_sample())
        self.agent.episodes.take(outcome)

    def _leave_hold(self) -> None:
        """Begin slowly, and where the arm is: a person was there."""
        self._ramp_due = self._ramp_due or not self.config.reset_teleports
        joints = self.joint_sample()
        if self.timeline.plan is not None and self._stands() and self.hold.moved(joints.values):
            self._begin_anew()

    def _synchronise(self, sample: Sample) -> bool:
        """See to it that the command is where the arm is; False where it must not begin."""
        plan = self.timeline.plan
        if plan is not None and not (self._held and self._stands()):
            return True
        position = sample.values
        if plan is None and not self.start_place.allows(position):
            return False
        self._still.look(sample)  # it may have come after the control thread's last look
        if not (self._vouched or self._still.allows(self.clock())):
            return False
        begin = self._begin_at if plan is None else self._resync_if_apart
        if not begin(position):
            return False
        self._vouched = False
        self.following.resume(self.tick)
        return True

    def _take_up(self, joints: Sample) -> None:
        """Bring the command of an arm that did not follow to where the arm stands."""
        # A reset that puts the arm elsewhere forgets the stop, and where the command is.
        if not self.following.stopped or self._held != FOLLOWING or self.timeline.plan is None:
            return
        if not (self._stands() and self._still.stands):
            return
        position, end = joints.values, self.timeline.command(self.tick)
        if self.following.wants(position, end) and self.start_place.allows(position):
            limits, dt = self.safety.limits, self.safety.dt
            take_up = taking_up.wait_at if self._trajectory else taking_up.go
            plan = take_up(self.timeline.plan, self.tick, position, limits, dt)
            self.timeline.replace(plan)
            self.following.placed(position, self.tick + len(plan.motion.points))

    def _stands(self) -> bool:
        """Tell whether the command has stood for so long that the arm must be there."""
        plan = self.timeline.plan
        trail = () if plan is None else plan.trail_at(self.tick)
        return plan is None or bool((trail == trail[-1]).all())

    def _observed_tick(self, sample: Sample) -> int:
        """Return the tick that a sample shows; never one that is not committed."""
        return min(self.grid.nearest(sample), self.tick)

    def _follow_grid(self, joints: Sample, at_least: int) -> None:
        if self.grid.was_set():
            self.notices.event("the robot's clock was set: braking, then starting again")
            self._end_decision(self._newest_stamp_ns(), interrupted=True)
            if self.timeline.plan is not None:
                self.timeline.brake(self.tick)
            self._generation += 1
            self._held, self._ramp_due = CLOCK_SET, True
            self.hold.clock_was_set()
            self.grid.begin(joints, self.tick)
        seen, plan = self._observed_tick(joints), self.timeline.plan
        tick = max(self.grid.follow(self.tick), at_least)
        if tick > self.tick:
            self._lags.append(self.tick - seen)
            if plan is not None and seen > plan.start - TRAIL + 1:
                error = joints.values - plan.knot(seen)
                self.tracking.observe(error, plan.velocity(seen, self.safety.dt))
            if plan is not None:
                self.following.note(plan, tick)
                if not self._held:
                    self.following.judge(joints, seen, tick)
        self.tick = tick

    def _catch_up(self) -> None:
        """Commit what is due by now, if the control thread still waits for a processor.

        Otherwise a decision would change a segment that the controller is on already.
        """
        if self._trajectory:
            before = self.tick
            self.tick = self.grid.follow(before)
            self._check_decisions(before)

    def _open_tick(self, before: int) -> int:
        """Return the tick, `before` if possible, from which what is sent now may differ."""
        if self._trajectory and self.grid.begun and self.grid.until(before) < MARGIN:
            return self.tick
        return before

    def _begin_anew(self) -> None:
        """Forget the plan and whatever is being sampled."""
        self.timeline.clear()
        self.following.forget()
        self._new_episode = False
        self._generation += 1
        self.begun_anew += 1

    def _look_for_a_jump(self, joints: Sample) -> None:
        """Begin anew where a reset has put an arm that can jump."""
        if not self._new_episode or self.timeline.plan is None:
            return
        if self._resets.put_elsewhere(joints):
            self.notices.event('a reset has put the arm elsewhere: starting from where it is')
            self._begin_anew()
            self._held, self._ramp_due = '', True

    def _stand_between_episodes(self, joints: Sample) -> None:
        """Forget the plan where an e-stop holds the arm between episodes: it may be moved."""
        between = self._new_episode or self.hold.waiting
        if not between or self.timeline.plan is None or not self._stands():
            return
        self.hold.stands(joints.values)
        if self.safety.estop.latched:
            self._begin_anew()

    def _check_streams(self, before: int) -> None:
        """Brake from tick `before`, once, when there is a reason to."""
        problems = self._problems()
        self._streams.tell(problems)
        if self.safety.estop.latched:
            reason = ESTOP
        elif problems:
            reason = STALE
        elif self._stopping:
            reason = STOPPING
        elif self.following.stopped:
            reason = FOLLOWING
        else:
            reason = RESET if self._new_episode else WAITING if self.hold.waiting else ''
        self._ramp_due = self._ramp_due or reason in (ESTOP, FOLLOWING)
        if not reason:
            self._slow_down_if_late(before)
        if not reason or reason == self._held:
            return
        if self.timeline.plan is not None:
            if not self._held or (self._held == FOLLOWING and not self._stands()):
                # The point of a period that begins now is still to be chosen.
                self._end_decision(self._newest_stamp_ns(), interrupted=True, tick=before)
                self.timeline.brake(before)
            if reason not in UNCOUNTED:
                self.safety.count(reason)
        self._generation += 1
        self._held = reason

    def _slow_down_if_late(self, before: int) -> None:
        """Go slowly while a stream is late, and decide anew when it is there again."""
        speed = self.safety.speed
        layout = self.agent.policy.layout
        self.late_stream = self._streams.late(layout, speed.config.slow_age_share)
        slow = bool(self.late_stream)
        if slow == speed.slow:
            return
        speed.slow = slow
        self._anew = not slow
        plan = self.timeline.plan
        if not slow or plan is None or plan.chunk_start is None:
            return
        motion = self.timeline.follow_again(before)
        if motion is not None and motion.altered:
            self._end_decision(self._newest_stamp_ns(), interrupted=True, tick=before)
            self.timeline.take(before, motion)

    def _check_decisions(self, before: int) -> None:
        plan = self.timeline.plan
        if (
            plan is not None
            and plan.chunk_start is not None
            and before <= plan.chunk_end < self.tick
        ):
            self.safety.count(UNDERRUN)
        if self.watchdog.expired:
            text = f'a decision takes longer than watchdog_s {self.watchdog.timeout_s:g}: braking'
            if text not in self.notices.active:
                self.safety.count(WATCHDOG)
            self.notices.set('watchdog', text)

    def _problems(self) -> list[StreamProblem]:
        return self.hold.heeded(self._streams.problems(self.agent.policy.layout))

    @property
    def _horizon(self) -> int:
        return self.agent.policy.manifest.spec.horizon
