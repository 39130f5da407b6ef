# SPDX-License-Identifier: Apache-2.0
"""When the alarm rings: on numbers made up, and on every benchmark run that is kept."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.bench.experiment_result import alarm_at, numbers  # noqa: E402
from dipod_ros.learning.collapse import (  # noqa: E402
    HealthConfig,
    first_alarm,
    has_collapsed,
    keeps_return,
)

CONFIG = HealthConfig()
RUNS = Path(__file__).resolve().parents[2] / 'docs/results/bench_learn'
RISING = [float(k) for k in range(20)]
LOST = [*RISING, *[5.0] * 5]  # 17 at its best, of which 15 were gained


@pytest.mark.parametrize('returns', [(), RISING, LOST])
def test_wide_actions_with_a_small_loss_are_healthy_whatever_the_return(returns):
    assert not has_collapsed(1.5, 0.45, returns, CONFIG)


@pytest.mark.parametrize('returns', [(), RISING, LOST])
@pytest.mark.parametrize(
    'cfm, std', [(1.51, 0.9), (math.nan, 0.9), (math.inf, 0.9), (0.9, math.nan), (0.9, 0.04)]
)
def test_some_numbers_are_a_collapse_whatever_the_return(returns, cfm, std):
    assert has_collapsed(cfm, std, returns, CONFIG)


def test_a_loss_says_nothing_where_the_velocity_is_no_flow_of_the_actions():
    assert not has_collapsed(9.0, 0.9, (), CONFIG, keeps_flow=False)
    assert has_collapsed(math.nan, 0.9, (), CONFIG, keeps_flow=False)
    assert has_collapsed(1.0, 0.3, LOST, CONFIG, keeps_flow=False)


@pytest.mark.parametrize('scale, offset', [(1.0, 0.0), (1e3, -1e5), (1e-3, 0.0)])
def test_narrow_actions_are_judged_by_the_return(scale, offset):
    """In whatever unit, and with whatever sign: returns of a task of costs are negative."""
    for returns, collapsed in ((RISING, False), (LOST, True), (RISING[::-1], True)):
        values = [scale * r + offset for r in returns]
        assert has_collapsed(0.9, 0.3, values, CONFIG) is collapsed


def test_too_few_rollouts_cannot_tell():
    assert not keeps_return(RISING[:9], CONFIG)
    assert keeps_return(RISING[:10], CONFIG)


def test_a_return_that_stays_is_kept():
    assert keeps_return([0.5] * 10, CONFIG)


@pytest.mark.parametrize('seed', range(20))
def test_luck_decides_nothing(seed):
    """Success rates of 64 episodes each that neither rise nor fall, one of them far off."""
    rng = np.random.default_rng(seed)
    level = rng.binomial(64, 0.7, 100) / 64
    level[rng.integers(100)] = rng.choice([0.5, 0.9])
    assert all(keeps_return(level[:n], CONFIG) for n in range(10, 101))


def test_half_of_what_was_gained_must_be_kept():
    risen = [*[0.0] * 5, *[100.0] * 20]
    for kept, healthy in ((60.0, True), (40.0, False)):
        assert keeps_return([*risen, *[kept] * 5], CONFIG) is healthy
    assert keeps_return([*risen, *[40.0] * 5], HealthConfig(min_kept_gain=0.3))


def test_a_return_that_is_no_number_is_not_kept():
    assert not keeps_return([*RISING, math.nan], CONFIG)


@pytest.mark.parametrize(
    'wrong, says',
    [
        ({'return_updates': 0}, 'return_updates'),
        ({'min_kept_gain': 1.5}, 'min_kept_gain'),
        ({'min_kept_gain': math.nan}, 'min_kept_gain'),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        HealthConfig(**wrong)


def curve(returns, std=0.3, cfm=1.0):
    """Return rows of ten control steps each."""
    return [
        {
            'control_steps': 10 * (k + 1),
            'return_mean': value,
            'cfm_ratio': cfm,
            'action_std_ratio': 1.0 if k < 10 else std,
        }
        for k, value in enumerate(returns)
    ]


def test_the_first_alarm_of_a_curve_knows_only_what_came_before():
    assert first_alarm(curve(RISING), CONFIG) is None
    # Back to 3 at the 21st: of the last five, one is 5, then two, ... half of 15 is lost at four.
    assert first_alarm(curve(LOST), CONFIG) == 240
    assert first_alarm(curve(LOST, std=0.5), CONFIG) is None
    assert first_alarm(curve(RISING, cfm=1.6), CONFIG) == 10


# The kept runs of the benchmark. More may be added: what is said of all of them follows from the
# rule, and what is said of single runs names them.


def stored(pattern):
    """Return kept results with the curves of own actions, by name."""
    results = {}
    for file in sorted(RUNS.glob(f'{pattern}/seed*.json')):
        if '.' in file.stem:  # of a job that is running, or has failed
            continue
        result = json.loads(file.read_text(encoding='utf-8'))
        if 'action_std_ratio' in result['curve'][-1]:
            results[str(file.relative_to(RUNS))] = result
    return results


def place(result, steps):
    """Return which update, from 0, these control steps end."""
    return [row['control_steps'] for row in result['curve']].index(steps)


def fixed_limits(result):
    """Return the update after which the loss or the spread first passes its limit, or None."""
    for k, row in enumerate(numbers(result['curve'])):
        if not (row['cfm_ratio'] <= 1.5 and row['action_std_ratio'] >= 0.45):
            return k
    return None


def test_the_return_only_ever_silences_narrow_actions():
    results = {k: r for k, r in stored('*/*/*').items() if r['gap_curve']}
    assert len(results) > 100
    for name, result in results.items():
        steps, limit = alarm_at(result), fixed_limits(result)
        if limit is None:
            assert steps is None, name
        elif not result['curve'][limit]['cfm_ratio'] <= 1.5:
            # A flow that is lost rings at once, as ever.
            assert place(result, steps) == limit, name
        else:
            assert steps is None or place(result, steps) >= limit, name


def test_a_gait_that_gets_better_with_narrow_actions_is_no_collapse():
    results = {m: stored(f'walker2d/default/{m}') for m in ('fpo++_plain', 'dipod_0.1_plain')}
    for method, result in ((m, r[f'walker2d/default/{m}/seed0.json']) for m, r in results.items()):
        assert result['curve'][-1]['action_std_ratio'] < 0.4, method
        assert fixed_limits(result) is not None and alarm_at(result) is None, method


@pytest.mark.parametrize(
    'run, update',
    [
        ('clip_1.0/fpo++/seed0', 4),
        ('clip_1.0/fpo++/seed1', 3),
        ('clip_1.0/fpo++/seed2', 3),
        ('clip_1.0/fpo++/seed3', 3),
        ('clip_1.0/aspo/seed0', 10),
        ('clip_1.0/aspo/seed1', 4),
        ('clip_1.0/negative_only/seed1', 11),
        ('clip_0.5/fpo++/seed2', 9),
        ('sparse/fpo++/seed2', 22),
        ('sparse/fpo++/seed3', 11),
        ('sparse/fpo++/seed4', 14),
    ],
)
def test_runs_that_lost_what_they_had_ring(run, update):
    folder, _, seed = run.rpartition('/')
    result = stored(f'pillar_reach/{folder}')[f'pillar_reach/{folder}/{seed}.json']
    assert place(result, alarm_at(result)) == update
