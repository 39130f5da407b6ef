# SPDX-License-Identifier: Apache-2.0
"""Owns a simulated arm and the server's real-time loop on one clock that only moves when told to.

No ROS, no threads, no waiting: an answer that takes 200 ms takes 200 ms of this clock, during which
the arm moves, sensors report and the loop commits control points. The same seed gives the same run
on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.engines.base import EngineInfo, PolicyEngine
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.loop import Command, LoopConfig
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.safety import UNDERRUN, SafetyFilter
from dipod_ros.sim.controllers import ArmController, CommandError
from dipod_ros.sim.episodes import Episodes
from dipod_ros.sim.tasks.base import Task

NS = 1_000_000_000
BEGIN_NS = 100 * NS


@dataclass
class EpisodeTrace:
    """What one episode came to."""

    success: bool = False
    # Committed control points, one per period, after two at the rest that it began from [K][A].
    points: list[np.ndarray] = field(default_factory=list)
    seams: list[int] = field(default_factory=list)  # rows of `points` after which a chunk took over
    decisions: int = 0
    underruns: int = 0
    violations: int = 0


class _SlowEngine:
    """Answers after the world has gone on for a while."""

    def __init__(self, engine: PolicyEngine, world: VirtualWorld) -> None:
        self._engine, self._world = engine, world

    def run(self, observation: np.ndarray, noise: np.ndarray, *known: np.ndarray) -> np.ndarray:
        chunk = self._engine.run(observation, noise, *known)
        self._world.think()
        return chunk

    def info(self) -> EngineInfo:
        return self._engine.info()


class VirtualWorld:
    """One arm, commanded by trajectories over a transport that takes no time."""

    def __init__(
        self,
        task: Task,
        manifest: Manifest,
        engine: PolicyEngine,
        config: LoopConfig,
        delay_s: float,
        seed: int,
    ) -> None:
        """Take the task, a policy for it, the loop's settings and how long each answer takes.

        Episode e depends on (seed, e) as everywhere; decision n takes noise n of `seed`.
        """
        robot = task.world.robot
        self.limits, self._dt = robot.limits, robot.control_period_s
        self._task, self._delay_ns = task, round(delay_s * NS)
        self._substeps = task.world.substeps
        self._step_ns = round(self._dt * NS) // self._substeps
        self._now_ns = BEGIN_NS
        self._episodes = Episodes(task, 1, seed)
        self._controller = ArmController(robot.limits, self._dt)
        self._setpoints: list[np.ndarray] = []  # of the control period that is under way
        self._buffer = ObservationBuffer(self._clock)
        layout = ObservationLayout(manifest.spec, robot.joints)
        policy = LoadedPolicy(manifest, _SlowEngine(engine, self), layout)
        agent = Agent(policy, NoiseSource('gaussian', seed), 'virtual')
        self._safety = SafetyFilter(robot.limits, self._dt)
        log = DecisionLog(self._clock)
        self.loop = RealTimeLoop(
            agent, self._buffer, self._safety, log, Notices(), config, self._clock
        )
        self.trace = EpisodeTrace()
        self._over = False
        self._committed = 0
        self._controller.reset(self._episodes.worlds.joint_position[0])
        self._sense()

    def settle(self) -> None:
        """Let the loop hear the robot's clock, and decide until it knows how long that takes."""
        while len(self.loop.engine_latency) == 0:
            self.episode()

    def episode(self) -> EpisodeTrace:
        """Run the episode at hand to its end, make the next one ready, return what it came to."""
        self.trace = EpisodeTrace()
        before = self._safety.counts[UNDERRUN]
        while not self._over:
            decided = self.loop.step()
            if self._over:
                break
            if decided is None:
                self._event(self._next_ns())
            else:
                self._decided(decided[0])
        self.trace.underruns = self._safety.counts[UNDERRUN] - before
        self.loop.finished_records(flush=True)
        self._begin()
        return self.trace

    def think(self) -> None:
        """Let the time of one answer pass, or what is left of the episode."""
        until = self._now_ns + self._delay_ns
        while not self._over and self._next_ns() <= until:
            self._event(self._next_ns())
        if not self._over:
            self._now_ns = until

    def _clock(self) -> float:
        return self._now_ns / NS

    def _next_ns(self) -> int:
        """Return when something happens next: a physics step ends or a point is committed."""
        done = self._now_ns - BEGIN_NS
        physics = BEGIN_NS + (done // self._step_ns + 1) * self._step_ns
        control = round(self.loop.next_control_s() * NS) if self.loop.grid.begun else physics
        return min(physics, max(control, self._now_ns + 1))

    def _event(self, at_ns: int) -> None:
        self._now_ns = at_ns
        if (at_ns - BEGIN_NS) % self._step_ns == 0:
            begun_s, step_s = (at_ns - self._step_ns) / NS, self._step_ns / NS
            self._setpoints.append(self._controller.setpoints(begun_s, step_s, 1)[0])
            if len(self._setpoints) == self._substeps:
                self._end_period()
        if not self._over:
            command = self.loop.control()
            self._commit()
            if command is not None:
                self._send(command)

    def _end_period(self) -> None:
        self._episodes.advance(np.array(self._setpoints)[None])
        self._setpoints = []
        if self._episodes.done[0]:
            self._over = True
            self.trace.success = bool(self._episodes.success[0])
        else:
            self._sense()

    def _begin(self) -> None:
        """Put the arm where the next episode begins, and say so."""
        mask = np.ones(1, dtype=bool)
        episode = int(self._episodes.episode[0])
        self._episodes.begin(mask)
        self._controller.reset(self._episodes.worlds.joint_position[0])
        self.loop.on_outcome(Outcome(self._now_ns, episode, terminated=True, reset=True))
        self._over = False
        self._sense()

    def _sense(self) -> None:
        stamp, worlds = self._now_ns, self._episodes.worlds
        for name, values in self._episodes.points().items():
            self._buffer.put('point', name, values[0], stamp)
        topic = self.loop.config.joint_topic
        self._buffer.put('joint_velocity', topic, worlds.joint_velocity[0], stamp)
        self._buffer.put('joint_position', topic, worlds.joint_position[0], stamp)

    def _decided(self, command: Command) -> None:
        self.trace.decisions += 1
        self._send(command)
        if not self.trace.points:
            # The arm rests: what was committed before the first decision is where it stands.
            rest = self.loop.timeline.command(self.loop.tick)
            self.trace.points, self._committed = [rest, rest], self.loop.tick
        plan = command.plan
        if plan.chunk_start is not None:
            begin = max(plan.start, plan.chunk_start)
            self.trace.seams.append(len(self.trace.points) - 1 + begin - self._committed)

    def _commit(self) -> None:
        if not self.trace.points:
            return
        for tick in range(self._committed + 1, self.loop.tick + 1):
            self.trace.points.append(self.loop.timeline.command(tick))
        self._committed = self.loop.tick

    def _send(self, command: Command) -> None:
        """Do what the node and a controller do with a command (JointTrajectory)."""
        positions, velocities, first = command.plan.knots_with_trail(self._dt)
        ticks = range(first, first + len(positions))
        times_s = np.array([self.loop.grid.tick_ns(t) / NS for t in ticks])
        done = (self._now_ns - BEGIN_NS) // self._step_ns * self._step_ns
        now_s = (BEGIN_NS + done) / NS
        try:
            self.trace.violations += len(
                self._controller.follow(times_s, positions, velocities, now_s)
            )
        except CommandError:
            self.trace.violations += 1
