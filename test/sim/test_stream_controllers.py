# SPDX-License-Identifier: Apache-2.0
"""Controllers of command streams judge what they get, and stop when nothing comes any more."""

import numpy as np
import pytest

from dipod_ros.policy.limits import JointLimits
from dipod_ros.sim.controllers import CommandError
from dipod_ros.sim.stream_controllers import EffortStream, PositionStream, VelocityStream

LIMITS = JointLimits(('a', 'b'), [-1.0, -1.0], [1.0, 1.0], [2.0, 2.0], [10.0, 5.0])
STEP = 0.005


def stream_to(controller, commands, now_s=0.0):
    """Send commands one step apart; return the violations and the references that came of them."""
    found, references = [], []
    for values in commands:
        found += controller.command(np.asarray(values, dtype=float), now_s)
        references.append(controller.setpoints(now_s, STEP / 2, 2)[-1])
        now_s += STEP
    return found, np.array(references)


def test_positions_begin_where_the_arm_is_within_what_a_sensor_may_be_off():
    arm = PositionStream(LIMITS, STEP)
    arm.reset(np.array([0.2, 0.3]))
    ramp = 0.208 + 0.5 * 5.0 * (STEP * np.arange(20)) ** 2
    found, references = stream_to(arm, np.stack([ramp, ramp + 0.1], axis=1))
    assert found == []
    np.testing.assert_allclose(references[-1], [ramp[-1], ramp[-1] + 0.1])
    assert 'acceleration' in arm.command(np.array([ramp[-1], ramp[-1] + 0.11]), 1.0)[0]


def test_positions_that_begin_elsewhere_are_a_violation():
    arm = PositionStream(LIMITS, STEP)
    arm.reset(np.array([0.2, 0.3]))
    assert 'velocity' in arm.command(np.array([0.2, 0.4]), 0.0)[0]
    arm.reset(np.array([0.999, 0.3]))
    assert 'position' in arm.command(np.array([1.001, 0.3]), 0.0)[0]


def test_velocities_are_judged_by_value_and_change():
    drive = VelocityStream(LIMITS, STEP, 0.1)
    found, references = stream_to(drive, [[0.05, 0.025], [0.1, 0.05], [0.05, 0.05]])
    assert found == []
    np.testing.assert_allclose(references[-1], [0.05, 0.05])
    assert drive.command(np.array([0.05, 0.1]), 0.0) == [
        'acceleration of b up to 2.000 x its limit'
    ]
    assert any('velocity of a' in text for text in drive.command(np.array([2.1, 0.1]), 0.0))


def test_velocities_time_out_and_are_braked_within_the_acceleration_limits():
    drive = VelocityStream(LIMITS, STEP, 0.1)
    stream_to(drive, [[0.05, 0.025], [0.1, -0.0]])
    kept = drive.setpoints(0.1, STEP, 1)
    np.testing.assert_allclose(kept[-1], [0.1, 0.0])
    seen = [drive.setpoints(0.12 + STEP * k, STEP, 1)[-1] for k in range(4)]
    np.testing.assert_allclose(np.array(seen)[:, 0], [0.05, 0.0, 0.0, 0.0])
    assert drive.timeouts == 1
    # It takes commands again: from rest, or from where the stream was.
    assert drive.violations(np.array([0.05, 0.0])) == []
    assert drive.violations(np.array([0.15, 0.0])) == []
    assert drive.violations(np.array([-0.1, 0.0])) != []


def test_a_reset_of_the_world_does_not_excuse_a_jump_of_the_velocity():
    drive = VelocityStream(LIMITS, STEP, 0.1)
    stream_to(drive, [[0.05, 0.0], [0.1, 0.0], [0.15, 0.0]])
    drive.reset(np.zeros(2))
    assert drive.command(np.array([0.1, 0.0]), 0.02) == []
    assert drive.command(np.array([0.0, 0.0]), 0.02) != []


def test_torques_are_judged_and_brake_when_they_time_out():
    drive = EffortStream(LIMITS, STEP, 0.1, np.array([10.0, 5.0]))
    assert stream_to(drive, [[10.0, -5.0]])[0] == []
    assert 'torque of b' in drive.command(np.array([0.0, 5.1]), 0.0)[0]
    assert drive.measured(np.zeros(2), np.array([1.0, -4.0])) == []
    np.testing.assert_allclose(drive.setpoints(0.11, STEP, 2), [[-5.0, 5.0]] * 2)
    assert drive.timeouts == 1


def test_an_arm_outside_its_limits_is_a_violation_whatever_was_commanded():
    drive = VelocityStream(LIMITS, STEP, 0.1)
    assert drive.measured(np.array([1.004, 0.0]), np.zeros(2)) == []
    assert 'of a outside' in drive.measured(np.array([1.006, 0.0]), np.zeros(2))[0]


@pytest.mark.parametrize(
    'drive',
    [VelocityStream(LIMITS, STEP, 0.1), EffortStream(LIMITS, STEP, 0.1, np.ones(2))],
)
def test_no_trajectories_here(drive):
    with pytest.raises(CommandError, match='takes no trajectory'):
        drive.follow(np.ones(1), np.zeros((1, 2)), None, 0.0)
