# SPDX-License-Identifier: Apache-2.0
"""Latency windows, noise, notices and the robot's clock."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.serving.latency import LatencyWindow
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.stamp_clock import StampClock


def test_the_latency_window_forgets_warm_up_and_the_distant_past():
    window = LatencyWindow(size=100, warmup=2)
    for seconds in [9.0, 9.0] + [5.0] + [0.001 * k for k in range(100)]:
        window.add(seconds)
    assert len(window) == 100
    assert window.max == pytest.approx(0.099)
    assert window.percentile(50) == pytest.approx(0.0495)


def test_percentiles_are_those_of_numpy_while_the_window_moves():
    window, kept = LatencyWindow(size=50), []
    # Many of them equal: which of the equal ones leaves must not matter.
    for seconds in np.random.default_rng(0).integers(1, 20, 200) * 0.001:
        window.add(float(seconds))
        kept = [*kept, seconds][-50:]
        for percent in (0, 37.5, 50, 99, 100):
            assert window.percentile(percent) == pytest.approx(np.percentile(kept, percent))
        assert len(window) == len(kept)


def test_an_empty_latency_window_says_zero():
    assert LatencyWindow().percentile(99) == 0.0


def test_noise_depends_on_seed_and_number_alone():
    first, second = NoiseSource('gaussian', 5), NoiseSource('gaussian', 5)
    second.sample(0, 10)
    np.testing.assert_array_equal(first.sample(3, 10), second.sample(3, 10))
    assert not np.array_equal(first.sample(3, 10), first.sample(4, 10))
    assert not np.array_equal(first.sample(3, 10), NoiseSource('gaussian', 6).sample(3, 10))


@pytest.mark.parametrize('kind', ['gaussian', 'zero'])
def test_noise_that_was_prepared_is_the_same_noise(kind):
    prepared, drawn = NoiseSource(kind, 5), NoiseSource(kind, 5)
    prepared.prepare(3, 10)
    for number, size in ((3, 10), (3, 10), (3, 8), (4, 10), (3, 10)):
        noise = prepared.sample(number, size)
        np.testing.assert_array_equal(noise, drawn.sample(number, size))
        noise[:] = 0  # whoever has it may change it


def test_noise_is_standard_normal():
    draws = np.stack([NoiseSource('gaussian', 1).sample(n, 50) for n in range(400)])
    assert abs(draws.mean()) < 0.03
    assert abs(draws.std() - 1) < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.15


def test_a_drawn_seed_is_told_and_gives_the_same_noise_again():
    source = NoiseSource('gaussian', -1)
    again = NoiseSource('gaussian', source.seed)
    np.testing.assert_array_equal(source.sample(2, 4), again.sample(2, 4))


def test_zero_noise_and_unknown_noise():
    np.testing.assert_array_equal(NoiseSource('zero').sample(1, 3), np.zeros(3))
    with pytest.raises(UserError, match='gaussian'):
        NoiseSource('pink')


def test_notices_tell_beginning_and_end_once():
    told = []
    notices = Notices(lambda problem, text: told.append((problem, text)))
    for _ in range(5):
        notices.set('camera', 'camera is dark')
    assert notices.active == ['camera is dark']
    for _ in range(3):
        notices.clear('camera', 'camera sees again')
    assert told == [(True, 'camera is dark'), (False, 'camera sees again')]
    assert notices.active == []


def test_a_notice_whose_text_changes_is_told_again():
    told = []
    notices = Notices(lambda problem, text: told.append(text))
    notices.set('goal', 'nothing received')
    notices.set('goal', 'too old')
    assert told == ['nothing received', 'too old']


def test_the_stamp_clock_takes_the_fastest_message_for_the_truth():
    clock = StampClock()
    for k, delay_s in enumerate((0.004, 0.001, 0.012, 0.003)):
        clock.observe(1_000_000_000 + k * 10_000_000, 50.0 + k * 0.01 + delay_s)
    assert clock.stamp_ns(50.0) == pytest.approx(1_000_000_000 - 1_000_000, abs=20_000)


def test_the_stamp_clock_follows_drift():
    clock = StampClock()
    for k in range(2000):  # the robot's clock is 50 ppm slow
        clock.observe(1 + round(k * 1e7 * (1 - 50e-6)), k * 0.01)
    assert clock.stamp_ns(20.0) == pytest.approx(20e9 * (1 - 50e-6), abs=50_000)
    assert clock.jumps == 0


@pytest.mark.parametrize('factor', [0.25, 0.5, 2.0, 10.0])
def test_the_stamp_clock_follows_a_simulation_that_is_not_in_real_time(factor):
    clock = StampClock()
    rng = np.random.default_rng(0)
    for k in range(1, 200):
        now = k * 0.04 / factor
        clock.observe(round(k * 40e6), now + rng.uniform(0, 0.002))
    assert clock.stamp_ns(now) == pytest.approx(k * 40e6, abs=20e6 * max(1, factor / 2))


def test_a_clock_that_is_set_is_noticed():
    clock = StampClock()
    for k in range(1, 100):
        clock.observe(k * 40_000_000, k * 0.04)
    clock.observe(1_000_000, 4.0)
    assert clock.jumps == 1
    assert clock.stamp_ns(4.0) == pytest.approx(1_000_000, abs=1000)


def test_a_robot_without_a_clock_has_no_time():
    clock = StampClock()
    clock.observe(0, 3.0)
    assert clock.stamp_ns(3.0) is None
