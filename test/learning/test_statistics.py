# SPDX-License-Identifier: Apache-2.0
"""The statistics of the benchmark against numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.statistics import (
    estimate,
    few_runs,
    interquartile_mean,
    probability_of_improvement,
)


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    # Of eight, two go at either end: (3 + 4 + 5 + 6) / 4.
    assert interquartile_mean([8, 1, 100, 3, 4, 5, 6, -50]) == pytest.approx(4.5)
    # Of five, one: (2 + 3 + 10) / 3.
    assert interquartile_mean([1, 2, 3, 10, 99]) == pytest.approx(5.0)


def test_with_fewer_than_four_runs_it_is_the_mean():
    assert interquartile_mean([0.2, 0.4, 0.9]) == pytest.approx(0.5)
    assert interquartile_mean([0.7]) == pytest.approx(0.7)


def test_the_bootstrap_of_two_runs_has_three_values():
    # Draws of {0, 1} with replacement: mean 0, 1/2 or 1 with odds 1/4, 1/2, 1/4.
    whole = estimate({'task': [0.0, 1.0]})
    assert (whole.iqm, whole.low, whole.high) == (0.5, 0.0, 1.0)


def test_the_bootstrap_keeps_every_task():
    # Within each task the runs are equal, so nothing can vary; unstratified draws would.
    whole = estimate({'easy': [1.0, 1.0, 1.0], 'hard': [0.0, 0.0, 0.0]})
    assert (whole.iqm, whole.low, whole.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_many_runs_is_that_of_the_mean_of_the_middle():
    runs = np.random.default_rng(0).normal(0.5, 0.1, 400)
    whole = estimate({'task': runs}, resamples=4000)
    half = (whole.high - whole.low) / 2
    # Standard error of a 25 % trimmed mean of n normal runs: 1.09 sigma / sqrt(n).
    assert half == pytest.approx(1.96 * 1.09 * 0.1 / 20, rel=0.15)
    assert whole.low < whole.iqm < whole.high


def test_the_same_runs_give_the_same_interval():
    runs = {'a': [0.1, 0.5, 0.7], 'b': [0.3, 0.9]}
    assert estimate(runs) == estimate(runs)
    assert estimate(runs, seed=1).iqm == estimate(runs).iqm


def test_no_run_at_all_is_refused():
    with pytest.raises(UserError, match='no runs'):
        estimate({'task': []})


def test_probability_of_improvement_counts_pairs():
    # 2 beats 1, ties with 2; 3 beats both: (1 + 0.5 + 1 + 1) / 4.
    assert probability_of_improvement({'t': [2, 3]}, {'t': [1, 2]}) == pytest.approx(0.875)
    # A task that only one has does not count.
    both = probability_of_improvement({'t': [2, 3], 'x': [0]}, {'t': [1, 2], 'y': [9]})
    assert both == pytest.approx(0.875)
    assert math.isnan(probability_of_improvement({'t': [1]}, {'x': [1]}))


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=17), rng.normal(size=11)
    expected = stats.mannwhitneyu(x, y).statistic / (17 * 11)
    assert probability_of_improvement({'t': x}, {'t': y}) == pytest.approx(expected)


def test_one_seed_is_named_and_two_are_few():
    one, few = few_runs({'a/b/c': 1, 'd': 2, 'e': 3, 'none': 0})
    assert 'ONE seed' in one and 'a/b/c' in one
    assert 'd' in few.split(': ')[1] and 'e' not in few.split(': ')[1]
    assert few_runs({'e': 3}) == []
