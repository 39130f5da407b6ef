# SPDX-License-Identifier: Apache-2.0
"""Lockstep: the world waits for the answer to each observation. numpy, no ROS, no threads.

One observation, one answer, recognised by the stamp. Nothing depends on how long anything takes, so
the same world, policy and seed give the same run.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.loop import Command, Loop
from dipod_ros.serving.observation import SAME_STAMP_NS, Sample
from dipod_ros.serving.safety import ESTOP

# A step of the world that is off a whole number of control periods by more than this is no step of
# ours: another control period, or another clock.
PERIOD_TOLERANCE = 0.05
# Without an answer for this long, whoever looks at the log wants to know what is missing.
PATIENCE_S = 3.0


class LockstepLoop(Loop):
    """Answers the observation stamped T once every stream and the outcome carry T."""

    def __init__(self, *args, **kwargs) -> None:
        """Take what `Loop` takes."""
        super().__init__(*args, **kwargs)
        self._outcome: Outcome | None = None
        self._answered: Sample | None = None  # the joint sample that the last answer was for
        self._answered_key: tuple[int, int] | None = None  # its stamp and episode
        self._answered_s = self.clock()
        self._answer: Command | None = None
        self._restart = True  # the next observation begins an episode

    def on_outcome(self, outcome: Outcome) -> None:
        """Take an outcome; a repeated one (the world asks again) changes nothing."""
        with self.wake:
            before = self._outcome
            repeated = (
                before is not None
                and before.stamp_ns == outcome.stamp_ns
                and before.episode_now == outcome.episode_now
            )
            if not repeated:
                if outcome.reset:
                    self._restart = True
                self._outcome = outcome
                self.agent.episodes.take(outcome)
                self.log.judge(outcome)
            self.wake.notify_all()

    def ready(self) -> bool:
        """Tell whether there is an observation to answer; call while holding `wake`."""
        sample, outcome = self.joint_sample(), self._outcome
        if sample is None or outcome is None or sample is self._answered:
            return False
        if abs(outcome.stamp_ns - sample.stamp_ns) > SAME_STAMP_NS:
            return False
        return self.agent.policy.layout.complete_at(self.buffer, sample.stamp_ns)

    def look_around(self) -> str:
        """Say what the next answer waits for; call it now and then.

        When nothing was answered for a while, what is missing becomes a notice.
        """
        with self.wake:
            missing = self._missing()
            if self._answered is not None and self._answered is self.joint_sample():
                return 'the world to advance'
            if missing and self.clock() - self._answered_s > PATIENCE_S:
                self.notices.set('waiting', f'waiting for {missing}')
                self.agent.begin()  # another policy may need less than what this one waits for
            return missing

    def _missing(self) -> str:
        sample, outcome = self.joint_sample(), self._outcome
        topic = self.config.joint_topic
        if sample is None:
            problem = self.buffer.problem('joint_position', topic, np.inf)
            return problem.text if problem else ''
        at = f'of {sample.stamp_ns * 1e-9:.3f} s'
        layout = self.agent.policy.layout
        for stream in layout.sensed:
            other = self.buffer.sample(stream.source, stream.topic)
            stamped = stream in layout.stamped
            if other is None or (stamped and abs(other.stamp_ns - sample.stamp_ns) > SAME_STAMP_NS):
                because = self.buffer.rejection(stream.source, stream.topic)
                return f'stream {stream.name} on {stream.topic} {at}{because}'
        if outcome is None or abs(outcome.stamp_ns - sample.stamp_ns) > SAME_STAMP_NS:
            return f'the outcome {at}'
        return ''

    def step(self) -> tuple[Command, float] | None:
        """Answer the observation that is ready: the command, and when its observation came.

        The same observation again gets the same answer again. None when nothing is ready.
        """
        with self.wake:
            if not self.ready():
                return None
            sample = self.joint_sample()
            key = (sample.stamp_ns, self.episode)
            if key == self._answered_key and self._answer is not None:
                self._answered = sample
                return self._answer, sample.received_s
            fresh = self._restart
            if not self._may_begin(sample, fresh):
                return None
            self._advance(sample, fresh)
            policy = self.agent.policy
            stopped = self.safety.estop.latched
            due = not stopped and (fresh or self._due())
            if due or stopped:
                self.course.end(sample.stamp_ns)
            if due:
                policy = self.agent.begin()
                snapshot = self.buffer.snapshot()
                if not policy.layout.complete_at(snapshot, sample.stamp_ns):
                    # The policy that just took over needs a stream that is on its way.
                    return None
                base = self.timeline.command(self.tick)
                vector = policy.layout.assemble(snapshot, base)
                pictures = policy.layout.pictures(snapshot)
                guidance = self._guidance(policy, self.tick, self.tick)
        if due:
            sampled = self._run(snapshot, vector, pictures, guidance)
        with self.wake:
            if due:
                plan = self.course.schedule(sampled, base, self.tick)
                self._begin(sampled, plan, sample.stamp_ns)
            elif stopped:
                self._hold()
            self._answered, self._answered_key = sample, key
            self._answered_s = self.clock()
            self.notices.clear('waiting', 'the world is there again')
            self._answer = self._command(sample.stamp_ns, due)
            return self._answer, sample.received_s

    def _may_begin(self, sample: Sample, fresh: bool) -> bool:
        """Tell whether the command may go on with an observation, or begin at it if it has to."""
        key = self._answered_key
        begins = fresh or self.timeline.plan is None or (key and sample.stamp_ns < key[0])
        return not begins or self.course.start_place.allows(sample.values)

    def _advance(self, sample: Sample, fresh: bool) -> None:
        """Bring the timeline to the time of an observation."""
        if self.timeline.plan is not None and self._answered_key is not None:
            self.course.tick += self._periods_since_answer(sample)
        if fresh or self.timeline.plan is None:
            self.course.end(sample.stamp_ns)
            self.timeline.reset(sample.values, self.tick)
            self.course.steps = 0
        self._restart = False
        # The old answer is given up now: if anything below fails, these periods are not counted
        # twice when the world asks again.
        self._answered_key, self._answer = (sample.stamp_ns, self.episode), None

    def _periods_since_answer(self, sample: Sample) -> int:
        elapsed_s = (sample.stamp_ns - self._answered_key[0]) * 1e-9
        periods = round(elapsed_s / self.safety.dt)
        if periods < 0:
            self.notices.event(f'time went back by {-elapsed_s:.3f} s: starting where the arm is')
            self.timeline.reset(sample.values, self.tick)
            self.course.ramp_due = True
            return 0
        if abs(elapsed_s - periods * self.safety.dt) > PERIOD_TOLERANCE * self.safety.dt:
            self.notices.set(
                'period',
                f'the world advanced by {elapsed_s:.4f} s, which is no multiple of '
                f'control_period_s {self.safety.dt}: give both the same control period',
            )
        else:
            self.notices.clear('period', 'the world advances by whole control periods again')
        plan = self.timeline.plan
        outran = plan.chunk_start is not None and self.tick + periods > plan.chunk_end
        if not outran:
            self.notices.clear('horizon', 'the world advances no further than the chunks again')
        elif not plan.motion.altered:
            self.notices.set(
                'horizon',
                f'the world advanced {periods} control periods, the chunk had '
                f'{plan.chunk_end - self.tick} left: set its lockstep_steps to that or less',
            )
        return periods

    def _due(self) -> bool:
        if self.config.interface == 'trajectory' or self.timeline.index(self.tick) is None:
            return True
        replan = self.config.replan_steps
        return bool(replan) and self.timeline.consumed(self.tick) >= replan

    def _hold(self) -> None:
        """Answer with a stop: the world goes on, the arm does not."""
        if self.timeline.plan.chunk_start is not None:
            self.safety.count(ESTOP)
        self.timeline.brake(self.tick)
        self.course.ramp_due = True
        # A gap in the numbers of steps tells the trainer that something happened in between.
        self.course.steps += 1

    def _command(self, stamp_ns: int, decided: bool) -> Command:
        plan = self.timeline.plan
        setpoint = (plan.point(self.tick) + plan.point(self.tick + 1)) / 2
        return Command(stamp_ns, plan, self.tick + 1, setpoint, decided)
