# SPDX-License-Identifier: Apache-2.0
"""An arm that torques drive is taken up where it is, when its joint states come back."""

import numpy as np
import pytest
from checkpoints import HORIZON, make_limits
from worlds import DT, assert_within_limits

from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving import safety
from dipod_ros.serving.drive import Drive
from dipod_ros.serving.drive_laws import Joints
from dipod_ros.serving.effort_law import EffortLaw
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.setpoints import SetpointStream
from dipod_ros.serving.speed import SpeedConfig, SpeedScale

START = np.array([0.1, 0.2, 0.3])
RATE_HZ = 250.0
PHYSICS = 10  # steps per command
WEIGHT = np.array([-0.5, 0.4, -0.3])  # N m, which nobody else carries
KP, KD, LIMIT = 600.0, 60.0, 87.0
SILENT_S = 0.6  # of which torques are in force for joint_max_age_s
TOPIC = 'joint_states'


class Arm:
    """Three joints of 1 kg m^2 under torques that stay in force, a server, and joint states."""

    def __init__(self, bench):
        self.bench, self.loop, self.clock = bench, bench.loop, bench.clock
        self.bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=0.5), DT)
        self.stream = SetpointStream(bench.loop, RATE_HZ)
        joints = Joints(bench.buffer, TOPIC, 0.2)
        ones = np.ones(3)
        law = EffortLaw(LIMIT * ones, KP * ones, KD * ones, joints, self.stream.step_s)
        self.drive = Drive(bench.loop, self.stream, law)
        self.position, self.velocity, self.torque = START.copy(), np.zeros(3), np.zeros(3)
        self.sensing, self.weight = True, np.zeros(3)  # until it is held
        # Per command: the arm, what it was told, and the setpoint of it.
        self.positions, self.torques, self.setpoints = [], [], []
        bench.engine.chunk = np.zeros((HORIZON, 3))
        sample = self.stream.sample
        self.stream.sample = lambda: self._note(sample())

    def _note(self, setpoint):
        self.setpoints.append(setpoint)
        return setpoint

    def run(self, seconds, until=lambda: False):
        end = self.clock.now + seconds
        while self.clock.now < end and not until():
            if self.sensing:
                self._sense()
            self.stream.prepare()
            values = self.drive.command()
            if values is not None:
                self.torque = values
            self.positions.append(self.position)
            self.torques.append(self.torque)
            if not self.loop.grid.begun:
                self.loop.control()
            self.loop.step()
            self._move(max(self.stream.next_s() - self.clock.now, 1e-4))
        return self

    def _sense(self):
        buffer, stamp_ns = self.bench.buffer, round(self.clock.now * 1e9)
        buffer.put('point', 'goal', np.array([0.1, 0.2, 0.3]), stamp_ns)
        buffer.put('joint_velocity', TOPIC, self.velocity, stamp_ns)
        buffer.put('joint_position', TOPIC, self.position, stamp_ns)

    def _move(self, seconds):
        for _ in range(PHYSICS):
            self.velocity = self.velocity + (self.torque + self.weight) * seconds / PHYSICS
            self.position = self.position + self.velocity * seconds / PHYSICS
        self.clock.advance(seconds)

    def lose_sight(self, seconds=SILENT_S):
        """Let joint states stay away for a while; nobody holds the arm for most of it."""
        self.sensing = False
        self.run(seconds)
        assert not self.torque.any()  # it was let go
        self.sensing = True
        self.forget()

    def forget(self):
        for told in (self.positions, self.torques, self.setpoints):
            told.clear()

    @property
    def hardest(self):
        """The largest torque (N m)."""
        return np.abs(self.torques).max()

    @property
    def braking(self):
        """What it takes to slow 1 kg m^2 down at the limit, and a little for noise (N m)."""
        return self.bench.limits.acceleration.max() + np.abs(WEIGHT).max() + 1.0

    @property
    def pushes(self):
        """How hard it was pushed against what it was told before, per command [K] (N m)."""
        return np.abs(np.diff(np.array(self.torques), axis=0)).max(axis=1)

    def references(self):
        """Return the setpoints since `forget`, in pieces that begin anew."""
        pieces = []
        for setpoint in self.setpoints:
            if setpoint is None or setpoint.first or not pieces:
                pieces.append([])
            if setpoint is not None:
                pieces[-1].append(setpoint.position)
        return [np.array(p) for p in pieces if len(p) > 2]


