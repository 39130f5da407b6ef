# SPDX-License-Identifier: Apache-2.0
"""Results of the benchmark of learning as rows, one per task, regime and method, and as tables.

Every key of a row is in docs/bench_learn.md. The pictures are in learn_plots.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.experiment_pool import read_error
from dipod_ros.learning.bench.experiment_result import (
    alarm_at,
    judged_exploring,
    outdated,
    read_result,
    write_json,
)
from dipod_ros.learning.bench.experiment_start import known_start
from dipod_ros.learning.bench.jobs import Job
from dipod_ros.learning.bench.learn_aggregate import Aggregate, aggregates
from dipod_ros.learning.bench.methods import BASELINE, baseline
from dipod_ros.learning.bench.program import UNKNOWN
from dipod_ros.learning.bench.regimes import TASKS
from dipod_ros.learning.bench.statistics import (
    Estimate,
    estimate,
    few_runs,
    interquartile_mean,
    probability_of_improvement,
    short,
)
from dipod_ros.learning.bench.suites import unplanned
from dipod_ros.policy.atomic import write_file

SWEEP = ('1', '2', '4', '10', '50')


@dataclass
class Report:
    """Everything that the results of some jobs say together."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    # (task, regime, method) -> results of its seeds
    results: dict[tuple[str, str, str], list[dict[str, Any]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    # (regime, method) -> what is known over all tasks that are judged by success
    aggregates: dict[tuple[str, str], Aggregate] = field(default_factory=dict)


def collect(jobs: Sequence[Job], run_dir: Path) -> Report:
    """Read what there is of some jobs; those without a result or an error count as missing."""
    report = Report()
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.task, job.regime, job.method), []).append(job)
    for key, group in groups.items():
        results = [read_result(job.file(run_dir)) for job in group]
        report.results[key] = [result for result in results if result is not None]
    report.warnings += _old(report)
    mixed = ['/'.join(key) for key, runs in report.results.items() if len(_programs(runs)) > 1]
    if mixed:
        report.warnings.append(f'runs of more than one program in a row: {", ".join(mixed)}')
    strangers = unplanned(run_dir)
    if strangers:
        report.warnings.append(f'results that no suite has, not shown: {", ".join(strangers)}')
    missing = 0
    for key, group in groups.items():
        errors = {}
        for job in group:
            error = job.file(run_dir, '.error.json')
            if job.file(run_dir).is_file():
                continue
            if error.is_file():
                errors[job.seed] = read_error(error)
            else:
                missing += 1
        if report.results[key] or errors:
            report.rows.append(_row(key, report, errors))
    if missing:
        report.warnings.append(f'{missing} of {len(jobs)} jobs are not done: partial results')
    counts = {'/'.join(key): len(runs) for key, runs in report.results.items()}
    report.warnings += few_runs(counts)
    report.aggregates = aggregates(report.results)
    return report


def _old(report: Report) -> list[str]:
    """Return warnings about results that this program would not make, or not make like that."""
    warnings = []
    old, noisy = [], []
    for key, runs in report.results.items():
        jobs = [Job(**run['job']) for run in runs]
        # A start that is not at hand is not compared, but with that of the first.
        start = known_start(key[0]) or (runs[0]['settings']['start_sha256'] if runs else None)
        if any(outdated(job, run, start) for job, run in zip(jobs, runs, strict=True)):
            old.append('/'.join(key))
        if any(judged_exploring(job, run) for job, run in zip(jobs, runs, strict=True)):
            noisy.append('/'.join(key))
    if old:
        warnings.append(
            f'made with other settings, or from another start, than those of this program; delete '
            f'them to make them again: {", ".join(old)}'
        )
    if noisy:
        warnings.append(
            f'judged with the noise that they explored with, which costs them score; delete them '
            f'to make them again: {", ".join(noisy)}'
        )
    return warnings


def _row(key: tuple[str, str, str], report: Report, errors: dict[int, str]) -> dict[str, Any]:
    task, regime, method = key
    runs = report.results[key]
    row: dict[str, Any] = {
        'task': task,
        'regime': regime,
        'method': method,
        'seeds': len(runs),
        'score_kind': TASKS[task].score_kind,
        'failed': len(errors),
        'errors': {str(seed): text for seed, text in errors.items()},
    }
    if not runs:
        return row
    own = [run['score'] for run in runs]
    whole = estimate({task: own})
    twin = baseline(method)
    other = [run['score'] for run in report.results.get((task, regime, twin), [])]
    better = math.nan
    if method != BASELINE:
        better = probability_of_improvement({task: own}, {task: other})
    row |= {
        'iqm': whole.iqm,
        'ci_low': whole.low,
        'ci_high': whole.high,
        'scores': own,
        'score_exploring': _middle(runs, lambda run: run.get('score_exploring')),
        'baseline': twin,
        'better_than_baseline': better,
        'env_steps': _mean(runs, 'control_steps'),
        'wall_s': _mean(runs, 'wall_s'),
        'update_s': _mean(runs, 'update_s'),
        'rollout_s': _mean(runs, 'rollout_s'),
        'cpu_s': _mean(runs, 'cpu_s'),
        'gap_nats': _mean(runs, 'gap_nats'),
        'exact_gap_nats': _mean(runs, 'exact_gap_nats'),
        'action_std': _mean(runs, 'action_std_ratio'),
        'student': _middle(runs, lambda run: run.get('student')),
        'collapsed': sum(run['collapsed'] for run in runs),
        'alarmed': sum(alarm_at(run) is not None for run in runs),
        'rolled_back': sum(run['alarms'] for run in runs),
        'programs': _programs(runs),
    }
    for k in SWEEP:
        row[f'success_k{k}'] = _middle(runs, lambda run, k=k: run['sweep'].get(k))
    for k in ('1', '10'):
        row[f'zero_noise_k{k}'] = _middle(runs, lambda run, k=k: run['zero_noise'].get(k))
    for level in ('08', '095'):
        # A run that never got there has no number, and leaving it out would flatter the method:
        # the median counts it as infinitely long.
        for unit in ('steps', 'minutes'):
            name = f'{unit}_to_{level}'
            values = [math.inf if run[name] is None else run[name] for run in runs]
            row[name] = float(np.median(values))
        row[f'reached_{level}'] = sum(run[f'steps_to_{level}'] is not None for run in runs)
    return row


