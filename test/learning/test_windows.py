# SPDX-License-Identifier: Apache-2.0
"""From a recorded motion to chunks: what is cut, kept, clipped and refused."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.windows import Refused, WindowConfig, cut, resample
from dipod_ros.policy.limits import JointLimits, LimitFilter, spline_knots

DT, HORIZON = 0.04, 5
LIMITS = JointLimits.from_params(
    ('a', 'b'),
    {
        'position_lower': [-2.0, -2.0],
        'position_upper': [2.0, 2.0],
        'velocity': [1.0, 2.0],
        'acceleration': [5.0, 10.0],
    },
)


def reach(seconds=2.0, far=(0.5, -0.8), still_s=0.4):
    """Return control points of a smooth motion with standing still at both ends."""
    t = np.arange(round(seconds / DT) + 1) / round(seconds / DT)
    s = 10 * t**3 - 15 * t**4 + 6 * t**5  # minimum jerk
    still = round(still_s / DT)
    return np.pad(s, still, mode='edge')[:, None] * np.asarray(far)


def make(points, horizon=HORIZON, **config):
    return cut(points, horizon, LIMITS, DT, WindowConfig(**config))


def test_every_chunk_repeats_what_was_done():
    points = reach()
    windows = make(points)
    for tick, command, chunk in zip(windows.ticks, windows.command, windows.actions, strict=True):
        np.testing.assert_allclose(command, points[tick], atol=1e-12)
        after = np.minimum(tick + 1 + np.arange(HORIZON), len(points) - 1)
        # Standing still is cut: what is beyond its end moves by less than the threshold.
        np.testing.assert_allclose(command + np.cumsum(chunk, 0), points[after], atol=2e-3)
    assert windows.clip_rad < 1e-12 and windows.clipped_share == 0.0
    assert windows.over == ''


def test_standing_still_is_cut_at_both_ends():
    still = round(0.4 / DT)
    points = reach()
    ticks = make(points).ticks
    assert still - 3 <= ticks[0] <= still + 5
    assert len(points) - 1 - still - 5 <= ticks[-1] <= len(points) - 1 - still + 3
    assert np.abs(make(points).actions[0]).max() > 0
    everything = make(points, idle_rad_s=0.0).ticks
    np.testing.assert_array_equal(everything, np.arange(len(points) - HORIZON))


def test_a_motion_that_ends_at_rest_ends_in_standing_still():
    windows = make(reach())
    assert np.abs(windows.actions[-1]).max() < 1e-9
    assert np.abs(windows.actions[-HORIZON - 5]).max() > 1e-4


def test_a_recording_stopped_in_motion_has_whole_chunks_alone():
    points = reach()[:30]
    windows = make(points)
    assert windows.ticks[-1] == len(points) - 1 - HORIZON
    last = windows.command[-1] + windows.actions[-1].sum(axis=0)
    np.testing.assert_allclose(last, points[-1])


def test_decisions_stand_at_multiples_of_the_stride():
    windows = make(reach(), stride=4)
    assert set(windows.ticks % 4) == {0}
    shifted = cut(reach(), HORIZON, LIMITS, DT, WindowConfig(stride=4), first_tick=1)
    assert set((shifted.ticks + 1) % 4) == {0}
    assert len(make(reach()).ticks) >= 4 * len(windows.ticks) - 4


def test_what_is_kept_is_within_the_limits_whatever_was_done():
    points = reach() + np.random.default_rng(0).normal(size=(len(reach()), 2)) * 0.003
    windows = make(points, clip_rad=1.0)
    assert 0 < windows.clip_rad < 0.03
    assert 0 < windows.clipped_share <= 1
    assert 'accelerates by' in windows.over
    path = windows.command[:, None] + np.cumsum(windows.actions, axis=1)
    assert (path >= LIMITS.lower - 1e-9).all() and (path <= LIMITS.upper + 1e-9).all()
    assert (np.abs(windows.actions) <= LIMITS.velocity * DT + 1e-9).all()
    change = np.diff(windows.actions, axis=1)
    assert (np.abs(change) <= LIMITS.acceleration * DT**2 + 1e-9).all()


def test_what_is_kept_goes_through_the_servers_filter_untouched():
    points = reach() + np.random.default_rng(1).normal(size=(len(reach()), 2)) * 0.002
    windows = make(points, clip_rad=1.0)
    motion = LimitFilter(LIMITS, DT)
    motion.reset(windows.command[0])
    motion.velocity = windows.actions[0][0] / DT  # of a recording that begins in motion
    for chunk in windows.actions[::HORIZON]:
        targets = motion.position + np.cumsum(chunk, axis=0)
        np.testing.assert_allclose(motion.track(targets), targets, atol=1e-9)


@pytest.mark.parametrize(
    ('points', 'joint', 'how'),
    [
        (reach(0.5, far=(0.5, 0.1)), 'a', r'moves at 1\.\d\d rad/s \(limit 1\)'),
        (reach(far=(0.1, 2.5), seconds=4.0), 'b', r'is at .* \(limits -2, 2\)'),
        (np.repeat(reach(far=(0.5, 0.1))[::8], 8, axis=0), 'a', r'accelerates by \d+\.\d rad/s\^2'),
    ],
)
def test_too_fast_or_too_far_is_refused_with_the_joint(points, joint, how):
    with pytest.raises(Refused, match=f'no policy within the limits can repeat it: {joint}.*{how}'):
        make(points)
    # clip_rad decides.
    assert make(points, clip_rad=5.0).clip_rad > 0.02


@pytest.mark.parametrize(
    ('points', 'reason'),
    [
        (np.zeros((100, 2)), 'the arm did not move'),
        (np.zeros((1, 2)), 'the arm did not move'),
        (reach()[20:24], 'too short: it moves for 0.16 s, one chunk takes 0.2 s'),
    ],
)
def test_nothing_to_learn_from_is_refused(points, reason):
    with pytest.raises(Refused, match=reason):
        make(points)


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({'stride': 0}, {'idle_rad_s': -1.0}, {'clip_rad': -0.1}):
        with pytest.raises(UserError, match='at least'):
            WindowConfig(**wrong)


def test_control_points_half_a_period_ahead_bring_the_arm_there_in_time():
    """The spline of points taken at t + dt/2 is at x(t), to second order; at x(t) it is late."""
    t = np.arange(60) * DT

    def x(t):
        return np.sin(2.0 * t)[:, None]

    def error(points):
        knots, _ = spline_knots(points[0], points[1:], DT)
        return np.abs(knots[1:] - x(t[2:])).max()

    assert error(x(t + DT / 2)) < 0.001
    assert error(x(t)) > 0.03


def test_resampling_is_linear_and_holds_over_gaps():
    times, values = np.array([0.0, 1.0, 5.0]), np.array([[0.0], [2.0], [4.0]])
    at = np.array([0.5, 1.0, 3.0, 4.75, 5.0, 9.0])
    np.testing.assert_allclose(resample(times, values, at)[:, 0], [1, 2, 3, 3.875, 4, 4])
    np.testing.assert_allclose(resample(times, values, at, 1.0)[:, 0], [1, 2, 2, 3.5, 4, 4])