@pytest.fixture
def make_arm(make_bench):
    def make(limits=None):
        arm = Arm(make_bench(RealTimeLoop, interface='position', limits=limits)).run(2.0)
        arm.weight = WEIGHT
        return arm.run(1.0)

    return make


def test_it_is_taken_up_where_it_sank_to(make_arm):
    arm = make_arm()
    stood = arm.setpoints[-1].position
    np.testing.assert_allclose(arm.position, stood, atol=0.005)
    arm.lose_sight()
    sunk = arm.position
    apart = np.abs(sunk - stood)
    assert apart.max() > 0.03 and apart.max() < arm.loop.config.resync_rad  # no resync would help
    arm.run(0.5)
    # All at once it would be KP * apart, some 25 N m.
    assert arm.pushes.max() < 2.0 and arm.hardest < arm.braking
    first = next(s for s in arm.setpoints if s is not None and s.first)
    np.testing.assert_allclose(first.position, sunk, atol=0.005)
    for path in arm.references():
        assert_within_limits(path, arm.stream.step_s, arm.bench.limits)
    arm.run(1.0)
    assert np.abs(arm.velocity).max() < 1e-3 and np.abs(arm.torque + WEIGHT).max() < 0.1
    np.testing.assert_allclose(arm.position, sunk, atol=0.03)  # what it needs to be braked
    assert arm.bench.safety.counts[safety.RESYNC] == 1


@pytest.mark.parametrize('silent_s', [0.21, 0.25, 0.3, 0.4])
def test_one_that_moves_is_braked_from_the_speed_that_it_has(make_arm, silent_s):
    arm = make_arm()
    arm.bench.engine.chunk = np.tile([-0.012, 0.016, 0.02], (HORIZON, 1))
    arm.run(5.0, until=lambda: np.abs(arm.velocity[2]) > 0.35)
    arm.bench.engine.chunk = np.zeros((HORIZON, 3))
    arm.lose_sight(silent_s)
    sight, speed = arm.position, arm.velocity
    assert np.abs(speed).max() > 0.05
    arm.run(0.5)
    assert arm.hardest < 2 * arm.braking  # the drive's own lag is made up for as well
    for path in arm.references():
        assert_within_limits(path, arm.stream.step_s, arm.bench.limits)
    # No further than it takes to brake, and not back to where the setpoint stood.
    room = speed**2 / (2 * arm.bench.limits.acceleration) + np.abs(speed) * 2 * DT + 0.02
    assert np.all(np.abs(arm.position - sight) < room)


def test_under_an_estop_it_is_held_where_it_is_and_not_moved_back(make_arm):
    arm = make_arm()
    arm.loop.safety.estop.latch('test')
    arm.run(0.2)
    arm.lose_sight()
    sunk = arm.position
    arm.run(2.0)
    assert arm.torque.any() and arm.hardest < arm.braking
    np.testing.assert_allclose(arm.position, sunk, atol=0.03)
    assert np.abs(arm.velocity).max() < 1e-3


def test_outside_its_limits_it_is_left_alone_and_told_about(make_arm):
    limits = make_limits()
    narrow = JointLimits(
        limits.joints, START - 0.02, START + 0.02, limits.velocity, limits.acceleration
    )
    arm = make_arm(narrow)
    arm.lose_sight()
    assert np.abs(arm.position - START).max() > 0.03
    arm.run(0.3)
    assert not arm.torque.any()
    assert any('is outside' in text for text in arm.bench.notices.active)
    arm.position, arm.velocity = START.copy(), np.zeros(3)  # somebody puts it back
    arm.run(0.5)
    assert arm.torque.any() and arm.hardest < arm.braking
    assert not arm.bench.notices.active


def test_one_at_its_limit_is_taken_up_without_leaving_it(make_arm):
    limits = make_limits()
    lower = np.array([START[0] - 0.08, -1.0, -1.0])
    arm = make_arm(
        JointLimits(limits.joints, lower, limits.upper, limits.velocity, limits.acceleration)
    )
    arm.lose_sight(0.72)
    assert 0 < arm.position[0] - lower[0] < 0.05 and arm.velocity[0] < -0.2
    arm.run(1.0)
    for path in arm.references():
        assert_within_limits(path, arm.stream.step_s, arm.bench.limits)


def test_a_short_gap_changes_nothing(make_arm):
    arm = make_arm()
    arm.sensing = False
    arm.run(0.15)
    arm.sensing = True
    arm.run(0.5)
    assert arm.bench.safety.counts[safety.RESYNC] == 0
    assert sum(s is not None and s.first for s in arm.setpoints) == 1
