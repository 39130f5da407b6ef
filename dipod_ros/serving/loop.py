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
from dipod_ros.serving.agent import Agent, Sampled
from dipod_ros.serving.course import Course
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.following import FollowingConfig
from dipod_ros.serving.latency import LatencyWindow
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer, Sample, Snapshot
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.seam import Ensemble, Guidance, guidance
from dipod_ros.serving.stillness import AGREE_RAD
from dipod_ros.serving.timeline import Plan

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
    # The arm stands where its joint states agree within this, one for all or one per joint (rad).
    still_rad: float | tuple[float, ...] = AGREE_RAD
    # How far the arm may be from where its command was lately (real time).
    following: FollowingConfig = field(default_factory=FollowingConfig)
    # A reset finds the arm elsewhere at once (a simulated world): the command begins there. A real
    # arm brakes instead, and an episode begins once it stands (real time).
    reset_teleports: bool = False
    # After an outcome that ends an episode nothing is decided until one with reset (real time).
    hold_between_episodes: bool = False
    # An inference longer than this is reported; the arm brakes by itself when its chunk ends.
    watchdog_s: float = 0.5
    # Beside another commander nothing is sent once the arm stands (real time). Torques are the
    # exception: an arm that nobody holds falls.
    silent_beside_others: bool = True
    # The controller holds what it was told last, also while nothing is sent (real time). Velocities
    # and torques come to an end: such an arm is where it is seen.
    command_stays: bool = True
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


@dataclass(frozen=True, eq=False)
class Thought:
    """What the policy said to an observation, and all that is needed to act on it."""

    sampled: Sampled
    sample: Sample  # the joint positions that were seen
    base: np.ndarray  # [A] rad, the command that the increments count from
    asked: int  # the tick that the chunk answers
    generation: int  # of the course when it began


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
        self.course = Course(agent, safety, log, notices, config.resync_rad, ensemble)
        self.timeline = self.course.timeline
        self.wake = threading.Condition()
        self.decision_latency = LatencyWindow(warmup=LATENCY_WARM_UP)
        self.engine_latency = LatencyWindow(warmup=LATENCY_WARM_UP)
        self.decided: Decided | None = None
        self._seen = buffer.snapshot()
        agent.episodes.begin()

    @property
    def tick(self) -> int:
        """Control periods committed so far."""
        return self.course.tick

    def ready(self) -> bool:
        """Tell whether `step` has something to do; call while holding `wake`."""
        raise NotImplementedError

    def step(self) -> tuple[Command, float] | None:
        """Decide; return the command and when its observation came (steady clock)."""
        raise NotImplementedError

    def on_outcome(self, outcome: Outcome) -> None:
        """Take what the world says about the time since it said so last."""
        raise NotImplementedError

    can_make_way = False  # a world that waits has nothing to stop

    def make_way(self, wanted: bool) -> None:
        """Stop for somebody else who commands the arm, or go on when nobody does."""
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
                self.course.end(self._newest_stamp_ns(), interrupted=True)
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
        seen: Snapshot,
        observation: np.ndarray,
        pictures: Sequence[Picture] = (),
        guidance: Guidance | None = None,
    ) -> Sampled:
        """Sample a chunk for an observation made of what is `seen`; call without holding `wake`."""
        self._seen = seen
        start = self.clock()
        sampled = self.agent.sample(observation, pictures, guidance)
        self.engine_latency.add(self.clock() - start)
        return sampled

    def _begin(self, sampled: Sampled, plan: Plan, stamp_ns: int) -> None:
        self.course.begin(sampled, plan, stamp_ns)
        self.decided = Decided(sampled, plan, self._seen)
