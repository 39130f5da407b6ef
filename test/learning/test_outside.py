# SPDX-License-Identifier: Apache-2.0
"""The reference from outside: really learns, is judged as all others, leaves nothing behind."""

import importlib.util
import inspect
import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.learning.bench import suites
from dipod_ros.learning.bench.experiment import Interrupted, run_job
from dipod_ros.learning.bench.experiment_result import outdated, read_result
from dipod_ros.learning.bench.jobs import OUTSIDE_TASKS, Job, update_config
from dipod_ros.learning.bench.learn_report import collect, markdown
from dipod_ros.learning.bench.outside import OutsideConfig, run_outside
from dipod_ros.learning.bench.regimes import Regime
from dipod_ros.learning.bench.suites import SUITES, plan
from dipod_ros.sim.external.registry import GYMNASIUM

JOB = Job('hopper', 'sb3_ppo', 0, 'smoke')
CLOCKS = {'wall_s', 'rollout_s', 'update_s', 'other_s', 'cpu_s', 'measure_s'}
# Of every result: what the learner, and then the measurements, write for a method with a flow.
KEYS = CLOCKS | {
    'schema', 'job', 'settings', 'score_kind', 'control_steps', 'minutes', 'episodes', 'updates',
    'curve', 'gap_curve', 'action_std_ratio', 'alarms', 'alarm_at', 'collapsed', 'steps_to_08',
    'minutes_to_08', 'steps_to_095', 'minutes_to_095', 'score', 'score_exploring', 'final',
    'sampler', 'sweep', 'zero_noise', 'gap_nats', 'exact_gap_nats', 'student',
}  # fmt: skip


@pytest.fixture
def sb3():
    pytest.importorskip('imageio', reason='Gymnasium makes no MuJoCo env without it')
    return pytest.importorskip('stable_baselines3', reason='the reference is its PPO')


@pytest.fixture
def absent(monkeypatch):
    """Make the library look as if it were not installed."""
    find = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name == 'stable_baselines3' else find(name, *rest)

    monkeypatch.setattr(importlib.util, 'find_spec', find_spec)


def plain(result):
    return {k: v for k, v in json.loads(json.dumps(result)).items() if k not in CLOCKS}


def test_a_result_has_the_keys_and_the_measure_of_all_others(sb3, tmp_path):
    shares = []
    result = run_job(JOB, tmp_path, lambda share, text: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert set(result) == KEYS
    # Nothing of the library is kept.
    assert [path.name for path in JOB.file(tmp_path).parent.iterdir()] == ['seed0.json']
    assert read_result(JOB.file(tmp_path)) == json.loads(json.dumps(result))
    # 500 control steps, rounded up to whole minibatches.
    assert result['control_steps'] == 512 and result['updates'] == 1
    assert result['minutes'] == pytest.approx(512 * 0.008 / 60)
    (row,) = result['curve']
    assert row['control_steps'] == 512 and row['episodes'] == result['episodes'] > 0
    # A hopper of random weights falls within tens of steps, each worth about 1.
    assert 0 < row['return_mean'] < 200 and row['success_rate'] == 0
    assert result['score'] == result['final']['return_mean'] and math.isfinite(result['score'])
    assert result['final']['episodes'] == 1
    parts = [result[name] for name in ('rollout_s', 'update_s', 'other_s')]
    assert min(parts[:2]) > 0 and parts[2] >= 0 and result['wall_s'] == pytest.approx(sum(parts))
    assert result['settings']['config'] == asdict(OutsideConfig(epochs=2))
    assert result['settings']['versions']['stable_baselines3'] == sb3.__version__
    assert not outdated(JOB, result, None)
    # The same seed learns the same, another one does not.
    again = run_outside(JOB, update_config(JOB))
    assert plain(again) == plain(result)
    other = run_outside(Job('hopper', 'sb3_ppo', 1, 'smoke'), update_config(JOB))
    assert other['score'] != result['score']
    # It is a row of the report.
    report = collect([JOB], tmp_path)
    assert report.rows[0]['scores'] == [result['score']] and math.isnan(report.rows[0]['student'])
    assert 'sb3_ppo' in markdown(report)


def test_it_learns(sb3, monkeypatch):
    config = OutsideConfig(n_steps=128)
    regime = Regime('short', control_steps=4096, effort=0.02)
    monkeypatch.setitem(suites.REGIMES, 'short', regime)
    result = run_outside(Job('hopper', 'sb3_ppo', 0, 'short'), config)
    returns = [row['return_mean'] for row in result['curve']]
    assert result['updates'] == 4, returns
    assert np.mean(returns[-2:]) > 1.5 * np.mean(returns[:2]), returns


def test_a_job_that_is_stopped_leaves_nothing(sb3, tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run_job(JOB, tmp_path, stop=lambda: next(asked))
    assert not list(tmp_path.rglob('*.json'))


def test_all_but_the_worlds_is_a_default_of_the_library(sb3):
    defaults = inspect.signature(sb3.PPO).parameters
    config = OutsideConfig().ppo(400_000)
    assert config.pop('n_envs') == 8
    assert config == {name: defaults[name].default for name in config}
    assert OutsideConfig().ppo(500)['n_steps'] == 64


def test_only_what_fits_is_planned_and_the_rest_is_refused(sb3):
    assert tuple(GYMNASIUM) == OUTSIDE_TASKS
    jobs = [job for job in plan(['external'], seeds=1) if job.method == 'sb3_ppo']
    assert [job.task for job in jobs] == ['hopper', 'walker2d']
    (asked,) = plan(['external'], seeds=1, tasks=['cube_single'], methods=['sb3_ppo'])
    with pytest.raises(UserError, match='for hopper and walker2d only: leave out cube_single'):
        update_config(asked)
    for regime, lacks in (
        ('stale', 'lag'),
        ('sparse', 'tight'),
        ('window_3', 'window'),
        ('stored_4', 'samples_per'),
    ):
        with pytest.raises(UserError, match=f'has no {lacks}.*: leave it out of {regime}'):
            update_config(Job('hopper', 'sb3_ppo', 0, regime))
    assert update_config(Job('hopper', 'sb3_ppo', 0, 'epochs_12')).ppo(1)['n_epochs'] == 12
    with pytest.raises(UserError, match='n_envs must be at least 1'):
        OutsideConfig(n_envs=0)


def test_without_the_library_a_suite_does_without(absent, caplog):
    jobs = plan(['external'], seeds=2)
    methods = set(SUITES['external'].methods) - {'sb3_ppo'}
    assert len(jobs) == 2 * 3 * len(methods) and {job.method for job in jobs} == methods
    says = 'method sb3_ppo needs stable_baselines3: pip install "dipod_ros[bench]"'
    assert [record.getMessage() for record in caplog.records] == [f'left out: {says}']
    (job,) = plan(['external'], seeds=1, tasks=['hopper'], methods=['sb3_ppo'])
    with pytest.raises(UserError, match=r'needs stable_baselines3: pip install "dipod_ros\[bench'):
        update_config(job)
