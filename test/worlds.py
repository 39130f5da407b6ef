# SPDX-License-Identifier: Apache-2.0
"""Worlds for a server loop to act in: one that does not wait, and one that does."""

import numpy as np
from checkpoints import HORIZON, PERIOD_S

from dipod_ros.serving.decisions import Outcome

DT = PERIOD_S
CHUNK_NS = HORIZON * 40_000_000
START = np.array([0.1, 0.2, 0.3])
FAST = np.full((HORIZON, 3), 0.03)


class World:
    """Plays time: the arm is sensed once per period, `control` is called when it is due."""

    def __init__(self, bench):
        self.bench, self.loop, self.clock = bench, bench.loop, bench.clock
        self.position = START.copy()
        self.sensing = True
        self.skew_s = 0.0  # of the robot's clock
        self.setpoints, self.plans = [], []
        bench.engine.chunk = FAST

    def sense(self):
        if self.sensing:
            self.bench.sense(round((self.clock.now + self.skew_s) * 1e9), self.position)

    def decide(self):
        step = self.loop.step()
        if step is not None and self.loop.config.interface == 'trajectory':
            self.plans.append(step[0].plan)

    def control(self):
        command = self.loop.control()
        if command is not None:
            self.setpoints.append(command.setpoint)
            self.plans.append(command.plan)

    def period(self, decide=True):
        """Run from one observation to the next; decisions are tried after every event."""
        end = self.clock.now + DT
        self.sense()
        if decide:
            self.decide()
        while self.loop.next_control_s() <= end + 1e-9:
            self.clock.now = max(self.clock.now, self.loop.next_control_s())
            self.control()
            if decide:
                self.decide()
        self.clock.now = max(self.clock.now, end)

    def run(self, periods, **more):
        for _ in range(periods):
            self.period(**more)

    def counts(self, name):
        return self.bench.safety.counts[name]


class Arm(World):
    """An arm that follows its command, a period behind; a stranger may publish outcomes."""

    episode = 0

    def sense(self):
        if len(self.setpoints) > 1:
            self.position = self.setpoints[-2]
        super().sense()

    def reset(self, **more):
        stamp_ns = round(self.clock.now * 1e9)
        self.loop.on_outcome(Outcome(stamp_ns, self.episode, reset=True, **more))
        self.episode += 1


def settled(world):
    """Let the server hear the robot's clock for long enough, so that the next period decides."""
    while not world.loop.grid.begun:
        world.period()
    assert world.plans == []
    return world


def assert_smooth(setpoints, limits):
    """Setpoints once per period are averages of control points: the same limits hold."""
    path = np.array(setpoints)
    speed = np.diff(path, axis=0) / DT
    assert np.all(np.abs(speed) <= limits.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= limits.acceleration * DT + 1e-9)
    assert np.all(path >= limits.lower) and np.all(path <= limits.upper)


def assert_within_limits(path, step_s, limits):
    """Positions [K, A] of a stream, one per step, keep the limits."""
    speed = np.diff(path, axis=0) / step_s
    assert np.all(path >= limits.lower - 1e-12) and np.all(path <= limits.upper + 1e-12)
    assert np.all(np.abs(speed) <= limits.velocity * (1 + 1e-9) + 1e-9)
    change = np.abs(np.diff(speed, axis=0)) / step_s
    assert np.all(change <= limits.acceleration * (1 + 1e-6) + 1e-6)


def assert_legal(limits, previous, velocity, points):
    """Check control points [K, A] that follow `previous`, reached with `velocity`."""
    ulp = 1e-9  # round-off of float64 in rad, rad/s and rad/s^2 alike
    path = np.concatenate([previous[None], points])
    speed = np.concatenate([velocity[None], np.diff(path, axis=0) / DT])
    assert np.all(path >= limits.lower - ulp) and np.all(path <= limits.upper + ulp)
    assert np.all(np.abs(speed) <= limits.velocity + ulp)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= limits.acceleration * DT + ulp)


def answer(bench, stamp_ns, position=START, episode=0, **outcome):
    """Let a lockstep world say what one instant consists of; return the command or None."""
    bench.loop.on_outcome(Outcome(stamp_ns, episode, **outcome))
    bench.sense(stamp_ns, position)
    result = bench.loop.step()
    return None if result is None else result[0]
