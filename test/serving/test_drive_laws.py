# SPDX-License-Identifier: Apache-2.0
"""Velocities keep their limits whatever is measured, and come to an end."""

import numpy as np
import pytest
from checkpoints import make_limits

from dipod_ros.errors import UserError
from dipod_ros.serving.drive_laws import Joints, VelocityLaw, per_joint
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.setpoints import Setpoint

LIMITS = make_limits()
STEP = 0.005
TOPIC = 'joint_states'


class Arm:
    """Joint states of an arm that follows, or does not."""

    def __init__(self, clock):
        self.clock, self.buffer = clock, ObservationBuffer(clock)
        self.joints = Joints(self.buffer, TOPIC, 0.2)

    def sense(self, position, velocity=None):
        self.buffer.put('joint_position', TOPIC, np.asarray(position, dtype=float), 0)
        if velocity is not None:
            self.buffer.put('joint_velocity', TOPIC, np.asarray(velocity, dtype=float), 0)


@pytest.fixture
def arm(clock):
    return Arm(clock)


def law_of(arm, gain=5.0):
    return VelocityLaw(LIMITS, STEP, gain, arm.joints)


def stand(position):
    return Setpoint(np.asarray(position, dtype=float), np.zeros(3), True)


def run(law, arm, count, setpoint, sense):
    out = []
    for k in range(count):
        sense(k)
        out.append(law.command(setpoint, arm.clock.now, False))
        arm.clock.advance(STEP)
    return np.array(out)


def test_without_a_gain_it_is_the_velocity_of_the_spline(arm):
    law = law_of(arm, gain=0.0)
    ramp = LIMITS.acceleration * STEP * np.arange(1, 4)[:, None]
    for velocity in ramp:
        arm.sense(np.zeros(3))
        given = law.command(Setpoint(np.ones(3) * 0.5, velocity, False), arm.clock.now, False)
        np.testing.assert_allclose(given, velocity)


def test_a_difference_is_made_up_for_and_then_it_stands(arm):
    law, q = law_of(arm), np.array([0.0, 0.1, -0.1])
    goal = np.array([0.2, 0.0, 0.1])

    def integrate(_):
        nonlocal q
        q = q + law._last * STEP
        arm.sense(q)

    out = run(law, arm, 1200, stand(goal), integrate)
    np.testing.assert_allclose(q, goal, atol=1.1e-3)
    assert law.settled and not out[-1].any()
    assert np.all(np.abs(np.diff(out, axis=0)) <= LIMITS.acceleration * STEP + 1e-12)


@pytest.mark.parametrize('measured', [np.full(3, 50.0), np.full(3, -50.0)])
def test_no_measurement_makes_it_leave_velocity_and_acceleration(arm, measured):
    law = law_of(arm, gain=20.0)
    rng = np.random.default_rng(0)
    out = run(law, arm, 400, stand(np.zeros(3)), lambda k: arm.sense(measured * rng.normal(size=3)))
    assert np.all(np.abs(out) <= LIMITS.velocity + 1e-12)
    assert np.all(np.abs(np.diff(out, axis=0)) <= LIMITS.acceleration * STEP + 1e-12)
    assert np.abs(out).max() > 0.1


def test_an_arm_near_its_limit_is_not_driven_through_it(arm):
    """The setpoint runs ahead to the limit; the arm, far behind, still must stop there."""
    law, q = law_of(arm, gain=20.0), LIMITS.upper - 0.3
    most = q.copy()
    for _ in range(2000):
        arm.sense(q)
        v = law.command(stand(LIMITS.upper), arm.clock.now, False)
        q = q + v * STEP
        most = np.maximum(most, q)
        arm.clock.advance(STEP)
    assert np.all(most <= LIMITS.upper + 1e-9)
    np.testing.assert_allclose(q, LIMITS.upper, atol=0.02)


def test_old_joint_states_are_not_acted_on(arm):
    law = law_of(arm)
    arm.sense(np.ones(3))
    arm.clock.advance(0.21)
    assert not law.command(stand(np.zeros(3)), arm.clock.now, False).any()


def test_closing_and_idling_come_to_zero_within_the_acceleration_limits(arm):
    for end in ('closing', 'idle'):
        law = law_of(arm)
        for k in range(1, 30):
            arm.sense(np.zeros(3))
            law.command(
                Setpoint(np.zeros(3), LIMITS.acceleration * STEP * k * 0.5, False),
                arm.clock.now,
                False,
            )
        out = [law._last]
        while not law.settled:
            arm.sense(np.ones(3))
            out.append(
                law.command(stand(np.zeros(3)), arm.clock.now, True)
                if end == 'closing'
                else law.idle()
            )
        assert not out[-1].any() and len(out) > 5
        assert np.all(np.abs(np.diff(out, axis=0)) <= LIMITS.acceleration * STEP + 1e-12)
        assert law.idle() is None


def test_one_gain_for_all_or_one_per_joint():
    np.testing.assert_array_equal(per_joint('kp', (5.0,), 3), [5.0] * 3)
    np.testing.assert_array_equal(per_joint('kp', (1.0, 2.0, 3.0), 3), [1.0, 2.0, 3.0])
    for wrong in ((), (1.0, 2.0), (1.0, -1.0, 1.0), (1.0, float('nan'), 1.0)):
        with pytest.raises(UserError, match='kp'):
            per_joint('kp', wrong, 3)
