# SPDX-License-Identifier: Apache-2.0
"""Torques keep their limits, do not push an arm that is not seen, and end with one that lets go."""

import numpy as np
import pytest

from dipod_ros.serving.drive_laws import Joints
from dipod_ros.serving.effort_law import LINGER_S, EffortLaw
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.setpoints import Setpoint

STEP = 0.005
TOPIC = 'joint_states'
MAX_AGE_S = 0.2


class Arm:
    """Three joints of 1 kg m^2 that take torques, and their sensors."""

    def __init__(self, clock):
        self.clock, self.buffer = clock, ObservationBuffer(clock)
        self.joints = Joints(self.buffer, TOPIC, MAX_AGE_S)
        self.position, self.velocity = np.zeros(3), np.zeros(3)
        self.torque = np.zeros(3)  # the last one stays in force

    def sense(self, position, velocity=None):
        self.buffer.put('joint_position', TOPIC, np.asarray(position, dtype=float), 0)
        if velocity is not None:
            self.buffer.put('joint_velocity', TOPIC, np.asarray(velocity, dtype=float), 0)

    def advance(self, torque):
        if torque is not None:
            self.torque = torque
        for _ in range(10):
            self.velocity = self.velocity + self.torque * STEP / 10
            self.position = self.position + self.velocity * STEP / 10
        self.clock.advance(STEP)


@pytest.fixture
def arm(clock):
    return Arm(clock)


def law_of(arm, gravity=None):
    return EffortLaw(
        np.array([10.0, 5.0, 1.0]), np.full(3, 100.0), np.full(3, 10.0), arm.joints, STEP, gravity
    )


def strong_law(arm):
    return EffortLaw(np.full(3, 87.0), np.full(3, 600.0), np.full(3, 60.0), arm.joints, STEP)


def stand(position, first=True):
    return Setpoint(np.asarray(position, dtype=float), np.zeros(3), True, first)


class Braking:
    """Setpoints at 2 rad/s that brake at 7.5 rad/s^2 from `begin_s` on."""

    def __init__(self, begin_s):
        self.begin_s, self.position, self.velocity, self.now_s = begin_s, 0.0, 2.0, 0.0

    def next(self):
        if self.now_s >= self.begin_s:
            self.velocity = max(self.velocity - 7.5 * STEP, 0.0)
        first = self.now_s == 0.0
        self.position += self.velocity * STEP
        self.now_s += STEP
        ones = np.ones(3)
        return Setpoint(self.position * ones, self.velocity * ones, self.velocity == 0.0, first)


def drive(arm, law, seconds, setpoints, sensing=True, closing=False):
    """Run for a while; return the commands, one per step, None where there was none."""
    out = []
    for _ in range(round(seconds / STEP)):
        if sensing:
            arm.sense(arm.position, arm.velocity)
        setpoint = setpoints.next()
        out.append(law.command(setpoint, arm.clock.now, closing and setpoint.resting))
        arm.advance(out[-1])
        if closing and setpoint.resting and law.settled:
            break
    return out


def moving(arm, law):
    arm.velocity = np.full(3, 2.0)
    setpoints = Braking(begin_s=1.0)
    drive(arm, law, 1.0, setpoints)
    np.testing.assert_allclose(arm.velocity, 2.0, atol=0.05)
    return setpoints


def test_torque_is_pd_plus_gravity_clipped(arm):
    arm.sense([0.0, 0.0, 0.0], [0.1, 0.0, 0.0])
    setpoint = Setpoint(np.array([0.01, 0.02, 0.5]), np.array([0.2, 0.0, 0.0]), False, first=True)
    torque = law_of(arm).command(setpoint, arm.clock.now, False)
    np.testing.assert_allclose(torque, [2.0, 2.0, 1.0])
    torque = law_of(arm, lambda q: q + 3.0).command(setpoint, arm.clock.now, False)
    np.testing.assert_allclose(torque, [5.0, 5.0, 1.0])


def test_an_arm_that_is_seen_brakes_with_its_setpoint(arm):
    law = strong_law(arm)
    setpoints = moving(arm, law)
    drive(arm, law, 1.5, setpoints, closing=True)
    assert law.settled and not arm.torque.any()
    assert np.all(np.abs(arm.velocity) < 0.05)


