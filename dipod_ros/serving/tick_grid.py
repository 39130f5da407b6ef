# SPDX-License-Identifier: Apache-2.0
"""When control ticks are, on the robot's clock. Injected clocks, no ROS.

The grid is anchored at one of the robot's own stamps, so that the observation of tick s is the arm
at tick s, and stays there to the nanosecond: the knots of successive trajectories must not shift in
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dipod_ros.serving.observation import Sample
from dipod_ros.serving.stamp_clock import JUMP_NS, NS_PER_S, StampClock


class TickGrid:
    """Ticks one control period apart; tick numbers are the caller's, times are ours."""

    def __init__(self, period_s: float, lead: float, may_skip: bool, clock: Callable[[], float]):
        """Take the control period and how the ticks are to be followed.

        lead: parts of a period by which tick k + 1 is due before the time of tick k.
        may_skip: whether ticks that were missed are passed over, or the grid moves instead.
        """
        self._period_ns = round(period_s * NS_PER_S)
        self._lead_ns = round(lead * self._period_ns)
        self._may_skip = may_skip
        self._clock = clock
        self._stamps = StampClock()
        self._zero_ns: int | None = None
        self._jumps = 0  # of the robot's clock, those dealt with
        # The clock that controllers go by, where the caller has one; see `read_clocks`.
        self.ros_time_ns: Callable[[], int] | None = None
        self.on_robot_time = False  # else on the steady clock: the robot stamps nothing
        self.ros_lead_s: float | None = None  # of ROS time over joint states, None if far off
        self.late_periods = 0  # ticks that were noticed a period late or more

    @property
    def begun(self) -> bool:
        """Whether ticks have times."""
        return self._zero_ns is not None

    @property
    def rate(self) -> float:
        """Seconds of the robot's clock per steady second; 1 but for simulations."""
        return self._stamps.rate if self.on_robot_time else 1.0

    def read_clocks(self, samples: Iterable[Sample | None]) -> None:
        """Learn the robot's time from whichever of its messages came through fastest.

        The first sample is that of the joints; others count when they are of the same clock.
        """
        joints, *others = samples
        self.ros_lead_s = None
        if joints is None:
            return
        if not joints.stamp_ns:
            self._stamps.observe(0, joints.received_s)
            return
        own = (joints.stamp_ns, joints.received_s)
        times = [(s.stamp_ns, s.received_s) for s in others if s is not None and s.stamp_ns]
        if self.ros_time_ns is not None:
            # Messages that are all late look like a clock that is behind. Where ROS time is the
            # robot's time (one machine, or synchronised ones) it knows better; elsewhere it is far
            # off and says nothing.
            ros = (self.ros_time_ns(), self._clock())
            lead_ns = _ahead_ns(ros) - _ahead_ns(own)
            self.ros_lead_s = lead_ns / NS_PER_S if abs(lead_ns) < JUMP_NS else None
            times.append(ros)
        times = [t for t in times if abs(_ahead_ns(t) - _ahead_ns(own)) < JUMP_NS]
        self._stamps.observe(*max([own, *times], key=_ahead_ns))

    def begin(self, sample: Sample, tick: int) -> bool:
        """Anchor `tick` at a sample; False while too little was heard to know the robot's clock."""
        if not self._stamps.settled:
            return False
        self.on_robot_time = self._stamps.known
        self._zero_ns = self.time_ns(sample) - tick * self._period_ns
        return True

    def was_set(self) -> bool:
        """Tell, once, that the robot's clock was set; `begin` again then."""
        news = self.on_robot_time and self._stamps.jumps != self._jumps
        self._jumps = self._stamps.jumps
        return news

    def robot_ns(self, steady_s: float) -> int | None:
        """Return about the robot's time at a steady time, None while its clock is not known."""
        return self._stamps.about_ns(steady_s) if self._stamps.settled else None

    def tick_ns(self, tick: int) -> int:
        """Return the time of a tick, on the clock that `now_ns` tells."""
        return (self._zero_ns or 0) + tick * self._period_ns

    def now_ns(self) -> int:
        """Return the present: the robot's time, which goes on by ours when its messages stop."""
        now_s = self._clock()
        robot = self._stamps.stamp_ns(now_s) if self.on_robot_time else None
        return round(now_s * NS_PER_S) if robot is None else robot

    def time_ns(self, sample: Sample) -> int:
        """Return when what a sample shows was so."""
        return sample.stamp_ns if self.on_robot_time else round(sample.received_s * NS_PER_S)

    def nearest(self, sample: Sample) -> int:
        """Return the tick nearest to a sample."""
        since_ns = self.time_ns(sample) - self.tick_ns(0)
        return (2 * since_ns + self._period_ns) // (2 * self._period_ns)

    def behind(self, sample: Sample, tick: int) -> float:
        """Return by how many periods a sample is older than a tick."""
        return (self.tick_ns(tick) - self.time_ns(sample)) / self._period_ns

    def until(self, tick: int) -> float:
        """Return how many periods from now a tick is; below 0 when it has passed."""
        return (self.tick_ns(tick) - self.now_ns()) / self._period_ns

    def follow(self, tick: int) -> int:
        """Return the tick that is due by now, `tick` being the last one."""
        ahead_ns = self.now_ns() + self._lead_ns - self.tick_ns(tick)
        missed = ahead_ns // self._period_ns
        if missed < 0:
            return tick
        self.late_periods += missed
        if not self._may_skip:
            self._zero_ns += missed * self._period_ns
            missed = 0
        return tick + 1 + missed

    def tick_after(self, tick: int, wait_s: float, margin: float = 0.0) -> int:
        """Return the tick that will have been due after some steady seconds, `tick` at least.

        margin: parts of a period besides.
        """
        wait_s *= self._stamps.rate if self.on_robot_time else 1.0
        wait_ns = round(wait_s * NS_PER_S + margin * self._period_ns)
        ahead_ns = self.now_ns() + wait_ns + self._lead_ns - self.tick_ns(tick)
        return tick + max(0, ahead_ns // self._period_ns + 1)

    def wait_s(self, tick: int) -> float:
        """Return in how many (steady) seconds `follow(tick)` has another answer."""
        if not self.begun:
            return self._period_ns / NS_PER_S
        wait_ns = self.tick_ns(tick) - self._lead_ns - self.now_ns()
        return wait_ns / NS_PER_S / self.rate


def _ahead_ns(time: tuple[int, float]) -> float:
    """Return how far a clock is ahead of the steady one, from (its time in ns, steady s)."""
    return time[0] - time[1] * NS_PER_S
