# SPDX-License-Identifier: Apache-2.0
"""Rows, tables and pictures of the benchmark, from results whose numbers are known."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.bench.experiment_result import SCHEMA, settings_of, write_json  # noqa: E402
from dipod_ros.learning.bench.experiment_start import known_start  # noqa: E402
from dipod_ros.learning.bench.jobs import Job  # noqa: E402
from dipod_ros.learning.bench.learn_plots import (  # noqa: E402
    _readable,
    band,
    over_clip,
    unbroken,
)
from dipod_ros.learning.bench.learn_report import collect, markdown, write_report  # noqa: E402
from dipod_ros.learning.bench.methods import SWEEP, baseline  # noqa: E402
from dipod_ros.learning.bench.suites import plan  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / 'docs/bench_learn.md'


def write_result(folder, job, score, rings_at=math.inf, **changes):
    """Write what a job with this final success would have left."""
    curve = [
        {
            'control_steps': 1000 * i,
            'success_rate': score * i / 10,
            'return_mean': 5.0 * score * i,
            'action_std_ratio': 0.9,
            'cfm_ratio': 2.0 if i >= rings_at else 1.1,
        }
        for i in range(1, 11)
    ]
    flow = job.method != 'gaussian_ppo'
    result = {
        'schema': SCHEMA,
        'job': vars(job),
        'settings': settings_of(job, known_start(job.task) or 'start'),
        'score_kind': 'return' if job.task == 'hopper' else 'success',
        'score': score,
        'score_exploring': None if flow else score - 0.2,
        'sampler': 'midpoint-5 (10 evaluations)' if flow else 'mean',
        'control_steps': 10_000,
        'wall_s': 10.0,
        'rollout_s': 2.0,
        'update_s': 7.0,
        'other_s': 1.0,
        'cpu_s': 9.0,
        'curve': curve,
        'gap_curve': [[1000, 2.0, 7.0], [10_000, 4.0, 9.0]] if flow else [],
        'exact_gap_nats': 9.0 if flow else None,
        'gap_nats': 4.0 if flow else None,
        'action_std_ratio': 0.9,
        'alarms': 0,
        'alarm_at': None,
        'collapsed': False,
        'sweep': {k: score - 0.1 for k in ('1', '2', '4', '10', '50')} if flow else {},
        'zero_noise': {k: score for k in ('1', '10')} if flow else {},
        'steps_to_08': None,
        'minutes_to_08': None,
        'steps_to_095': None,
        'minutes_to_095': None,
    }
    if flow:
        result['student'] = score - 0.05
    write_json(job.file(folder), result | changes)


@pytest.fixture
def results(tmp_path):
    """Return (folder, jobs): several tasks, regimes and methods, one failed, one not done."""
    jobs = []
    for seed in range(5):
        for task, level in (('reach', 0.9), ('pillar_reach', 0.7)):
            for method, more in (('fpo++', 0.0), ('dipod', 0.05), ('gaussian_ppo', -0.3)):
                job = Job(task, method, seed)
                jobs.append(job)
                if (job.method, job.seed) != ('gaussian_ppo', 4):
                    write_result(tmp_path, job, level + more + 0.01 * seed)
    for regime in ('clip_1.0', 'long'):
        for seed in range(2):
            jobs.append(Job('pillar_reach', 'fpo++', seed, regime))
            write_result(tmp_path, jobs[-1], 0.1 * (1 + seed), 3, collapsed=seed == 0)
    failed = Job('reach', 'gaussian_ppo', 4)
    failed.file(tmp_path, '.error.json').write_text(json.dumps({'error': 'ValueError: no'}))
    return tmp_path, jobs


def row_of(report, task, method, regime='default'):
    (row,) = [
        r for r in report.rows if (r['task'], r['method'], r['regime']) == (task, method, regime)
    ]
    return row


def test_a_row_is_the_middle_of_its_seeds(results):
    folder, jobs = results
    row = row_of(collect(jobs, folder), 'reach', 'fpo++')
    assert row['seeds'] == 5 and row['failed'] == 0
    # 0.90 .. 0.94, of which one goes at either end.
    assert row['iqm'] == pytest.approx(0.92)
    assert 0.90 <= row['ci_low'] < row['iqm'] < row['ci_high'] <= 0.94
    assert row['success_k4'] == pytest.approx(0.82) and row['student'] == pytest.approx(0.87)
    assert (row['gap_nats'], row['exact_gap_nats']) == (4.0, 9.0)
    assert (row['update_s'], row['env_steps']) == (7.0, 10_000)
    assert math.isnan(row['better_than_baseline'])
    # 0.95 .. 0.99 against 0.90 .. 0.94: always better.
    assert row_of(collect(jobs, folder), 'reach', 'dipod')['better_than_baseline'] == 1.0


def test_a_method_is_compared_with_its_own_without_the_regulariser():
    pairs = {
        'dipod_0.1': 'fpo++',
        'dipod_0.1_q': 'fpo++_q',
        'dipod_0.1_q_alone': 'fpo++_q_alone',
        'dipod_0.1_rate0.001_epochs40_ema0.95': 'fpo++_rate0.001_epochs40_ema0.95',
        'dipod_0.3_ema': 'fpo++_ema',
        'dipod_interleaved': 'fpo++',
        'dppo_tuned': 'fpo++',
        'fpo++_q': 'fpo++',
    }
    assert {name: baseline(name) for name in pairs} == pairs


def test_what_a_method_has_not_is_empty(results):
    folder, jobs = results
    row = row_of(collect(jobs, folder), 'pillar_reach', 'gaussian_ppo')
    assert row['seeds'] == 4 and math.isnan(row['success_k1']) and math.isnan(row['student'])


def test_collapses_and_failures_are_counted(results):
    folder, jobs = results
    report = collect(jobs, folder)
    bad = row_of(report, 'pillar_reach', 'fpo++', 'clip_1.0')
    assert (bad['seeds'], bad['collapsed'], bad['alarmed']) == (2, 1, 2)
    failed = row_of(report, 'reach', 'gaussian_ppo')
    assert (failed['seeds'], failed['failed']) == (4, 1)
    assert failed['errors'] == {'4': 'ValueError: no'}
    text = markdown(report)
    assert 'failed: gaussian_ppo seed 4: ValueError: no' in text
    assert any(text.startswith('1 of 34 jobs are not done') for text in report.warnings)


def test_a_row_of_failures_alone_is_a_row(tmp_path):
    job = Job('reach', 'fpo++', 0)
    job.file(tmp_path).parent.mkdir(parents=True)
    job.file(tmp_path, '.error.json').write_text('not json')
    report = collect([job], tmp_path)
    assert report.rows[0]['seeds'] == 0 and report.rows[0]['failed'] == 1
    assert '| failed |' in markdown(report)
    assert write_report(report, tmp_path / 'out')[0].is_file()


def test_steps_to_a_level_count_those_who_never_got_there(tmp_path):
    jobs = [Job('reach', 'fpo++', seed) for seed in range(5)]
    for job, steps in zip(jobs, (300, 100, None, 200, None), strict=True):
        minutes = None if steps is None else steps / 100
        write_result(tmp_path, job, 0.9, steps_to_08=steps, minutes_to_08=minutes)
    row = collect(jobs, tmp_path).rows[0]
    assert (row['steps_to_08'], row['minutes_to_08'], row['reached_08']) == (300, 3, 3)
    assert (row['steps_to_095'], row['reached_095']) == (math.inf, 0)
    text = markdown(collect(jobs, tmp_path))
    assert '| 3 (3/5) | never (0/5) |' in text


def test_the_aggregate_is_over_tasks_with_the_same_score(results, tmp_path):
    folder, jobs = results
    hopper = [Job('hopper', 'fpo++', seed) for seed in range(3)]
    for job in hopper:
        write_result(folder, job, 1500.0)
    report = collect([*jobs, *hopper], folder)
    whole = report.aggregates['default', 'fpo++'].whole
    # 0.70 .. 0.74 and 0.90 .. 0.94; of ten, two go at either end.
    assert whole.iqm == pytest.approx(np.mean([0.72, 0.73, 0.74, 0.90, 0.91, 0.92]))
    assert ('long', 'fpo++') not in report.aggregates
    row = row_of(report, 'hopper', 'fpo++')
    assert row['score_kind'] == 'return' and row['iqm'] == 1500.0
    assert '1500' in markdown(report)


def test_over_tasks_each_counts_the_same_and_single_seeds_do_not(tmp_path):
    jobs = [Job('reach', 'fpo++', seed) for seed in range(5)]
    jobs += [Job('pillar_reach', 'fpo++', seed) for seed in range(3)]
    jobs += [Job('rail_push', 'fpo++', 0)]
    for job in jobs:
        level = {'reach': 0.9, 'pillar_reach': 0.5, 'rail_push': 0.1}[job.task]
        write_result(tmp_path, job, level)
    report = collect(jobs, tmp_path)
    assert report.aggregates['default', 'fpo++'].whole.iqm == pytest.approx(0.7)
    assert (
        '| default | fpo++ | 3 |' in markdown(report)
        and 'rail_push |\n' not in (markdown(report).split('over all tasks')[1])
    )


def test_a_comparison_over_tasks_names_those_that_both_have(tmp_path):
    levels = {'reach': 0.9, 'pillar_reach': 0.7, 'rail_push': 0.1}
    jobs = [Job(task, 'dipod_0.1_ema', seed) for task in levels for seed in range(3)]
    # The baseline is worse where it has three seeds, and better where it has but two, or none.
    jobs += [Job('reach', 'fpo++_ema', seed) for seed in range(3)]
    jobs += [Job('pillar_reach', 'fpo++_ema', seed) for seed in range(2)]
    # Methods without any of the other's tasks.
    jobs += [Job(task, 'dppo', seed) for task in levels for seed in range(3)]
    for job in jobs:
        better = job.method == 'fpo++_ema' and job.task == 'pillar_reach'
        write_result(tmp_path, job, levels[job.task] + (0.2 if better else 0.0) + 0.01 * job.seed)
    report = collect(jobs, tmp_path)
    one = report.aggregates['default', 'dipod_0.1_ema']
    assert (one.tasks, one.baseline) == (('reach', 'pillar_reach', 'rail_push'), 'fpo++_ema')
    assert (one.compared, one.better) == (('reach',), 0.5)
    told = one.to_dict()
    assert (told['compared_on'], told['better_than_baseline']) == (['reach'], 0.5)
    alone = report.aggregates['default', 'dppo']
    assert math.isnan(alone.better) and alone.compared == ()
    table = markdown(report).split('over all tasks')[1]
    assert '| tasks | P(better than) | on the tasks of both |' in table
    assert '| reach, pillar_reach, rail_push | 0.5 (fpo++_ema) | reach |' in table
    assert '| reach, pillar_reach, rail_push |  |  |' in table


def test_times_are_of_the_processor_and_huge_gaps_have_an_exponent(tmp_path):
    job = Job('reach', 'fpo++', 0)
    write_result(tmp_path, job, 0.9, exact_gap_nats=1.234e24, update_s=987.0, cpu_s=65.4)
    text = markdown(collect([job], tmp_path))
    assert '| cpu (s) |' in text and '| 65.4 |' in text and '987' not in text
    assert '| 1.23e+24 |' in text


def test_over_the_clip_stand_methods_and_no_controls(tmp_path):
    clips = [('clip_0.05', 'dipod_0.1'), ('default', 'dipod_0.1'), ('clip_0.5', 'dipod_0.1')]
    clips += [('default', name) for name in ('fpo++', 'small_clip', 'bc_anchor', 'dppo')]
    clips += [('clip_1.0', name) for name in ('fpo++', 'small_clip', 'bc_anchor', 'dipod_0.1')]
    jobs = [Job('pillar_reach', method, 0, regime) for regime, method in clips]
    for job in jobs:
        write_result(tmp_path, job, 0.3 if job.method == 'small_clip' else 0.9)
    report = collect(jobs, tmp_path)
    shown = over_clip(report.rows, 'pillar_reach')
    # small_clip is FPO++ at 1.0; DPPO has one clip only, and bc_anchor is a control.
    assert {method: sorted(points) for method, points in shown.items()} == {
        'fpo++': [0.05, 0.2, 1.0],
        'dipod_0.1': [0.05, 0.2, 0.5, 1.0],
    }
    assert [shown['fpo++'][clip]['iqm'] for clip in (0.05, 0.2, 1.0)] == [0.3, 0.9, 0.9]
    assert over_clip(report.rows, 'reach') == {}


def test_a_line_over_the_clip_ends_where_one_was_not_measured():
    assert unbroken([1.0, 0.05, 0.2]) == [[0.05, 0.2], [1.0]]
    assert unbroken([0.05, 0.2, 0.5, 1.0]) == [[0.05, 0.2, 0.5, 1.0]]
    assert unbroken([0.05, 0.5]) == [[0.05], [0.5]]


def test_a_score_with_exploring_noise_is_named(tmp_path):
    jobs = [Job('reach', name, 0) for name in ('fpo++', 'dppo', 'gaussian_ppo')]
    for job in jobs:
        write_result(tmp_path, job, 0.9)
    assert not any('explored' in w for w in collect(jobs, tmp_path).warnings)
    for job, sampler in zip(jobs, ('midpoint-5', 'chain-4', 'euler-1'), strict=True):
        result = json.loads(job.file(tmp_path).read_text())
        del result['score_exploring']
        job.file(tmp_path).write_text(json.dumps(result | {'sampler': sampler}))
    (warning,) = [w for w in collect(jobs, tmp_path).warnings if 'explored' in w]
    assert warning.endswith(': reach/default/dppo, reach/default/gaussian_ppo')


def test_results_that_no_suite_has_are_named(tmp_path):
    jobs = [Job('reach', 'fpo++', 0), Job('reach', 'dipod_0.3_ema', 0, 'window_3')]
    for job in jobs:
        write_result(tmp_path, job, 0.9)
    (warning,) = [w for w in collect(jobs[:1], tmp_path).warnings if 'no suite' in w]
    assert warning.endswith(': reach/window_3/dipod_0.3_ema')


def test_one_seed_has_no_interval_and_is_named(tmp_path):
    job = Job('reach', 'fpo++', 0)
    write_result(tmp_path, job, 0.9)
    report = collect([job], tmp_path)
    assert '0.9 (one seed)' in markdown(report)
    assert any('ONE seed' in w and 'reach/default/fpo++' in w for w in report.warnings)


def test_results_of_other_settings_are_named(results):
    folder, jobs = results
    assert not any('other settings' in w for w in collect(jobs, folder).warnings)
    file = jobs[0].file(folder)
    result = json.loads(file.read_text())
    mine = result['settings']
    other = [mine | {'config': mine['config'] | {'clip': 0.7}}, mine | {'start_sha256': 'gone'}]
    for settings in other:
        file.write_text(json.dumps(result | {'settings': settings}))
        (warning,) = [w for w in collect(jobs, folder).warnings if 'other settings' in w]
        assert warning.endswith(': reach/default/fpo++')
    file.write_text(json.dumps(result | {'settings': other[0]}))
    (warning,) = [w for w in collect(jobs, folder).warnings if 'other settings' in w]
    assert warning.endswith(': reach/default/fpo++')


def test_everything_is_written_and_drawn(results):
    folder, jobs = results
    paths = write_report(collect(jobs, folder), folder / 'report')
    names = {path.name for path in paths}
    assert names == {
        'learn.json',
        'learn.md',
        *(
            f'{kind}_{name}.png'
            for kind in ('curve', 'gap', 'sweep')
            for name in (
                'reach_default',
                'pillar_reach_default',
                'pillar_reach_clip_1.0',
                'pillar_reach_long',
            )
        ),
        'clip_pillar_reach.png',
        'long_pillar_reach.png',
    }
    for path in paths:
        assert path.stat().st_size > 0
        assert path.suffix != '.png' or path.read_bytes().startswith(b'\x89PNG')
    rows = json.loads((folder / 'report/learn.json').read_text())
    assert len(rows) == 8
    # Every key of a row is explained.
    explained = set(re.findall(r'^\| `(.+?)` \|', DOCS.read_text(), flags=re.MULTILINE))
    explained = {name for cell in explained for name in re.split('`, `', cell)}
    assert set(rows[0]) <= explained


def test_nothing_yet_is_no_error(tmp_path):
    report = collect([Job('reach', 'fpo++', 0)], tmp_path)
    assert report.rows == [] and '1 of 1 jobs' in markdown(report)
    assert {p.name for p in write_report(report, tmp_path / 'x')} == {'learn.json', 'learn.md'}


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        write_report(collect([], tmp_path), tmp_path / 'file')


def test_a_band_covers_what_all_curves_have():
    x, mean, low, high = band(
        [
            (np.array([0.0, 10.0]), np.array([0.0, 1.0])),
            (np.array([5.0, 15.0]), np.array([1.0, 1.0])),
        ]
    )
    assert (x[0], x[-1]) == (5.0, 10.0)
    assert (mean[0], low[0], high[0]) == (0.75, 0.5, 1.0)
    assert (mean[-1], low[-1], high[-1]) == (1.0, 1.0, 1.0)


def test_the_settings_of_the_sweep_are_one_picture(tmp_path):
    jobs = plan(['sweep'])
    for job in jobs[:5]:
        write_result(tmp_path, job, 0.5)
    written = write_report(collect(jobs, tmp_path), tmp_path / 'report')
    pictures = [path.name for path in written if path.suffix == '.png']
    assert pictures == ['settings_pillar_reach.png']


def test_every_method_has_as_many_settings_in_the_sweep():
    jobs = plan(['sweep'])
    counts = [sum(job.method.startswith(f'{name}_rate') for job in jobs) for name in SWEEP]
    assert counts == [len(jobs) / len(SWEEP)] * len(SWEEP)
    again = plan(['finals'])
    assert all(sum(job.method.startswith(f'{n}_rate') for job in again) == 3 for n in SWEEP)
    assert not {job.seed for job in jobs + again} & set(range(5))


def test_a_crowded_picture_shows_the_methods_with_most_seeds():
    runs = {f'm{i}': [{}] * (1 + i % 3) for i in range(12)}
    assert set(_readable(runs)) == {'m1', 'm2', 'm4', 'm5', 'm7', 'm8', 'm10', 'm11'}
    alike = {f'm{i}': [{}] for i in range(12)}
    assert _readable(alike) == alike
