# SPDX-License-Identifier: Apache-2.0
"""The spline that controllers execute: knots for trajectories, setpoints for the rest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.interpolate import BSpline, CubicHermiteSpline

from dipod_ros.policy.limits import spline_knots, spline_setpoints

DT = 0.04


def control_points(rows):
    return hnp.arrays(np.float64, (rows, 2), elements=st.floats(-3, 3, width=32))


@settings(max_examples=50)
@given(st.integers(3, 10).flatmap(control_points), st.integers(1, 7))
def test_hermite_interpolation_of_the_knots_is_the_spline(points, substeps):
    """What joint_trajectory_controller does between points is what other controllers are sent."""
    setpoints = spline_setpoints(points[:2], points[2:], substeps)
    positions, velocities = spline_knots(points[0], points[1:], DT)
    times = np.arange(len(positions)) * DT
    fine = np.arange(1, len(setpoints) + 1) * DT / substeps
    hermite = CubicHermiteSpline(times, positions, velocities)
    np.testing.assert_allclose(setpoints, hermite(fine), atol=1e-12)


def test_the_setpoints_are_scipys_uniform_quadratic_b_spline():
    points = np.random.default_rng(0).normal(size=(9, 2))
    knots = np.arange(len(points) + 3, dtype=float)
    reference = BSpline(knots, points, 2)
    fine = 2 + np.arange(1, 7 * 5 + 1) / 5
    np.testing.assert_allclose(
        spline_setpoints(points[:2], points[2:], 5), reference(fine - 1e-15), atol=1e-9
    )


def test_a_chunk_at_a_time_gives_what_all_at_once_gives():
    points = np.random.default_rng(1).normal(size=(11, 2))
    whole = spline_setpoints(points[:2], points[2:], 4)
    parts = [spline_setpoints(points[i - 2 : i], points[i : i + 3], 4) for i in (2, 5, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    positions, velocities = spline_knots(points[1], points[2:], DT)
    pieces = [spline_knots(points[i - 1], points[i : i + 3], DT) for i in (2, 5, 8)]
    np.testing.assert_array_equal(np.concatenate([p for p, _ in pieces]), positions)
    np.testing.assert_array_equal(np.concatenate([v for _, v in pieces]), velocities)


def test_the_end_of_each_period_is_its_knot():
    points = np.random.default_rng(2).normal(size=(8, 2))
    setpoints = spline_setpoints(points[:2], points[2:], 6)
    positions, velocities = spline_knots(points[1], points[2:], DT)
    np.testing.assert_allclose(setpoints[5::6], positions, atol=1e-12)
    np.testing.assert_allclose(velocities, np.diff(points[1:], axis=0) / DT)


def test_an_arm_at_rest_has_constant_setpoints_and_no_velocity():
    still = np.full((6, 3), 0.4)
    np.testing.assert_allclose(spline_setpoints(still[:2], still[2:], 5), 0.4, atol=1e-15)
    _, velocities = spline_knots(still[0], still[1:], DT)
    assert not velocities.any()


@pytest.mark.parametrize('lead', [(4,), (2, 3)])
def test_leading_axes_are_independent(lead):
    points = np.random.default_rng(3).normal(size=(*lead, 7, 2))
    setpoints = spline_setpoints(points[..., :2, :], points[..., 2:, :], 3)
    positions, velocities = spline_knots(points[..., 1, :], points[..., 2:, :], DT)
    assert setpoints.shape == (*lead, 15, 2)
    for index in np.ndindex(lead):
        p = points[index]
        np.testing.assert_array_equal(setpoints[index], spline_setpoints(p[:2], p[2:], 3))
        one = spline_knots(p[1], p[2:], DT)
        np.testing.assert_array_equal(positions[index], one[0])
        np.testing.assert_array_equal(velocities[index], one[1])
