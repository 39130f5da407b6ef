# SPDX-License-Identifier: Apache-2.0
"""What the arm is on: a plan, how far it is executed, and the decision that it came from. No ROS.

One object is shared by all that look at it or change it: what commits ticks, what decides, what
stops. Whoever replaces the plan ends the decision first, for its record says what was executed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipod_ros.policy.decision import Decision
from dipod_ros.policy.limits import TOLERANCE_RAD
from dipod_ros.serving.agent import Agent, Sampled
from dipod_ros.serving.decisions import DecisionLog
from dipod_ros.serving.episode_hold import MOVED_RAD
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.safety import FAULT, RESYNC, SafetyFilter
from dipod_ros.serving.seam import Ensemble
from dipod_ros.serving.start_place import StartPlace
from dipod_ros.serving.timeline import TRAIL, ChunkTimeline, Plan


@dataclass(frozen=True, eq=False)
class Held:
    """An arm that a command holds: what it was told and where it was seen, [A] rad."""

    command: np.ndarray
    position: np.ndarray


class Course:
    """The plan, the ticks and the decision of one activation; guarded by the lock of its loop."""

    def __init__(
        self,
        agent: Agent,
        safety: SafetyFilter,
        log: DecisionLog,
        notices: Notices,
        resync_rad: float,
        ensemble: Ensemble | None = None,
    ) -> None:
        """Take whose decisions these are, what limits them, where they go and who is told.

        resync_rad: the command restarts from an arm that is further than this from it.
        ensemble: averages chunks that overlap, None where they replace each other.
        """
        self._agent, self._safety, self._log = agent, safety, log
        self._notices, self._resync_rad = notices, resync_rad
        self.timeline = ChunkTimeline(safety, ensemble)
        self.start_place = StartPlace(safety.limits, notices)
        self.tick = 0  # control periods committed so far
        self.steps = 0  # decisions since the episode began
        self.ramp_due = True  # the next chunk begins slowly
        self.generation = 0  # changes when whatever is being sampled is void
        self.begun_anew = 0  # how often everything planned became void
        self._silent: Held | None = None  # while nothing is sent to an arm
        self._acting = agent.policy  # whose decision is being executed

    # Where it stands

    @property
    def at_rest(self) -> bool:
        """Whether the command has come to its end."""
        plan = self.timeline.plan
        return plan is None or (
            plan.chunk_start is None and self.tick > plan.start + len(plan.motion.points)
        )

    @property
    def stands(self) -> bool:
        """Whether the command has stood for so long that the arm must be there."""
        plan = self.timeline.plan
        if plan is None:
            return True
        trail = plan.trail_at(self.tick)
        return not self.left and bool((trail == trail[-1]).all())

    @property
    def left(self) -> int:
        """For how many periods the controller is left to go where the command stands already."""
        plan = self.timeline.plan
        if plan is None or not plan.unsaid:
            return 0
        return max(plan.start + plan.unsaid + TRAIL - self.tick, 0)

    # Where it begins

    def beginning(self, position: np.ndarray) -> np.ndarray:
        """Return where the command begins [A] (rad), there being none, for an arm at [A] (rad).

        An arm that stands as it did when the server fell silent is held by what it was told last:
        what it hangs below that is no reason for a jump.
        """
        silent = self._silent
        if silent is None or np.any(np.abs(position - silent.position) > MOVED_RAD):
            return position
        near = np.all(np.abs(position - silent.command) <= self._resync_rad)
        return silent.command if near else position

    def begin_at(self, position: np.ndarray) -> bool:
        """Put the command at rest at [A] (rad), where the arm is; False where it must not begin."""
        if not self.start_place.allows(position):
            return False
        self._silent = None
        self.timeline.reset(position, self.tick)
        return True

    def resync_if_apart(self, position: np.ndarray) -> bool:
        """Begin where the arm is, if that is elsewhere; False where it must not begin."""
        plan = self.timeline.plan
        if np.any(np.abs(plan.point(self.tick) - plan.point(self.tick - 1)) > TOLERANCE_RAD):
            return True  # it still moves: a command that jumps would break the limits
        apart = float(np.max(np.abs(position - self.timeline.command(self.tick))))
        if apart <= self._resync_rad:
            self.start_place.leave()
            return True
        if not self.begin_at(position):
            return False
        self._safety.count(RESYNC)
        self._notices.event(
            f'the arm is {apart:.2f} rad away from where it was told to stand: '
            'starting again from where it is'
        )
        self.ramp_due = True
        return True

    def catch(self, position: np.ndarray, velocity: np.ndarray, stamp_ns: int) -> None:
        """Begin in a measured state [A] (rad, rad/s) and brake; not where it must not begin."""
        self.end(stamp_ns, interrupted=True)
        self.ramp_due = True
        if not self.start_place.allows(position):
            self.begin_anew()
            return
        self.generation += 1
        self.timeline.catch(position, velocity, self.tick)
        self._safety.count(RESYNC)

    def begin_anew(self) -> None:
        """Forget the plan and whatever is being sampled."""
        self.timeline.clear()
        self._silent = None
        self.generation += 1
        self.begun_anew += 1

    def fall_silent(self, position: np.ndarray) -> None:
        """Send nothing while the command, which stands, holds an arm that is seen at [A] (rad)."""
        command = self.timeline.command(self.tick)
        self.begin_anew()
        self._silent = Held(command, position)

    # Decisions

    def schedule(self, sampled: Sampled, base: np.ndarray, chunk_start: int) -> Plan | None:
        """Make the plan for a chunk of increments from control point `base` [A] at a tick.

        None when all of it comes too late.
        """
        if sampled.fault:
            self._safety.count(FAULT)
            self._notices.set('engine', f'engine failed: {sampled.fault}; braking')
            return self.timeline.brake(self.tick)
        if not sampled.usable:
            self._notices.set('engine', 'the policy gave numbers that are not finite; braking')
        else:
            self._notices.clear('engine', 'the engine works again')
        if sampled.policy is not self._acting:
            self.timeline.forget_chunks()  # what a policy that is gone said has no more say
        if self.ramp_due:
            self.ramp_due = False
            self._safety.speed.ramp_in(self.tick)
        chunk = sampled.chunk
        if sampled.guidance is not None and sampled.usable:
            chunk = sampled.guidance.settle(chunk)
        chunk = sampled.policy.layout.to_robot(chunk)
        return self.timeline.schedule(chunk, base, chunk_start, self.tick)

    def begin(self, sampled: Sampled, plan: Plan, stamp_ns: int) -> None:
        """Record a decision from now on, whose plan is `plan`, on an observation of `stamp_ns`."""
        chunk = sampled.chunk
        if not sampled.usable:
            chunk = np.where(np.isfinite(chunk), chunk, np.float32(0))
        # Learning needs plain samples of the policy, executed as they are.
        plain = sampled.guidance is None and not plan.blended
        self._log.begin(
            Decision(
                actor=self._agent.name,
                seq=sampled.number,
                episode=self._agent.episodes.now,
                step=self.steps,
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
        self._acting = sampled.policy
        self._agent.commit()
        self._agent.episodes.acted()
        self.steps += 1

    def end(self, stamp_ns: int, interrupted: bool = False, tick: int | None = None) -> None:
        """End the decision being executed, if any, at `tick` (by default the present one).

        Call it before its successor is planned.
        """
        plan = self.timeline.plan
        if self._log.current is None or plan is None:
            return
        horizon = len(self._log.current.chunk)
        executed = plan.executed(self.tick if tick is None else tick, horizon)
        self._log.end(stamp_ns, self._acting.layout.to_policy(executed), interrupted)
