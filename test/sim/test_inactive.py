# SPDX-License-Identifier: Apache-2.0
"""A controller that is inactive for a while stops, and begins again where the arm is."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits
from dipod_ros.sim.controllers import ArmController
from dipod_ros.sim.inactive import Activity
from dipod_ros.sim.stream_controllers import EffortStream, PositionStream, VelocityStream

DT = 0.04
LIMITS = JointLimits(
    ('a', 'b'), np.full(2, -2.0), np.full(2, 2.0), np.full(2, 1.0), np.full(2, 5.0)
)
ELSEWHERE = np.array([0.3, -0.2])


def spoken(times_s, until=8):
    activity = Activity(times_s)
    return [(activity.changes(k * DT), activity.inactive) for k in range(until)]


def test_it_is_inactive_from_the_first_time_to_the_second():
    assert spoken([3 * DT, 5 * DT]) == [
        *3 * [(False, False)],
        (True, True),
        (False, True),
        (True, False),
        *2 * [(False, False)],
    ]
    assert spoken([]) == 8 * [(False, False)]


def test_a_span_between_two_steps_is_not_missed():
    assert spoken([2.1 * DT, 2.9 * DT])[3] == (True, False)


@pytest.mark.parametrize(
    'times_s', [[1.0], [2.0, 1.0], [1.0, 1.0], [-1.0, 2.0], [1.0, np.inf], [np.nan, 1.0]]
)
def test_times_that_make_no_spans_are_refused(times_s):
    with pytest.raises(UserError, match='controller_inactive_s'):
        Activity(times_s)


@pytest.mark.parametrize('kind', [ArmController, PositionStream])
def test_a_controller_of_positions_begins_again_where_the_arm_is(kind):
    controller = kind(LIMITS, DT)
    controller.follow(np.array([1.0, 2.0]), np.array([[0.5, 0.5], [0.9, 0.9]]), None, 0.0)
    controller.setpoints(0.0, DT, 10)
    controller.halt(ELSEWHERE)
    np.testing.assert_array_equal(controller.setpoints(0.4, DT, 3), np.tile(ELSEWHERE, (3, 1)))
    # What went on from where the arm would be by now is a jump, what begins at the arm is not.
    assert controller.violations(np.array([0.45, 0.45]))
    assert controller.command(ELSEWHERE, 0.52) == []


def test_a_velocity_drive_brakes_and_judges_what_comes_next_by_that():
    controller = VelocityStream(LIMITS, DT, timeout_s=10.0)
    for k in range(1, 5):
        assert controller.command(np.full(2, 0.2 * k), k * DT) == []
    controller.halt(ELSEWHERE)
    path = np.concatenate([controller.setpoints(k * DT, DT, 1) for k in range(5, 12)])
    assert np.all(np.abs(np.diff(path, axis=0)) <= LIMITS.acceleration * DT + 1e-9)
    assert not path[-1].any()
    controller.halt(ELSEWHERE)
    assert controller.violations(np.full(2, 0.8))
    assert controller.command(np.full(2, 0.2), 1.0) == []


def test_a_torque_is_no_longer_in_force():
    controller = EffortStream(LIMITS, DT, timeout_s=10.0, effort=np.full(2, 5.0))
    controller.command(np.full(2, 3.0), 0.0)
    controller.halt(ELSEWHERE)
    np.testing.assert_array_equal(controller.setpoints(DT, DT, 1), np.zeros((1, 2)))
    assert controller.timeouts == 0  # it was taken away, it did not time out
