# SPDX-License-Identifier: Apache-2.0
"""`dipod bench learn`: methods of online learning beside each other, on several tasks and seeds.

What is compared is in learning/bench/suites.py, what comes out in docs/bench_learn.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dipod_ros.cli.output import write_json
from dipod_ros.errors import UserError
from dipod_ros.policy.writable import require_writable

OPTIONS = (
    'suite', 'seeds', 'tasks', 'methods', 'regimes', 'jobs', 'run_dir', 'report', 'minutes', 'list',
)  # fmt: skip
RUN_DIR = 'runs/bench_learn'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that belong to `learn` alone; all default to None."""
    group = parser.add_argument_group('learn', 'only with `dipod bench learn`')
    group.add_argument('--suite', nargs='+', metavar='NAME', help='see --list (default main)')
    group.add_argument('--seeds', type=int, metavar='N', help='instead of those of the suite')
    for what in ('tasks', 'methods', 'regimes'):
        group.add_argument(
            f'--{what}', nargs='+', metavar='NAME', help='instead of those of the suite'
        )
    group.add_argument('--jobs', type=int, metavar='N', help='worker processes (default 1)')
    group.add_argument('--run-dir', metavar='DIR', help=f'default {RUN_DIR}; resumed when there')
    group.add_argument('--report', metavar='DIR', help='write learn.json, tables and pictures')
    group.add_argument(
        '--minutes', type=float, metavar='LIMIT', help='stop then; 0 only reports what is there'
    )
    group.add_argument(
        '--list', action='store_true', default=None, help='show suites, tasks, methods; do nothing'
    )


def given(args: argparse.Namespace) -> list[str]:
    """Return the options of `learn` that were given."""
    return [f'--{name.replace("_", "-")}' for name in OPTIONS if getattr(args, name) is not None]


def run(args: argparse.Namespace) -> int:
    """Run the jobs that have no result yet, then report on all of them."""
    from dipod_ros.learning.bench import suites

    if args.list:
        print(suites.describe())
        return 0
    if args.report:
        require_writable(args.report, folder=True)
    workers = 1 if args.jobs is None else args.jobs
    if workers < 1:
        raise UserError(f'--jobs must be at least 1, got {workers}')
    if args.minutes is not None and not args.minutes >= 0:
        raise UserError(f'--minutes must not be negative, got {args.minutes}')
    jobs = suites.plan(
        args.suite or (['quick'] if args.quick else ['main']),
        seeds=args.seeds,
        tasks=args.tasks,
        methods=args.methods,
        regimes=args.regimes,
    )
    jobs = _possible(jobs, asked=bool(args.methods))
    run_dir = Path(args.run_dir or RUN_DIR)
    outcome = _learn(jobs, run_dir, workers, args.minutes)
    return _report(jobs, run_dir, outcome, args)


def _possible(jobs: list, asked: bool) -> list:
    """Return the jobs whose method fits; raises UserError for one that was asked for by name."""
    from dipod_ros.learning.bench.jobs import update_config

    left_out: dict[str, None] = {}
    fit = []
    for job in jobs:
        try:
            update_config(job)
            fit.append(job)
        except UserError as error:
            if asked:
                raise
            left_out[str(error)] = None
    for text in left_out:
        print(f'left out: {text}')
    if not fit:
        raise UserError('nothing is left to run')
    return fit


def _learn(jobs: list, run_dir: Path, workers: int, minutes: float | None):
    import sys

    from tqdm import tqdm

    from dipod_ros.learning.bench.experiment_pool import run_jobs
    from dipod_ros.learning.bench.experiment_start import start_folder

    missing = [job for job in jobs if not job.file(run_dir).is_file()]
    if minutes != 0:
        # Before the workers, which would all wait for the first to have made it.
        for task in dict.fromkeys(job.task for job in missing):
            start_folder(task, say=print)
    done = len(jobs) - len(missing)
    form = '{desc}: {n:.1f}/{total} {bar} {elapsed}<{remaining}{postfix}'
    # A log file needs no picture of every moment.
    pause = 0.5 if sys.stderr.isatty() else 60.0
    with tqdm(
        total=len(jobs), initial=done, desc='jobs', bar_format=form, mininterval=pause, miniters=0
    ) as bar:

        def show(finished: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(finished - bar.n)

        seconds = float('inf') if minutes is None else 60 * minutes
        return run_jobs(jobs, run_dir, workers=workers, seconds=seconds, show=show)


def _report(jobs: list, run_dir: Path, outcome: Any, args: argparse.Namespace) -> int:
    from dipod_ros.cli.bench_report import machine_facts
    from dipod_ros.learning.bench.learn_report import collect, markdown, write_report

    report = collect(jobs, run_dir)
    print(markdown(report))
    for job, text in outcome.failed.items():
        print(f'failed: {job}: {text}')
    for kind in ('elsewhere', 'left'):
        names = getattr(outcome, kind)
        if names:
            print(f'{kind}: {len(names)} jobs, first {names[0]}')
    if args.json:
        aggregates = [
            {'regime': regime, 'method': method, **one.to_dict()}
            for (regime, method), one in report.aggregates.items()
        ]
        results = {
            'machine': machine_facts(),
            'rows': report.rows,
            'aggregates': aggregates,
            'warnings': report.warnings,
        }
        print(f'results: {write_json(args.json, results)}')
    if args.report:
        for path in write_report(report, Path(args.report)):
            print(path)
    return 1 if outcome.failed else 0
