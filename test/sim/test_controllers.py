# SPDX-License-Identifier: Apache-2.0
"""The simulated controller follows trajectories as ros2_control does, and sees every violation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipod_ros.policy.limits import JointLimits, LimitFilter, spline_knots, spline_setpoints
from dipod_ros.sim.controllers import ArmController, CommandError

DT, SUBSTEPS = 0.04, 8
STEP = DT / SUBSTEPS
LIMITS = JointLimits(
    ('a', 'b'),
    np.array([-1.0, -1.0]),
    np.array([1.0, 1.0]),
    np.array([2.0, 1.0]),
    np.array([10.0, 5.0]),
)


@pytest.fixture
def arm():
    controller = ArmController(LIMITS, DT)
    controller.reset(np.array([0.1, -0.2]))
    return controller


def _run(controller, start_s, count):
    return controller.setpoints(start_s, STEP, count)


def _points(*rows):
    return np.array(rows, dtype=float)


def test_it_holds_where_it_was_reset(arm):
    assert np.array_equal(_run(arm, 0.0, 3), np.tile([0.1, -0.2], (3, 1)))


def test_knots_of_the_spline_are_followed_exactly(arm):
    """The trajectory that the server sends is executed as the spline that the env executes."""
    rng = np.random.default_rng(0)
    guard = LimitFilter(LIMITS, DT)
    guard.reset(arm.position)
    before = guard.position.copy()
    for chunk in range(4):
        start = guard.position.copy()
        points = np.array([guard.step(guard.position + rng.normal(size=2)) for _ in range(5)])
        p, v = spline_knots(start, points, DT)
        tail = np.zeros_like(p[-1:])
        now = chunk * 5 * DT
        # What follows the chunk (braking) must not matter, so anything may stand there.
        violations = arm.follow(
            now + DT * np.arange(1, 7), np.concatenate([p, p[-1:]]), np.concatenate([v, tail]), now
        )
        assert not [x for x in violations if 'acceleration' not in x]
        expected = spline_setpoints(np.stack([before, start]), points, SUBSTEPS)
        np.testing.assert_allclose(_run(arm, now, 5 * SUBSTEPS), expected, atol=1e-12)
        before = points[-2]


def test_positions_alone_are_joined_by_lines(arm):
    arm.follow(np.array([0.02, 0.04]), _points([0.2, -0.2], [0.2, -0.1]), None, 0.0)
    got = _run(arm, 0.0, 10)
    np.testing.assert_allclose(got[:4, 0], 0.1 + 0.1 * np.arange(1, 5) / 4, atol=1e-12)
    np.testing.assert_allclose(got[4:8, 1], -0.2 + 0.1 * np.arange(1, 5) / 4, atol=1e-12)
    assert np.array_equal(got[8:], _points([0.2, -0.1], [0.2, -0.1]))


def test_points_in_the_past_are_skipped(arm):
    arm.follow(np.array([0.96, 1.0, 1.04]), _points([9, 9], [9, 9], [0.14, -0.2]), None, now_s=1.0)
    np.testing.assert_allclose(_run(arm, 1.0, 8)[:, 0], 0.1 + 0.005 * np.arange(1, 9), atol=1e-12)


def test_a_trajectory_that_ended_is_refused_and_the_old_one_goes_on(arm):
    arm.follow(np.array([0.04]), _points([0.14, -0.2]), None, 0.0)
    _run(arm, 0.0, 4)
    with pytest.raises(CommandError, match='ends in the past: at 0.010 s, it is 0.020 s'):
        arm.follow(np.array([0.01]), _points([0.5, 0.5]), None, 0.02)
    assert _run(arm, 0.02, 4)[-1] == pytest.approx([0.14, -0.2])


def test_an_empty_trajectory_cancels(arm):
    arm.follow(np.array([0.04]), _points([0.14, -0.2]), None, 0.0)
    here = _run(arm, 0.0, 4)[-1]
    assert arm.follow(np.zeros(0), np.zeros((0, 2)), None, 0.02) == []
    assert np.array_equal(_run(arm, 0.02, 4), np.tile(here, (4, 1)))


def test_a_new_trajectory_continues_from_the_present_setpoint(arm):
    arm.follow(np.array([0.1]), _points([0.2, -0.2]), _points([0, 0]), 0.0)
    here = _run(arm, 0.0, 10)[-1]
    arm.follow(np.array([0.15]), _points([0.1, -0.2]), _points([0, 0]), 0.05)
    after = _run(arm, 0.05, 1)[0]
    # Continuous, and still moving on for a moment: position and velocity carry over.
    assert 0 < after[0] - here[0] < 0.02


def test_positions_are_reached_in_one_period(arm):
    assert arm.command(np.array([0.104, -0.2]), 0.0) == []
    got = _run(arm, 0.0, SUBSTEPS + 2)
    np.testing.assert_allclose(got[:SUBSTEPS, 0], 0.1 + 0.0005 * np.arange(1, 9), atol=1e-12)
    assert np.array_equal(got[-1], [0.104, -0.2])


def test_positions_are_judged_by_their_differences(arm):
    dt = DT
    assert arm.command(np.array([0.1 + 10 * dt**2, -0.2]), 0.0) == []  # exactly the limit
    _run(arm, 0.0, SUBSTEPS // 2)  # the next command comes early: that is no violation
    assert arm.command(np.array([0.1 + 3 * 10 * dt**2, -0.2]), dt / 2) == []
    (found,) = arm.command(np.array([0.1 + 7 * 10 * dt**2, -0.2]), dt)
    assert found == 'acceleration of a up to 2.000 x its limit'
    arm.reset(np.zeros(2))
    found = arm.command(np.array([0.0, 1.5]), 0.0)
    assert [f.split(' ')[0] for f in found] == ['position', 'velocity', 'acceleration']


@pytest.mark.parametrize(
    ('times', 'positions', 'velocities', 'what'),
    [
        ([10.0], [[1.1, 0.0]], [[0.0, 0.0]], 'position of a outside'),
        ([0.2], [[0.1, 0.3]], None, 'velocity of b'),
        ([0.3], [[0.1, 0.2]], [[0.0, 0.0]], 'velocity of b'),  # its peak is between the knots
        ([0.1], [[0.13, -0.2]], [[0.0, 0.0]], 'acceleration of a'),
        ([0.04], [[0.12, -0.2]], None, 'acceleration of a'),  # a line begins with a jump
    ],
)
def test_trajectories_are_judged_between_their_knots_too(arm, times, positions, velocities, what):
    found = arm.follow(
        np.array(times),
        np.array(positions),
        None if velocities is None else np.array(velocities),
        0.0,
    )
    assert any(what in f for f in found), found


numbers = st.floats(-1.0, 1.0, allow_nan=False).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(
    p=st.lists(numbers, min_size=3, max_size=3),
    v=st.lists(numbers, min_size=3, max_size=3),
    h=st.floats(0.05, 2.0),
)
def test_no_sample_of_a_cubic_is_worse_than_what_was_judged(p, v, h):
    """Velocity and acceleration of any setpoint stay within the extremes that were found."""
    limits = JointLimits(('a',), *(np.array([x]) for x in (-1e3, 1e3, 1e-3, 1e-3)))
    controller = ArmController(limits, DT)
    controller.reset(np.array([p[0]]))
    found = controller.follow(
        h * np.arange(1, 4), np.array(p)[:, None], np.array(v)[:, None], now_s=0.0
    )
    peaks = {f.split(' ')[0]: float(f.split(' ')[5]) * 1e-3 for f in found}
    count = 600
    path = controller.setpoints(0.0, 3 * h / count, count)[:, 0]
    velocity = np.diff(path, prepend=p[0]) / (3 * h / count)
    acceleration = np.diff(velocity) / (3 * h / count)
    # Differences across a knot average two accelerations; both are among those judged.
    assert np.abs(velocity).max() <= peaks.get('velocity', 1e-3) + 2e-6
    assert np.abs(acceleration).max() <= peaks.get('acceleration', 1e-3) + 2e-5 / h**2


def test_asking_for_violations_commands_nothing(arm):
    assert arm.violations(np.array([0.9, 0.9])) and not arm.violations(np.array([0.101, -0.2]))
    assert np.array_equal(_run(arm, 0.0, 3), np.tile([0.1, -0.2], (3, 1)))
    assert arm.command(np.array([0.101, -0.2]), 0.0) == []