def _programs(runs: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({run.get('program', UNKNOWN) for run in runs})


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    values = [run[name] for run in runs if run.get(name) is not None]
    return float(np.mean(values)) if values else math.nan


def _middle(runs: Sequence[dict[str, Any]], pick: Callable[[dict[str, Any]], Any]) -> float:
    values = [value for value in map(pick, runs) if value is not None]
    return interquartile_mean(values) if values else math.nan


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ('method', lambda row: row['method']),
    ('seeds', lambda row: str(row['seeds'])),
    ('score, IQM [95 %]', lambda row: _interval(row)),
    ('exploring', lambda row: _number(row.get('score_exploring'))),
    ('to 0.8 (min)', lambda row: _reached(row, '08')),
    ('to 0.95 (min)', lambda row: _reached(row, '095')),
    *((f'K={k}', lambda row, k=k: _number(row.get(f'success_k{k}'))) for k in SWEEP),
    ('student', lambda row: _number(row.get('student'))),
    ('gap, fitted', lambda row: _number(row.get('gap_nats'))),
    ('gap, exact (nats)', lambda row: _number(row.get('exact_gap_nats'))),
    ('std', lambda row: _number(row.get('action_std'))),
    ('collapsed', lambda row: _count(row, 'collapsed')),
    ('alarm', lambda row: _count(row, 'alarmed')),
    ('cpu (s)', lambda row: _number(row.get('cpu_s'))),
)


def markdown(report: Report) -> str:
    """Return a table for each task and regime, the aggregate over tasks, and the warnings."""
    parts = []
    for task, regime in dict.fromkeys((row['task'], row['regime']) for row in report.rows):
        rows = [r for r in report.rows if (r['task'], r['regime']) == (task, regime)]
        steps = [r['env_steps'] for r in rows if r.get('env_steps')]
        about = f', {np.mean(steps):.0f} control steps' if steps else ''
        kind = rows[0]['score_kind']
        parts.append(f'### {task}, {regime} (score: {kind}{about})\n')
        parts.append(
            _table([name for name, _ in COLUMNS], [[f(r) for _, f in COLUMNS] for r in rows])
        )
        for row in rows:
            parts += [f'failed: {row["method"]} seed {k}: {e}' for k, e in row['errors'].items()]
    if report.aggregates:
        parts.append('### over all tasks judged by success\n')
        lines = []
        for (regime, method), one in report.aggregates.items():
            better, tasks = _number(one.better), ', '.join(one.tasks)
            rival = f'{better} ({one.baseline})' if better else ''
            both = ', '.join(one.compared)
            lines.append([regime, method, str(one.seeds), str(one.whole), tasks, rival, both])
        header = ['regime', 'method', 'seeds', 'IQM [95 %]', 'tasks']
        header += ['P(better than)', 'on the tasks of both']
        parts.append(_table(header, lines))
    parts += [f'Warning: {text}' for text in report.warnings]
    return '\n'.join(parts) if parts else 'no results yet'


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write learn.json, learn.md and the pictures; return their paths. Raises UserError."""
    from dipod_ros.learning.bench.learn_plots import draw

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / 'learn.json', report.rows)
        write_file(folder / 'learn.md', (markdown(report) + '\n').encode())
        pictures = draw(report, folder)
    except OSError as error:
        raise UserError(f'cannot write {folder}: {error.strerror or error}') from error
    return [folder / 'learn.json', folder / 'learn.md', *pictures]


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ['---'] * len(header)
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in (header, rule, *lines)) + '\n'


def _interval(row: dict[str, Any]) -> str:
    if row['seeds'] == 0:
        return 'failed'
    if row['seeds'] == 1:
        return f'{short(row["iqm"])} (one seed)'
    return str(Estimate(row['iqm'], row['ci_low'], row['ci_high']))


def _reached(row: dict[str, Any], level: str) -> str:
    if row['seeds'] == 0 or row['score_kind'] != 'success':
        return ''
    text = f'{row[f"reached_{level}"]}/{row["seeds"]}'
    minutes = row[f'minutes_to_{level}']
    return f'{minutes:.0f} ({text})' if math.isfinite(minutes) else f'never ({text})'


def _number(value: float | None) -> str:
    return '' if value is None or not math.isfinite(value) else short(value)


def _count(row: dict[str, Any], name: str) -> str:
    return f'{row[name]}/{row["seeds"]}' if name in row else ''
