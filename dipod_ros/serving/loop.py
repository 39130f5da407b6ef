# SPDX-License-Identifier: Apache-2.0
"""What both timings share: one arm, one policy, one timeline, one log. numpy, no ROS, no threads.

Callbacks put samples and outcomes in; `step` is called by a decision thread, in lockstep by the
callbacks themselves. One condition guards what they share, and is never held while the engine
runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dipod_ros.policy.decision import Decision
from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.policy.limits import TOLERANCE_RAD
from dipod_ros.serving.agent import Agent, Sampled
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.following import FollowingConfig
from dipod_ros.serving.latency import LatencyWindow
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer, Sample, Snapshot
from dipod_ros.serving.safety import FAULT, RESYNC, SafetyFilter
from dipod_ros.serving.seam import Ensemble, Guidance, guidance
from dipod_ros.serving.start_place import StartPlace
from dipod_ros.serving.timeline import ChunkTimeline, Plan

if TYPE_CHECKING:
    from dipod_ros.serving.picture import Picture

# To a loop, velocities and torques are positions: they are made of the same samples.
INTERFACES = ('trajectory', 'position', 'velocity', 'effort')
# The first runs of a process touch cold caches and say nothing about the next ones.
LATENCY_WARM_UP = 3


@dataclass(frozen=True)
class LoopConfig:
    """How decisions become commands."""

    # trajectory: one message per chunk; position: one message per control period
    interface: str = 'trajectory'
    # control steps of a chunk after which the next decision is due; 0 is the whole chunk
    replan_steps: int = 0
    # The command restarts from the arm when they have drifted this far apart while it stood (rad):
    # somebody moved it, or a drive was off.
    resync_rad: float = 0.1
    # How far the arm may be from where its command was lately (real time).
    following: FollowingConfig = field(default_factory=FollowingConfig)
    # A reset finds the arm elsewhere at once (a simulated world): the command begins there. A real
    # arm brakes instead, and an episode begins once it stands (real time).
    reset_teleports: bool = False
    # After an outcome that ends an episode nothing is decided until one with reset (real time).
    hold_between_episodes: bool = False
    # An inference longer than this is reported; the arm brakes by itself when its chunk ends.
    watchdog_s: float = 0.5
    joint_topic: str = 'joint_states'
    # Applies to the joint positions where the policy does not set it.
    joint_max_age_s: float = 0.2
    # A sample whose stamp is further than this from the robot's clock is refused; 0 accepts all.
    stamp_tolerance_s: float = 0.5
    # Ask the policy about the time at which its chunk will begin (real time); see forecast.py.
    forecast: bool = True
    tip: TipKinematics | None = None  # what a forecast knows about the tip
    # How a chunk continues the one before it, one of seam.SEAMS. `rtc` needs guided engines.
    seam: str = 'replace'
    # Weight exp(-decay i) of the i-th oldest chunk in an ensemble.
    ensemble_decay: float = 0.01


@dataclass(frozen=True, eq=False)
class Command:
    """What is to be sent for one plan or one control period; arrays in the robot's joint order."""

    stamp_ns: int  # of the observation; 0 when the robot stamps nothing
    plan: Plan
    tick: int  # the tick that `setpoint` is for
    setpoint: np.ndarray  # [A] rad, where the arm should be at that tick
    decided: bool  # this begins a new chunk
    begun_anew: int = 0  # how often everything planned had become void (real time)


@dataclass(frozen=True, eq=False)
class Decided:
    """What was decided last, for those who look on after the command is out."""

    sampled: Sampled
    plan: Plan | None  # None when the whole chunk came too late to be executed
    seen: Snapshot  # what there was to see


