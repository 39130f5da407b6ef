# SPDX-License-Identifier: Apache-2.0
"""A policy that took over is watched against the one before: same decisions, same alarm."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import HORIZON

from dipod_ros.errors import UserError
from dipod_ros.serving.agent import Sampled
from dipod_ros.serving.alarm import AlarmConfig, SwapAlarm
from dipod_ros.serving.loop import Decided
from dipod_ros.serving.observation import Snapshot
from dipod_ros.serving.safety import Motion
from dipod_ros.serving.timeline import Plan

OLD, NEW = object(), object()
CHUNK = np.full((HORIZON, 3), 0.01, np.float32)


def decision(policy, clamp=0.0, fault='', chunk=CHUNK, late=False, altered=False):
    sampled = Sampled(policy, 0, np.zeros(3), np.zeros(3), chunk, fault)
    plan = Plan(0, np.zeros((8, 3)), Motion(np.zeros((HORIZON, 3)), HORIZON, clamp, altered), 0)
    return Decided(sampled, None if late else plan, Snapshot({}))


def feed(alarm, policy, count, **what):
    return [alarm.observe(decision(policy, **what)) for _ in range(count)]


@pytest.fixture
def alarm():
    """Return an alarm that has seen the old policy clamp one decision in five."""
    alarm = SwapAlarm(AlarmConfig(window=10, clamp_rad=0.02, clamp_share=0.3))
    for k in range(20):
        assert alarm.observe(decision(OLD, clamp=0.1 * (k % 5 == 0))) == ''
    return alarm


def test_the_first_policy_is_watched_by_nobody():
    alarm = SwapAlarm(AlarmConfig(window=10))
    assert feed(alarm, OLD, 20, clamp=1.0) == [''] * 20
    assert alarm.observe(decision(OLD, fault='out of memory')) == ''


def test_clamping_that_is_worse_than_before_raises_it_as_soon_as_that_is_certain(alarm):
    # (0.2 + 0.3) of 10 are allowed: the sixth is one too many.
    said = feed(alarm, NEW, 6, clamp=0.021)
    assert said[:5] == [''] * 5
    assert '6 of 6 decisions' in said[5] and '20% of those before' in said[5]
    assert feed(alarm, NEW, 20, clamp=1.0) == [''] * 20  # once


def test_clamping_as_before_or_too_small_to_count_raises_nothing(alarm):
    assert feed(alarm, NEW, 5, clamp=0.1) + feed(alarm, NEW, 5, clamp=0.02) == [''] * 10
    assert alarm.watching == 0
    assert feed(alarm, NEW, 20, clamp=1.0) == [''] * 20  # the window is over


@pytest.mark.parametrize(
    ('what', 'says'),
    [
        ({'fault': 'RuntimeError: oops', 'chunk': np.full_like(CHUNK, np.nan)}, 'oops'),
        ({'chunk': np.full_like(CHUNK, np.inf)}, 'not finite'),
    ],
)
def test_a_fault_or_numbers_that_are_not_finite_raise_it_at_once(alarm, what, says):
    assert feed(alarm, NEW, 3) == [''] * 3
    assert says in alarm.observe(decision(NEW, **what))


def test_what_was_slowed_down_on_purpose_is_not_the_policys_fault(alarm):
    assert feed(alarm, NEW, 10, clamp=1.0, altered=True) == [''] * 10


def test_a_chunk_that_was_cut_short_counts_as_clamped(alarm):
    cut = decision(NEW)
    cut = Decided(cut.sampled, replace(cut.plan, motion=Motion(np.zeros((4, 3)), 2, 0.0)), cut.seen)
    assert [alarm.observe(cut) for _ in range(5)] == [''] * 5
    assert 'cut short' in alarm.observe(cut)


def test_decisions_that_come_too_late_count_as_clamped(alarm):
    assert feed(alarm, NEW, 5, late=True) == [''] * 5
    assert 'too late' in alarm.observe(decision(NEW, late=True))


def test_each_swap_is_watched_against_the_policy_before_it(alarm):
    assert feed(alarm, NEW, 4, clamp=0.1) == [''] * 4
    third = object()
    assert feed(alarm, third, 10, clamp=0.1) == [''] * 10  # no worse than NEW, which always clamps
    assert alarm.share_before == 1.0


def test_a_window_of_none_watches_nothing():
    alarm = SwapAlarm(AlarmConfig(window=0))
    feed(alarm, OLD, 3)
    assert feed(alarm, NEW, 3, fault='oops') == [''] * 3


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        ({'window': -1}, 'alarm_window'),
        ({'clamp_rad': float('nan')}, 'alarm_clamp_rad'),
        ({'clamp_share': 1.5}, 'alarm_clamp_share'),
    ],
)
def test_a_wrong_setting_is_named(wrong, says):
    with pytest.raises(UserError, match=says):
        AlarmConfig(**wrong)
