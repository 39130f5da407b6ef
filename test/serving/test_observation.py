# SPDX-License-Identifier: Apache-2.0
"""Observations are made of what was really sensed, in the policy's order, or not at all."""

import numpy as np
import pytest
from checkpoints import JOINTS, make_limits, make_spec

from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout


@pytest.fixture
def buffer(clock):
    return ObservationBuffer(clock)


@pytest.fixture
def layout():
    return ObservationLayout(make_spec(), JOINTS)


def fill(buffer, stamp_ns=1, position=(1.0, 2.0, 3.0), velocity=(0.1, 0.2, 0.3), goal=(7, 8, 9)):
    buffer.put('joint_position', 'joint_states', np.array(position), stamp_ns)
    buffer.put('joint_velocity', 'joint_states', np.array(velocity), stamp_ns)
    buffer.put('point', 'goal', np.array(goal, dtype=float), stamp_ns)


def test_streams_stand_in_the_order_of_the_spec(buffer, layout):
    fill(buffer)
    vector = layout.assemble(buffer, np.array([4.0, 5.0, 6.0]))
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, [1, 2, 3, 0.1, 0.2, 0.3, 4, 5, 6, 7, 8, 9], rtol=1e-6)


def test_a_policy_with_another_joint_order_sees_its_own_order(buffer):
    spec = make_spec(joints=JOINTS[::-1])
    layout = ObservationLayout(spec, JOINTS)
    fill(buffer)
    vector = layout.assemble(buffer, np.array([4.0, 5.0, 6.0]))
    np.testing.assert_allclose(vector[:9], [3, 2, 1, 0.3, 0.2, 0.1, 6, 5, 4], rtol=1e-6)
    chunk = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(layout.to_policy(layout.to_robot(chunk)), chunk)
    np.testing.assert_array_equal(layout.to_robot(chunk)[:, 0], chunk[:, 2])


def test_nothing_is_filled_in_for_a_stream_that_was_never_received(buffer, layout):
    buffer.put('joint_position', 'joint_states', np.zeros(3), 1)
    kinds = {p.stream: p.kind for p in layout.problems(buffer)}
    assert kinds == {'velocity': 'missing', 'goal': 'missing'}
    with pytest.raises(KeyError, match='velocity'):
        layout.assemble(buffer, np.zeros(3))


def test_age_is_told_per_stream_on_the_steady_clock(buffer, layout, clock):
    fill(buffer)
    clock.advance(0.15)
    buffer.put('point', 'goal', np.zeros(3), 2)
    assert layout.problems(buffer) == []
    clock.advance(0.1)
    assert buffer.age_s('point', 'goal') == pytest.approx(0.1)
    stale = layout.problems(buffer)
    assert {p.stream for p in stale} == {'position', 'velocity'}
    assert all(p.kind == 'stale' and 'joint_states' in p.text for p in stale)


def test_a_lasting_problem_keeps_its_text(buffer, layout, clock):
    fill(buffer)
    clock.advance(1.0)
    before = [p.text for p in layout.problems(buffer)]
    clock.advance(1.0)
    assert [p.text for p in layout.problems(buffer)] == before


def test_a_repeated_stamp_does_not_make_an_old_sample_young(buffer, clock):
    buffer.put('point', 'goal', np.zeros(3), 5)
    clock.advance(0.3)
    buffer.put('point', 'goal', np.zeros(3), 5)
    assert buffer.age_s('point', 'goal') == pytest.approx(0.3)
    buffer.put('point', 'goal', np.zeros(3), 6)
    assert buffer.age_s('point', 'goal') == 0.0


def test_samples_without_a_stamp_are_as_old_as_their_receipt(buffer, clock):
    buffer.put('vector', 'extra', np.zeros(2), 0)
    clock.advance(0.3)
    buffer.put('vector', 'extra', np.zeros(2), 0)
    assert buffer.age_s('vector', 'extra') == 0.0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_refused_and_named(buffer, layout, clock, bad):
    fill(buffer)
    clock.advance(0.3)
    assert not buffer.put('point', 'goal', np.array([0.0, bad, 0.0]), 2)
    np.testing.assert_array_equal(buffer.sample('point', 'goal').values, [7, 8, 9])
    problem = next(p for p in layout.problems(buffer) if p.stream == 'goal')
    assert 'not finite' in problem.text
    assert buffer.rejected == 1


def test_a_sample_of_another_size_is_a_problem(buffer):
    from dipod_ros.policy.spec import Stream

    spec = make_spec(streams=(Stream('extra', 'vector', 4, 'extra'),))
    layout = ObservationLayout(spec, JOINTS)
    buffer.put('vector', 'extra', np.zeros(3), 0)
    (problem,) = layout.problems(buffer)
    assert '3 numbers' in problem.text and 'needs 4' in problem.text
    assert not layout.complete_at(buffer, 0)


def test_complete_means_every_stamped_stream_of_the_same_instant(buffer, layout):
    fill(buffer, stamp_ns=40_000_000)
    assert layout.complete_at(buffer, 40_000_000)
    assert not layout.complete_at(buffer, 80_000_000)
    buffer.put('point', 'goal', np.zeros(3), 80_000_000)
    assert not layout.complete_at(buffer, 40_000_000)


@pytest.mark.parametrize('odd', [1e3, -1e3, 1.7e308])
def test_a_position_that_no_joint_has_is_refused_by_name(clock, odd):
    limits = make_limits()
    buffer = ObservationBuffer(clock, limits)
    assert buffer.put('joint_position', 'joint_states', np.zeros(3), 1)
    assert not buffer.put('joint_position', 'joint_states', np.array([0.0, odd, 0.0]), 2)
    assert buffer.sample('joint_position', 'joint_states').stamp_ns == 1
    assert f'joint {limits.joints[1]} that no joint has' in buffer.rejection(
        'joint_position', 'joint_states'
    )
    # One that is just outside is an arm to be told about; other numbers are anything.
    assert buffer.put('joint_position', 'joint_states', limits.upper + 6.0, 3)
    assert buffer.put('vector', 'goal', np.array([odd]), 0)
    assert ObservationBuffer(clock).put('joint_position', 'joint_states', np.full(3, odd), 1)
