# SPDX-License-Identifier: Apache-2.0
"""Chunks continue each other in position and velocity, aligned by the ticks that went by."""

import numpy as np
import pytest
from checkpoints import make_limits
from hypothesis import given
from hypothesis import strategies as st

from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.timeline import ChunkTimeline

DT = 0.04
LIMITS = make_limits()
START = np.array([0.1, -0.1, 0.5])
SLOW = np.full((6, 3), 0.002)  # reachable from rest in one period


@pytest.fixture
def timeline():
    line = ChunkTimeline(SafetyFilter(LIMITS, DT))
    line.reset(START, tick=0)
    return line


def schedule(line, chunk, observed, tick):
    """Schedule a chunk from the command of the tick that was observed."""
    return line.schedule(chunk, line.command(observed), observed, tick)


def test_before_the_first_reset_nothing_can_be_planned():
    with pytest.raises(RuntimeError, match='reset'):
        ChunkTimeline(SafetyFilter(LIMITS, DT)).command(0)


def test_the_past_of_a_plan_is_remembered_for_late_observations(timeline):
    old = schedule(timeline, SLOW, 0, 0)
    new = schedule(timeline, SLOW, 4, 4)
    assert [tuple(new.point(t)) for t in range(5)] == [tuple(old.point(t)) for t in range(5)]


def test_increments_are_summed_from_the_command(timeline):
    plan = schedule(timeline, SLOW, 0, 0)
    expected = START + np.cumsum(SLOW, axis=0)
    np.testing.assert_allclose([plan.point(k) for k in range(1, 7)], expected)
    assert plan.chunk_end == 6


def test_a_start_outside_the_limits_is_clipped(timeline):
    timeline.reset(np.full(3, 99.0), tick=3)
    np.testing.assert_array_equal(timeline.command(3), LIMITS.upper)


def test_the_step_that_is_due_follows_the_ticks_and_ends_with_the_chunk(timeline):
    assert timeline.index(0) is None
    schedule(timeline, SLOW, 0, 0)
    assert [timeline.index(t) for t in range(8)] == [0, 1, 2, 3, 4, 5, None, None]
    assert [timeline.remaining(t) for t in (0, 4, 6, 9)] == [6, 2, 0, 0]
    assert timeline.consumed(4) == 4


def test_targets_whose_time_has_passed_are_left_out(timeline):
    schedule(timeline, SLOW, 0, 0)
    chunk = SLOW * 0.5
    # Observed at tick 2, there at tick 4: steps 0 and 1 are history, whatever anybody estimated.
    plan = schedule(timeline, chunk, 2, 4)
    base = START + 2 * SLOW[0]
    np.testing.assert_allclose(plan.point(5), base + 3 * chunk[0], atol=1e-12)
    assert timeline.index(4) == 2
    assert plan.chunk_end == 8


def test_a_chunk_that_is_all_history_is_refused_and_the_plan_stays(timeline):
    before = schedule(timeline, SLOW, 0, 0)
    assert schedule(timeline, SLOW, 0, 6) is None
    assert timeline.plan is before


def test_without_a_successor_the_plan_brakes_and_holds(timeline):
    fast = np.full((6, 3), 0.05)
    plan = schedule(timeline, fast, 0, 0)
    end = plan.point(10_000)
    np.testing.assert_array_equal(plan.point(plan.start + len(plan.motion.points)), end)
    positions, velocities = plan.knots(DT)
    np.testing.assert_array_equal(velocities[-1], 0.0)
    np.testing.assert_allclose(positions[-1], end)


def test_executed_are_the_points_of_this_chunk_that_were_commanded(timeline):
    plan = schedule(timeline, SLOW, 0, 2)
    executed = plan.executed(tick=5, horizon=6)
    assert np.isnan(executed[:2]).all() and np.isnan(executed[5:]).all()
    np.testing.assert_array_equal(executed[2:5], plan.motion.points[:3])
    assert np.isnan(timeline.brake(5).executed(9, 6)).all()


def test_a_chunk_that_is_early_waits_behind_what_is_committed(timeline):
    old = schedule(timeline, SLOW, 0, 0)
    plan = timeline.schedule(SLOW * 0.5, timeline.command(5), 5, 3)
    assert plan.chunk_start == 5 and plan.chunk_end == 11
    for tick in range(6):
        np.testing.assert_array_equal(plan.point(tick), old.point(tick))
    np.testing.assert_allclose(plan.point(6), old.point(5) + SLOW[0] * 0.5, atol=1e-12)
    assert [timeline.index(t) for t in (3, 5, 10, 11)] == [-2, 0, 5, None]
    # Both chunks know which points were theirs.
    np.testing.assert_array_equal(old.executed(5, 6)[:5], [old.point(t) for t in range(1, 6)])
    executed = plan.executed(tick=7, horizon=6)
    np.testing.assert_array_equal(executed[:2], [plan.point(6), plan.point(7)])
    assert np.isnan(executed[2:]).all()
    assert np.isnan(plan.executed(tick=4, horizon=6)).all()


def test_an_early_chunk_behind_the_end_of_the_plan_begins_at_its_rest(timeline):
    fast = np.full((6, 3), 0.03)
    old = schedule(timeline, fast, 0, 0)
    plan = timeline.schedule(fast, timeline.command(12), 12, 4)
    for tick in range(13):
        np.testing.assert_array_equal(plan.point(tick), old.point(tick))
    assert plan.chunk_end == 18


def test_a_broken_chunk_brakes_at_once_also_when_it_is_early(timeline):
    schedule(timeline, np.full((6, 3), 0.03), 0, 0)
    plan = timeline.schedule(SLOW * np.nan, timeline.command(5), 5, 2)
    assert plan.start == 2 and plan.chunk_start is None


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(-4, 3), st.floats(-0.3, 0.3), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_seams_keep_position_velocity_and_acceleration(changes):
    """Replan, brake or let go on at arbitrary ticks; the played points are one legal path."""
    line = ChunkTimeline(SafetyFilter(LIMITS, DT))
    line.reset(START, 0)
    tick, path = 0, [START, START]
    for wait, late, increment, brake in changes:
        asked = tick - min(late, 0)  # a chunk may come before its time
        for _ in range(late):
            tick += 1
            path.append(line.command(tick))
        if brake:
            line.brake(tick)
        else:
            schedule(line, np.full((6, 3), increment), asked, tick)
        for _ in range(wait):
            tick += 1
            path.append(line.command(tick))
    path = np.array(path)
    speed = np.diff(path, axis=0) / DT
    assert np.all(path >= LIMITS.lower) and np.all(path <= LIMITS.upper)
    assert np.all(np.abs(speed) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= LIMITS.acceleration * DT + 1e-9)
