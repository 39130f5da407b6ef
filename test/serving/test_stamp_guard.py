# SPDX-License-Identifier: Apache-2.0
"""A stamp is believed when it is of now; joint states may set the clock, but not by mistake."""

import pytest

from dipod_ros.serving.stamp_guard import CONFIRM_S, LATE_S, StampGuard

S = 1_000_000_000
JOINTS = ('joint_position', 'joint_states')
GOAL = ('point', 'goal')


@pytest.fixture
def guard():
    """Return a guard whose robot's clock is 1000 s ahead of the steady one."""
    return StampGuard(0.5, 'joint_states', lambda steady_s: round((steady_s + 1000) * S))


@pytest.mark.parametrize('stream', [JOINTS, GOAL])
@pytest.mark.parametrize(
    ('off_s', 'word'), [(0.49, ''), (-0.49, ''), (0.6, 'ahead'), (-9, 'behind')]
)
def test_far_is_refused_and_near_is_not(guard, stream, off_s, word):
    reason = guard.judge(*stream, round((1050 + off_s) * S), 50.0)
    assert word in reason and bool(reason) == bool(word)


def test_without_a_stamp_or_a_clock_nothing_is_judged(guard):
    assert guard.judge(*GOAL, 0, 50.0) == ''
    assert StampGuard(0.5, 'joint_states', lambda s: None).judge(*GOAL, 7, 50.0) == ''
    assert StampGuard(0.0, 'joint_states', lambda s: 0).judge(*GOAL, 9 * S, 50.0) == ''


def test_joint_states_that_keep_to_a_new_clock_set_it_and_a_goal_does_not(guard):
    refused = []
    for k in range(10):
        t = 50.0 + 0.04 * k
        for stream in (JOINTS, GOAL):
            refused.append(bool(guard.judge(*stream, round(t * S), t)))
    joints, goal = refused[::2], refused[1::2]
    assert all(goal)
    assert joints == [0.04 * k < CONFIRM_S for k in range(10)]


def test_a_late_burst_sets_no_clock(guard):
    """The network stood still for a second; then everything comes at once, and goes on."""
    burst = [guard.judge(*JOINTS, round((1049 + 0.04 * k) * S), 50.0 + 1e-4 * k) for k in range(12)]
    assert all(burst)
    for k in range(20):
        assert guard.judge(*JOINTS, round((1050.04 + 0.04 * k) * S), 50.04 + 0.04 * k) == ''


def test_two_senders_with_two_clocks_are_told_apart(guard):
    for k in range(20):
        t = 50.0 + 0.04 * k
        assert guard.judge(*JOINTS, round((t + 1000) * S), t) == ''
        assert guard.judge(*JOINTS, round(t * S), t + 0.02) != ''


def test_joint_states_need_stamps_where_somebody_counts_by_them():
    for tolerance_s in (0.5, 0.0):
        guard = StampGuard(tolerance_s, 'joint_states', lambda steady_s: 0, lambda: True)
        assert 'no stamp any more' in guard.judge(*JOINTS, 0, 50.0)
        assert 'no stamp any more' in guard.judge('joint_velocity', 'joint_states', 0, 50.0)
        assert guard.judge(*GOAL, 0, 50.0) == ''


@pytest.mark.parametrize('stream', [JOINTS, GOAL])
def test_a_message_that_was_overtaken_is_not_the_newest(guard, stream):
    assert guard.judge(*stream, 1050 * S, 50.01) == ''
    assert 'not in the order' in guard.judge(*stream, 1050 * S - 40_000_000, 50.012)
    assert guard.judge(*stream, 1050 * S, 50.015) == ''  # again; its age is the buffer's to tell
    assert guard.judge(*stream, 0, 50.02) == ''
    assert 'not in the order' in guard.judge(*stream, 1050 * S - 1, 50.05)
    assert guard.judge(*stream, 1050 * S + 1, 50.05) == ''


@pytest.mark.parametrize('stream', [JOINTS, GOAL])
def test_a_clock_that_is_set_back_a_little_is_late_for_a_moment_alone(guard, stream):
    for k in range(10):
        assert guard.judge(*stream, round((1050 + 0.01 * k) * S), 50.0 + 0.01 * k) == ''
    refused = [
        bool(guard.judge(*stream, round((1049.8 + 0.01 * k) * S), 50.0 + 0.01 * k))
        for k in range(10, 30)
    ]
    assert refused[0] and not any(refused[round(LATE_S / 0.01) :])