def test_sensors_that_fall_silent_while_it_brakes_do_not_drive_the_arm_faster(arm):
    """The setpoint moves on without the measurement: that is no reason for a torque."""
    law = strong_law(arm)
    setpoints = moving(arm, law)
    speeds = []
    for _ in range(round(0.4 / STEP)):
        drive(arm, law, STEP, setpoints, sensing=False)
        speeds.append(np.abs(arm.velocity).max())
    assert max(speeds) < 2.1
    assert not arm.torque.any()  # the last word lets go: the controller keeps it


def test_no_torque_for_an_arm_that_is_not_seen(arm):
    law = law_of(arm)
    assert law.command(stand(np.zeros(3)), arm.clock.now, False) is None
    arm.sense(np.zeros(3))  # positions alone
    assert law.command(stand(np.zeros(3)), arm.clock.now, False) is None
    arm.sense(np.zeros(3), np.zeros(3))
    assert law.command(stand(np.full(3, 0.01)), arm.clock.now, False).any()
    assert not law.settled
    arm.clock.advance(MAX_AGE_S + 0.01)
    np.testing.assert_array_equal(law.command(stand(np.ones(3)), arm.clock.now, False), 0.0)
    assert law.settled
    assert law.command(stand(np.ones(3)), arm.clock.now, False) is None  # said once


@pytest.mark.parametrize('end', ['silence', 'no plan'])
def test_it_ends_with_the_weight_where_that_is_known(arm, end):
    law = law_of(arm, lambda q: q + 3.0)
    arm.sense(np.full(3, 0.5), np.zeros(3))
    law.command(stand(np.ones(3)), arm.clock.now, False)
    if end == 'silence':
        arm.clock.advance(MAX_AGE_S + 0.01)
        last = law.command(stand(np.ones(3)), arm.clock.now, False)
    else:
        last = law.idle()
    np.testing.assert_array_equal(last, [3.5, 3.5, 1.0])
    assert law.idle() is None


def test_at_the_end_the_arm_is_held_until_it_stands(arm):
    law = strong_law(arm)
    setpoints = moving(arm, law)
    drive(arm, law, 2.0 / 7.5 - 0.02, setpoints)
    assert np.all(arm.velocity > 0.1)  # it is behind: its setpoint stands before it does
    out = drive(arm, law, 2.0, setpoints, closing=True)
    assert len(out) * STEP < LINGER_S and not out[-1].any()
    assert np.all(np.abs(arm.velocity) < 0.03)


def test_an_arm_that_never_stands_is_let_go_after_a_while(arm):
    law, count = law_of(arm), 0
    while not (count and law.settled):
        arm.sense(np.zeros(3), np.full(3, (-1) ** count * 0.5))
        last = law.command(stand(np.zeros(3)), arm.clock.now, True)
        arm.clock.advance(STEP)
        count += 1
        assert count * STEP < LINGER_S + 0.1
    assert not last.any()


def test_setpoints_of_before_the_first_of_a_stream_do_not_count(arm):
    """The world was reset: what the arm was told elsewhere says nothing about where it is."""
    law = law_of(arm)
    arm.sense(np.ones(3), np.zeros(3))
    for k in range(4):
        law.command(stand(np.ones(3), first=k == 0), arm.clock.now, False)
        arm.clock.advance(STEP)
    arm.sense(np.zeros(3), np.zeros(3))
    arm.clock.advance(2 * STEP)
    begin = Setpoint(np.zeros(3), np.zeros(3), True, first=True)
    np.testing.assert_array_equal(law.command(begin, arm.clock.now, False), 0.0)


@pytest.mark.parametrize('sense', ['late', 'lost'])
def test_an_arm_that_nothing_holds_is_taken_up_where_its_setpoint_begins_alone(arm, sense):
    """Whether it was let go or never held: the setpoint went on without it."""
    law = law_of(arm)
    if sense == 'lost':
        arm.sense(np.zeros(3), np.zeros(3))
    law.command(stand(np.zeros(3)), arm.clock.now, False)
    arm.clock.advance(MAX_AGE_S + 0.01)
    law.command(stand(np.zeros(3), first=False), arm.clock.now, False)
    assert law.settled and not law.astray
    arm.sense(np.full(3, 0.05), np.zeros(3))
    for _ in range(3):
        assert law.command(stand(np.zeros(3), first=False), arm.clock.now, False) is None
        assert law.settled and law.astray
    np.testing.assert_allclose(
        law.command(stand(np.full(3, 0.05)), arm.clock.now, False), 0.0, atol=1e-9
    )
    assert not law.settled and not law.astray
    assert law.command(stand(np.full(3, 0.06), first=False), arm.clock.now, False).any()
