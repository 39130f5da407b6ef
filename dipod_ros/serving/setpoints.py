# SPDX-License-Identifier: Apache-2.0
"""The command between two control points: samples of the present plan's spline, at a steady rate.

numpy, an injected clock, no ROS, no threads. One thread calls `prepare` and `sample` when they are
due; whatever inference does meanwhile, the spline has a value, since every plan ends at rest.

Samples are equally spaced on the spline. So their first and second differences over the nominal
step are averages of its velocity and acceleration, and bounds on those bound the stream too. An
instant that was missed is not made up for by a longer step: the spline is played on from where it
is, later. What is lost that way is caught up by playing up to SLEW faster, or for free at rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.serving.pacing import LEAD
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.timeline import Plan

NS_PER_S = 1_000_000_000
# Allowed rates of a command stream, Hz.
LOWEST_HZ, HIGHEST_HZ = 50.0, 500.0
# How much faster or slower than nominal the spline is played to follow the robot's clock. Clocks
# that are disciplined over a network are slewed by half of that (RFC 5905: 500 ppm).
SLEW = 1e-3
# Part of the difference to the robot's clock that is corrected with each sample: averages the
# jitter of its messages.
GAIN = 0.01
# How long before its first sample a segment's last control point is committed, in parts of a step
# and at most in seconds: the work of doing so must not delay the sample.
EARLY, EARLY_S = 0.5, 0.001
# How often a plan is looked for while there is none.
IDLE_S = 0.005


@dataclass(frozen=True, eq=False)
class Setpoint:
    """The spline at one instant; arrays [A]."""

    position: np.ndarray  # rad
    velocity: np.ndarray  # rad/s
    resting: bool  # it stands for the rest of this control period
    first: bool = False  # of a stream that begins: nothing before it leads there


def check_rate(rate_hz: float, control_period_s: float) -> None:
    """Raise UserError for a `command_rate_hz` that a stream cannot have; 0 is no stream."""
    if not rate_hz:
        return
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise UserError(
            f'command_rate_hz is {rate_hz:g}; give 0 for one command per control period, or '
            f'{LOWEST_HZ:g} to {HIGHEST_HZ:g}'
        )
    if rate_hz * control_period_s < 1 - 1e-9:
        raise UserError(
            f'command_rate_hz {rate_hz:g} is less than one command per control period of '
            f'{control_period_s:g} s: give {1 / control_period_s:g} or more, or 0'
        )


class SetpointStream:
    """Plays the plan of a RealTimeLoop; also tells that loop when control points are due."""

    def __init__(self, loop: RealTimeLoop, rate_hz: float) -> None:
        """Take a loop with the `position` interface and the rate in Hz."""
        self._loop, self._course, self._clock = loop, loop.course, loop.clock
        self._period_ns = round(loop.safety.dt * NS_PER_S)
        self._step_ns = min(round(NS_PER_S / rate_hz), self._period_ns)
        # The segment that begins at tick k is known when point k + 1 is committed.
        self._delay_ns = round(-LEAD['position'] * self._period_ns)
        self.step_s = self._step_ns / NS_PER_S
        self._early_s = min(EARLY * self.step_s, EARLY_S)
        self._tick: int | None = None  # where the segment being played begins; None: not playing
        self._into_ns = 0  # how far into it the next sample is
        self._points = np.zeros((3, 0))
        self._first = False  # the next sample begins a stream
        self._begun_anew = loop.course.begun_anew
        self._due_s = self._clock()
        self.missed = 0  # instants at which no sample was taken

    @property
    def playing(self) -> bool:
        """Whether there is a plan to play."""
        return self._tick is not None

    @property
    def current(self) -> bool:
        """Whether the segment being played is still that of the present plan."""
        plan = self._course.timeline.plan
        if plan is None or self._tick is None:
            return False
        return np.array_equal(self._points, _segment(plan, self._tick))

    def next_s(self) -> float:
        """Return when (steady clock) `prepare` or `sample` has something to do."""
        return self._due_s - (self._early_s if self._unprepared else 0.0)

    def prepare(self) -> None:
        """Commit the control point that the next sample needs; the part that takes time."""
        if self._unprepared:
            tick = self._tick + 1
            self._loop.control(tick + 1)
            self._enter(tick, self._into_ns - self._period_ns)

    def look(self) -> None:
        """Look for reasons to stop between two control points."""
        self._loop.control()

    def begin_where_it_is(self) -> None:
        """Begin a new stream where the arm is by now: nothing held it on the old one."""
        with self._loop.wake:
            self._loop.control()
            self._loop.begin_where_it_is()
            self._tick = None
            self._enter(self._course.tick - 1, 0)
        self._first = True

    def sample(self) -> Setpoint | None:
        """Return the setpoint of the instant `due_s`, None while there is no plan."""
        self._keep_pace()
        if self._course.begun_anew != self._begun_anew:
            self._tick = None  # the world was reset: what was planned is void
        self.prepare()
        if self._tick is None:
            self._begin()
            if self._tick is not None:
                self._due_s = self._clock() + self.step_s
        if self._tick is None:
            return None
        begins, self._first = self._first, False
        c0, c1, c2 = self._points
        u = self._into_ns / self._period_ns
        first, second = c1 - c0, c2 - c1
        # Uniform quadratic B-spline (see policy/limits.py) and its derivative.
        position = (c0 + c1) / 2 + u * first + (u * u / 2) * (second - first)
        velocity = ((1 - u) * first + u * second) * (NS_PER_S / self._period_ns)
        self._into_ns += self._step_ns
        return Setpoint(position, velocity, self._standing, begins)

    @property
    def due_s(self) -> float:
        """When (steady clock) the next sample is due."""
        return self._due_s

    @property
    def _standing(self) -> bool:
        return bool((self._points == self._points[0]).all())

    @property
    def _unprepared(self) -> bool:
        return self._tick is not None and self._into_ns >= self._period_ns

    def _begin(self) -> None:
        self._loop.control()
        with self._loop.wake:
            tick, plan = self._course.tick, self._course.timeline.plan
        if plan is None:
            return
        # The point of `tick` is committed: what is played now leads there.
        behind_ns = self._target_ns() - (tick - 1) * self._period_ns
        self._enter(tick - 1, 0)
        self._first = True
        if self._standing:
            self._into_ns = int(np.clip(behind_ns, 0, self._period_ns - 1))

    def _enter(self, tick: int, into_ns: int) -> None:
        with self._loop.wake:
            plan, self._begun_anew = self._course.timeline.plan, self._course.begun_anew
        if plan is None:
            self._tick = None
            return
        points = _segment(plan, tick)
        if self._tick is not None and not np.array_equal(points[:2], self._points[1:]):
            into_ns = 0  # the command was put elsewhere, where it stands: begin with that
        self._points, self._tick, self._into_ns = points, tick, into_ns

    def _keep_pace(self) -> None:
        """Choose the instant of the next sample, and skip those that were missed."""
        late = (self._clock() - self._due_s) / self.step_s
        missed = int(max(late, 0.0))
        if self._tick is None:
            self._due_s = self._clock() + min(max(self.step_s, IDLE_S), self._period_ns / NS_PER_S)
            return
        self.missed += missed
        self._due_s += missed * self.step_s
        grid = self._loop.grid
        behind_ns = self._target_ns() - self._tick * self._period_ns - self._into_ns
        behind_ns -= round((self._clock() - self._due_s) * grid.rate * NS_PER_S)
        if self._standing:  # any instant is as good
            self._into_ns = int(np.clip(self._into_ns + behind_ns, 0, self._period_ns))
            behind_ns = 0
        slew = np.clip(GAIN * behind_ns / self._step_ns, -SLEW, SLEW)
        self._due_s += self.step_s * (1 - slew) / grid.rate

    def _target_ns(self) -> int:
        """Return where on the spline the robot's clock is, counted from tick 0."""
        grid = self._loop.grid
        return grid.now_ns() - grid.tick_ns(0) - self._delay_ns


def _segment(plan: Plan, tick: int) -> np.ndarray:
    """Return the control points [3, A] (rad) of the segment that begins at a tick."""
    return np.stack([plan.point(k) for k in (tick - 1, tick, tick + 1)])
