# SPDX-License-Identifier: Apache-2.0
"""Which control point belongs to which control tick, across chunks. numpy, ticks are injected.

A tick counts control periods. The point of tick k is what the spline passes on its way at that
tick; a chunk that answers tick s has its first target at s + 1, whatever time it took to sample:
what came too late of it is left out, and what came too early waits behind the points that were
committed before. Alignment is by what was really consumed, never by an estimate of latency.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dipod_ros.policy.limits import spline_knots
from dipod_ros.serving.safety import Motion, SafetyFilter
from dipod_ros.serving.seam import Ensemble

# Control points kept from before a plan: an observation that is late finds the command of its time,
# a controller that lags the knots of the segment it is on.
TRAIL = 8


@dataclass(frozen=True, eq=False)
class Plan:
    """Control points from tick `start` + 1 on; after the last one the command holds."""

    start: int  # tick of the last point of the trail
    trail: np.ndarray  # [TRAIL, A] control points up to `start`
    motion: Motion
    # The tick that the chunk answers; None when braking. Later than `start` when the chunk was
    # there before its time: until then the points are those of the plan before.
    chunk_start: int | None
    blended: bool = False  # not the targets of one chunk alone
    # How many ticks from `start` on a trajectory leaves to the controller: it says where the arm
    # has to be after them, and nothing of before.
    unsaid: int = 0

    @property
    def chunk_end(self) -> int:
        """Tick of the last point that answers the chunk."""
        return self.start + self.motion.horizon

    @property
    def previous(self) -> np.ndarray:
        """The control point [A] at `start`."""
        return self.trail[-1]

    def point(self, tick: int) -> np.ndarray:
        """Return the control point [A] of a tick; the oldest before the plan, the last after it."""
        k = tick - self.start
        if k <= 0:
            return self.trail[max(k - 1, -TRAIL)]
        return self.motion.points[min(k, len(self.motion.points)) - 1]

    def trail_at(self, tick: int) -> np.ndarray:
        """Return the control points [TRAIL, A] up to a tick, those that `point` gives."""
        path = np.concatenate([self.trail, self.motion.points])
        indices = tick - self.start + np.arange(TRAIL)
        return path[np.minimum(np.maximum(indices, 0), len(path) - 1)]

    def velocity(self, tick: int, dt: float) -> np.ndarray:
        """Return the velocity [A] (rad/s) of the step that leads to `tick`."""
        return (self.point(tick) - self.point(tick - 1)) / dt

    def knot(self, tick: int) -> np.ndarray:
        """Return where the spline is at a tick [A]: what a controller executes."""
        return (self.point(tick - 1) + self.point(tick)) / 2

    def knots(self, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """Return setpoint positions and velocities [K, A] at ticks start + 1, start + 2, ..."""
        return spline_knots(self.previous, self.motion.points, dt)

    def knots_with_trail(self, dt: float) -> tuple[np.ndarray, np.ndarray, int]:
        """Return knots [K, A] that begin before the plan, and the tick of the first one."""
        points = np.concatenate([self.trail[1:], self.motion.points])
        positions, velocities = spline_knots(self.trail[0], points, dt)
        skip = TRAIL - 1 + self.unsaid if self.unsaid else 0
        return positions[skip:], velocities[skip:], self.start - TRAIL + 2 + skip

    def executed(self, tick: int, horizon: int) -> np.ndarray:
        """Return the control points [horizon, A] commanded by `tick`, NaN where there were none."""
        out = np.full((horizon, self.previous.shape[-1]), np.nan)
        if self.chunk_start is not None:
            begin = max(self.start, self.chunk_start)
            count = min(max(tick - begin, 0), self.chunk_end - begin)
            first, at = begin - self.chunk_start, begin - self.start
            out[first : first + count] = self.motion.points[at : at + count]
        return out


class ChunkTimeline:
    """The present plan, and how the next one continues it in position and velocity."""

    def __init__(self, safety: SafetyFilter, ensemble: Ensemble | None = None) -> None:
        """Start unsynchronised: nothing may be planned before `reset`.

        With an `ensemble`, chunks that overlap are averaged instead of replaced.
        """
        self._safety = safety
        self._ensemble = ensemble
        self.plan: Plan | None = None

    def reset(self, position: np.ndarray, tick: int) -> Plan:
        """Put the command at rest at a measured position [A] (rad), clipped into the limits."""
        self.forget_chunks()
        start = self._safety.clip(np.asarray(position, dtype=np.float64))
        rest = Motion(start[None].copy(), 0, 0.0)
        self.plan = Plan(tick, np.tile(start, (TRAIL, 1)), rest, None)
        return self.plan

    def catch(self, position: np.ndarray, velocity: np.ndarray, tick: int) -> Plan:
        """Have the command begin in a measured state [A] (rad, rad/s), and brake.

        The spline is at the position, and as fast as the limits allow, where the segment of
        `tick` - 1 begins: whoever plays the plan has nothing before that.
        """
        self.forget_chunks()
        start = self._safety.clip(np.asarray(position, dtype=np.float64))
        # A knot is half-way between two points: that of `tick` - 1 is so far before the last one.
        ahead = 1.5
        speed = self._safety.within(start, np.asarray(velocity, dtype=np.float64), ahead)
        steps = ahead - np.arange(TRAIL)[::-1, None]
        trail = start + steps * speed * self._safety.dt
        self.plan = Plan(tick, trail, self._safety.brake(trail[-1], speed), None)
        return self.plan

    def replace(self, plan: Plan) -> None:
        """Go on with a plan that was made elsewhere."""
        self.forget_chunks()
        self.plan = plan

    def clear(self) -> None:
        """Forget where the command is."""
        self.forget_chunks()
        self.plan = None

    def command(self, tick: int) -> np.ndarray:
        """Return the control point [A] at a tick."""
        return self._present.point(tick)

    def schedule(
        self, chunk: np.ndarray, base: np.ndarray, chunk_start: int, tick: int
    ) -> Plan | None:
        """Continue from `tick` towards a chunk [H, A] of increments from `base` [A].

        `base` is the command that the policy saw, that of tick `chunk_start`. Targets whose time
        has passed are left out; where `chunk_start` is still to come, what is committed until then
        stays. Returns the new plan, or None (and keeps the present one, which ends at rest) when
        the time of all targets has passed.
        """
        if tick - chunk_start >= len(chunk):
            return None
        targets = base + np.cumsum(chunk, axis=0, dtype=np.float64)
        begin, blended = max(tick, chunk_start), False
        if self._ensemble is not None and np.isfinite(targets).all():
            targets, blended = self._ensemble.add(chunk_start, targets, begin)
        motion = self._safety.follow(*self._state(begin), targets[begin - chunk_start :], begin)
        if not motion.horizon:
            return self.brake(tick)
        if begin > tick:
            motion = self._after(tick, begin, motion)
        self._continue(tick, motion, chunk_start, blended)
        return self.plan

    def follow_again(self, tick: int) -> Motion | None:
        """Return another motion from `tick` towards the targets that the plan still has.

        For when the safety filter would have it otherwise by now. None when no target is left.
        """
        plan = self._present
        done = tick - plan.start
        if plan.motion.targets is None or not 0 <= done < plan.motion.horizon:
            return None
        return self._safety.follow(*self._state(tick), plan.motion.targets[done:], tick)

    def take(self, tick: int, motion: Motion) -> Plan:
        """Go on from `tick` with another motion for the same chunk."""
        plan = self._present
        self._continue(tick, motion, plan.chunk_start if motion.horizon else None, plan.blended)
        return self.plan

    def brake(self, tick: int) -> Plan:
        """Continue from `tick` to a stop."""
        self.forget_chunks()
        self._continue(tick, self._safety.brake(*self._state(tick)), None)
        return self.plan

    def index(self, tick: int) -> int | None:
        """Return which step of the chunk is due after `tick`; None on an under-run.

        Below 0 while the plan before goes on.
        """
        plan = self.plan
        if plan is None or plan.chunk_start is None or not plan.start <= tick < plan.chunk_end:
            return None
        return tick - plan.chunk_start

    def remaining(self, tick: int) -> int:
        """Return how many ticks the chunk still covers."""
        plan = self.plan
        return 0 if plan is None or plan.chunk_start is None else max(0, plan.chunk_end - tick)

    def consumed(self, tick: int) -> int:
        """Return how many steps of the chunk are behind, those that came too late included."""
        plan = self.plan
        return 0 if plan is None or plan.chunk_start is None else tick - plan.chunk_start

    @property
    def covered(self) -> int:
        """How many steps of its chunk the plan answers; fewer than all where it was cut short."""
        plan = self.plan
        return 0 if plan is None or plan.chunk_start is None else plan.chunk_end - plan.chunk_start

    @property
    def _present(self) -> Plan:
        if self.plan is None:
            raise RuntimeError('the timeline has no position yet: call reset first')
        return self.plan

    def _state(self, tick: int) -> tuple[np.ndarray, np.ndarray]:
        plan = self._present
        return plan.point(tick), plan.velocity(tick, self._safety.dt)

    def _after(self, tick: int, begin: int, motion: Motion) -> Motion:
        """Return what is committed after `tick`, and from `begin` on a motion."""
        kept = np.stack([self.command(t) for t in range(tick + 1, begin + 1)])
        return replace(
            motion,
            points=np.concatenate([kept, motion.points]),
            horizon=len(kept) + motion.horizon,
            targets=np.concatenate([kept, motion.targets]),
        )

    def forget_chunks(self) -> None:
        """Average what comes next with nothing of before."""
        if self._ensemble is not None:
            self._ensemble.clear()

    def _continue(
        self, tick: int, motion: Motion, chunk_start: int | None, blended: bool = False
    ) -> None:
        self.plan = Plan(tick, self._present.trail_at(tick), motion, chunk_start, blended)
