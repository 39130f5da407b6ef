# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked for, what leaves the safety filter is within limits and ends at rest."""

import numpy as np
import pytest
from checkpoints import make_limits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worlds import assert_legal

from dipod_ros.serving import safety as s

DT = 0.04
LIMITS = make_limits()

targets = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.just(3)),
    elements=st.one_of(
        st.floats(-3.5, 3.5),  # around the limits: the usual case
        st.floats(allow_nan=True, allow_infinity=True),
        st.sampled_from([0.0, 1e300, -1e300, np.nan, np.inf]),
    ),
)


@given(st.lists(targets, min_size=1, max_size=5), st.integers(0, 12))
def test_chunk_after_chunk_stays_within_limits_and_could_stop_at_any_time(chunks, cut):
    """Each chunk is cut off somewhere by the next, as when observations come early."""
    guard = s.SafetyFilter(LIMITS, DT)
    position, velocity = np.array([0.3, -0.2, 1.0]), np.zeros(3)
    for chunk in chunks:
        motion = guard.follow(position, velocity, chunk)
        assert_legal(LIMITS, position, velocity, motion.points)
        path = np.concatenate([position[None], motion.points])
        if len(path) > 1:
            np.testing.assert_allclose(path[-1], path[-2], atol=1e-8)  # at rest
        if cut:
            n = min(cut, len(motion.points))
            position, velocity = path[n], (path[n] - path[n - 1]) / DT
        stop = guard.brake(position, velocity)
        assert_legal(LIMITS, position, velocity, stop.points)


@given(targets)
def test_a_chunk_with_any_number_that_is_not_finite_is_a_stop(chunk):
    guard = s.SafetyFilter(LIMITS, DT)
    velocity = np.array([0.5, -0.5, 1.0])
    motion = guard.follow(np.zeros(3), velocity, chunk)
    if np.isfinite(chunk).all():
        assert motion.horizon == len(chunk)
        assert guard.counts[s.NOT_FINITE] == 0
    else:
        assert motion.horizon == 0
        assert guard.counts[s.NOT_FINITE] == 1
        stop = guard.brake(np.zeros(3), velocity)
        np.testing.assert_array_equal(motion.points, stop.points)


def test_braking_is_as_hard_as_allowed_and_straight():
    guard = s.SafetyFilter(LIMITS, DT)
    velocity = np.array([1.5, 0.0, -2.0])
    points = guard.brake(np.zeros(3), velocity).points
    speed = np.diff(np.concatenate([np.zeros((1, 3)), points]), axis=0) / DT
    assert len(points) == np.ceil(np.max(np.abs(velocity) / (LIMITS.acceleration * DT)))
    np.testing.assert_allclose(speed[0], velocity - np.sign(velocity) * LIMITS.acceleration * DT)
    assert np.all(np.diff(np.abs(speed), axis=0) <= 0)
    np.testing.assert_allclose(speed[-1], 0.0, atol=1e-12)


def test_at_rest_a_stop_is_one_point_that_holds():
    motion = s.SafetyFilter(LIMITS, DT).brake(np.array([0.1, 0.2, 0.3]), np.zeros(3))
    np.testing.assert_array_equal(motion.points, [[0.1, 0.2, 0.3]])


def test_a_reachable_target_is_reached_and_not_counted():
    guard = s.SafetyFilter(LIMITS, DT)
    chunk = np.cumsum(np.full((5, 3), 0.001), axis=0)
    motion = guard.follow(np.zeros(3), np.zeros(3), chunk)
    np.testing.assert_allclose(motion.points[:5], chunk, atol=1e-12)
    assert motion.clamp_rad < 1e-9
    assert guard.counts[s.LIMIT] == 0


def test_a_target_out_of_reach_is_clamped_and_counted_once_per_chunk():
    guard = s.SafetyFilter(LIMITS, DT)
    motion = guard.follow(np.zeros(3), np.zeros(3), np.full((5, 3), 9.0))
    assert motion.clamp_rad > 5.0
    assert guard.counts[s.LIMIT] == 1


def test_the_estop_latches_until_it_is_reset():
    guard = s.SafetyFilter(LIMITS, DT)
    assert guard.estop.latch('button')
    for _ in range(2):
        assert not guard.estop.latch('topic')
    assert guard.estop.reason == 'button, topic'  # whoever releases it knows of both
    velocity = np.array([0.5, 0.5, 0.5])
    motion = guard.follow(np.zeros(3), velocity, np.zeros((4, 3)))
    assert motion.horizon == 0
    assert_legal(LIMITS, np.zeros(3), velocity, motion.points)
    assert guard.estop.reset()
    assert not guard.estop.reset()
    assert guard.follow(np.zeros(3), np.zeros(3), np.zeros((4, 3))).horizon == 4


def test_a_stop_that_is_taken_back_leaves_those_of_others():
    estop = s.EStop()
    assert not estop.release('program')
    for who in ('program', 'person', 'program'):
        estop.latch(who)
    assert estop.release('program')
    assert estop.latched and estop.reason == 'person'
    assert not estop.release('program') and estop.latched
    assert estop.release('person') and not estop.latched


def test_the_watchdog_measures_the_present_piece_of_work_only(clock):
    dog = s.Watchdog(0.5, clock)
    clock.advance(9.0)
    assert not dog.expired
    dog.begin()
    clock.advance(0.5)
    assert not dog.expired
    clock.advance(0.01)
    assert dog.expired
    dog.end()
    assert not dog.expired


@pytest.mark.parametrize('name', s.INTERVENTIONS)
def test_every_intervention_is_reported_from_the_start(name):
    assert s.SafetyFilter(LIMITS, DT).counts[name] == 0