class Loop:
    """State and bookkeeping shared by the lockstep and the real-time loop."""

    def __init__(
        self,
        agent: Agent,
        buffer: ObservationBuffer,
        safety: SafetyFilter,
        log: DecisionLog,
        notices: Notices,
        config: LoopConfig,
        clock: Callable[[], float],
    ) -> None:
        """Take the parts; `clock` is steady, in seconds."""
        self.agent = agent
        self.buffer = buffer
        self.safety = safety
        self.log = log
        self.notices = notices
        self.config = config
        self.clock = clock
        ensemble = Ensemble(config.ensemble_decay) if config.seam == 'ensemble' else None
        self.timeline = ChunkTimeline(safety, ensemble)
        self.start_place = StartPlace(safety.limits, notices)
        self.wake = threading.Condition()
        self.tick = 0  # control periods committed so far
        self.decision_latency = LatencyWindow(warmup=LATENCY_WARM_UP)
        self.engine_latency = LatencyWindow(warmup=LATENCY_WARM_UP)
        self.decided: Decided | None = None
        self._seen = buffer.snapshot()
        agent.episodes.begin()
        self._acting = agent.policy  # whose decision is being executed
        self._step = 0  # decisions since the episode began
        self._ramp_due = True  # the next chunk begins slowly

    def ready(self) -> bool:
        """Tell whether `step` has something to do; call while holding `wake`."""
        raise NotImplementedError

    def step(self) -> tuple[Command, float] | None:
        """Decide; return the command and when its observation came (steady clock)."""
        raise NotImplementedError

    def on_outcome(self, outcome: Outcome) -> None:
        """Take what the world says about the time since it said so last."""
        raise NotImplementedError

    def notify(self) -> None:
        """Wake the decision thread if what just arrived is what it waits for."""
        with self.wake:
            if self.ready():
                self.wake.notify_all()

    def finished_records(self, flush: bool = False) -> list[Decision]:
        """Return the records that are complete by now; with `flush` the present one as well."""
        with self.wake:
            if flush and self.log.current is not None:
                self._end_decision(self._newest_stamp_ns(), interrupted=True)
            return self.log.finished(flush)

    def sent(self, command: Command, received_s: float) -> None:
        """Note that a command is out; `received_s` is when its observation came (steady clock)."""
        latency = self.clock() - received_s
        if command.decided:
            self.decision_latency.add(latency)
            with self.wake:
                self.log.sent(latency)
            self.agent.prepare()

    @property
    def episode(self) -> int:
        """The episode that the newest observation belongs to; 0 when nobody tells."""
        return self.agent.episodes.now

    @property
    def waiting_for(self) -> str:
        """What the next episode waits for, '' when one is under way."""
        return ''

    def joint_sample(self) -> Sample | None:
        """Return the newest joint positions, None while there are none."""
        return self.buffer.sample('joint_position', self.config.joint_topic)

    def _newest_stamp_ns(self) -> int:
        sample = self.joint_sample()
        return 0 if sample is None else sample.stamp_ns

    def _begin_at(self, position: np.ndarray) -> bool:
        """Put the command at rest where the arm is; False where it must not begin."""
        if not self.start_place.allows(position):
            return False
        self.timeline.reset(position, self.tick)
        return True

    def _resync_if_apart(self, position: np.ndarray) -> bool:
        """Begin where the arm is, if that is elsewhere; False where it must not begin."""
        plan = self.timeline.plan
        if np.any(np.abs(plan.point(self.tick) - plan.point(self.tick - 1)) > TOLERANCE_RAD):
            return True  # it still moves: a command that jumps would break the limits
        apart = float(np.max(np.abs(position - self.timeline.command(self.tick))))
        if apart <= self.config.resync_rad:
            self.start_place.leave()
            return True
        if not self._begin_at(position):
            return False
        self.safety.count(RESYNC)
        self.notices.event(
            f'the arm is {apart:.2f} rad away from where it was told to stand: '
            'starting again from where it is'
        )
        self._ramp_due = True
        return True

    def _guidance(self, policy: LoadedPolicy, chunk_start: int, expected: int) -> Guidance | None:
        """Return what a chunk that answers tick `chunk_start` shall continue.

        Certain is what is executed by the time it is there, at tick `expected`.
        """
        plan = self.timeline.plan
        if self.config.seam != 'rtc' or plan is None:
            return None
        certain = expected - chunk_start
        left = 0 if plan.chunk_start is None else plan.chunk_end - chunk_start
        points = [plan.point(chunk_start + k) for k in range(max(certain, left) + 1)]
        horizon = policy.manifest.spec.horizon
        return guidance(policy.layout, np.array(points), horizon, certain)

    def _run(
        self,
        observation: np.ndarray,
        pictures: Sequence[Picture] = (),
        guidance: Guidance | None = None,
    ) -> Sampled:
        """Sample a chunk; call without holding `wake`."""
        self._seen = self.buffer.snapshot()
        start = self.clock()
        sampled = self.agent.sample(observation, pictures, guidance)
        self.engine_latency.add(self.clock() - start)
        return sampled

    def _schedule(self, sampled: Sampled, base: np.ndarray, chunk_start: int) -> Plan | None:
        """Make the plan for a chunk of increments from control point `base` [A] at a tick.

        None when all of it comes too late.
        """
        if sampled.fault:
            self.safety.count(FAULT)
            self.notices.set('engine', f'engine failed: {sampled.fault}; braking')
            return self.timeline.brake(self.tick)
        if not sampled.usable:
            self.notices.set('engine', 'the policy gave numbers that are not finite; braking')
        else:
            self.notices.clear('engine', 'the engine works again')
        if self._ramp_due:
            self._ramp_due = False
            self.safety.speed.ramp_in(self.tick)
        chunk = sampled.chunk
        if sampled.guidance is not None and sampled.usable:
            chunk = sampled.guidance.settle(chunk)
        chunk = sampled.policy.layout.to_robot(chunk)
        return self.timeline.schedule(chunk, base, chunk_start, self.tick)

    def _begin_decision(self, sampled: Sampled, plan: Plan, stamp_ns: int) -> None:
        chunk = sampled.chunk
        if not sampled.usable:
            chunk = np.where(np.isfinite(chunk), chunk, np.float32(0))
        # Learning needs plain samples of the policy, executed as they are.
        plain = sampled.guidance is None and not plan.blended
        self.log.begin(
            Decision(
                actor=self.agent.name,
                seq=sampled.number,
                episode=self.episode,
                step=self._step,
                policy_sha=sampled.policy.manifest.sha256,
                stamp_s=stamp_ns * 1e-9,
                observation=sampled.observation,
                noise=sampled.noise,
                chunk=chunk,
                executed=np.full_like(chunk, np.nan),
                reward=0.0,
                success=False,
                terminated=False,
                truncated=False,
                clamp_rad=plan.motion.clamp_rad,
                interrupted=plan.chunk_start is None or plan.motion.altered or not plain,
                latency_s=0.0,
            ),
            stamp_ns,
        )
        self.decided = Decided(sampled, plan, self._seen)
        self._acting = sampled.policy
        self.agent.commit()
        self.agent.episodes.acted()
        self._step += 1

    def _end_decision(
        self, stamp_ns: int, interrupted: bool = False, tick: int | None = None
    ) -> None:
        """End the decision being executed, if any, at `tick` (by default the present one).

        Call it before its successor is planned.
        """
        plan = self.timeline.plan
        if self.log.current is None or plan is None:
            return
        horizon = len(self.log.current.chunk)
        executed = plan.executed(self.tick if tick is None else tick, horizon)
        self.log.end(stamp_ns, self._acting.layout.to_policy(executed), interrupted)
