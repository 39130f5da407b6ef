# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of learning runs: suites of tasks x regimes x methods x seeds. No torch.

Tasks and regimes are in regimes.py, methods in methods.py, a single run in jobs.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.jobs import Job, check_names, problems
from dipod_ros.learning.bench.methods import FINALISTS, METHODS, SWEPT
from dipod_ros.learning.bench.regimes import REGIMES, TASKS

log = logging.getLogger(__name__)

MAX_SEEDS = 100


@dataclass(frozen=True)
class Suite:
    """Tasks x regimes x methods, and how many seeds it wants."""

    about: str
    tasks: tuple[str, ...]
    regimes: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int = 5
    first_seed: int = 0


ARM = ('reach', 'pillar_reach', 'rail_push')
DRIFT = ('fpo++', 'dipod', 'dipod_0.1', 'dipod_interleaved')
OTHERS = ('dppo', 'reinflow', 'gaussian_ppo')

SUITES = {
    'smoke': Suite(
        'seconds: every part runs', ('pillar_reach',), ('smoke',), ('fpo++', 'dipod_0.1'), 1
    ),
    'quick': Suite(
        'minutes: a first look',
        ('pillar_reach',),
        ('quick',),
        ('fpo++', 'dipod_0.1', 'dppo', 'gaussian_ppo'),
        2,
    ),
    'main': Suite(
        'all methods on the arm tasks',
        ARM,
        ('default',),
        (*DRIFT, 'dipod_adaptive', 'fpo', 'aspo', *OTHERS, 'fpo++_guarded'),
    ),
    'clip': Suite(
        'how wide the trust region is',
        ('pillar_reach',),
        ('clip_0.05', 'default', 'clip_0.5', 'clip_1.0'),
        (*DRIFT, 'dipod_0.3', 'aspo', 'fpo++_guarded'),
    ),
    'beta': Suite(
        'how strong the regulariser is',
        ('pillar_reach',),
        ('default', 'clip_1.0'),
        ('fpo++', 'dipod', 'dipod_0.1', 'dipod_0.3', 'dipod_1'),
    ),
    'long': Suite(
        'what remains after four times the data',
        ('pillar_reach',),
        ('long',),
        (*DRIFT, 'dipod_0.3', 'dipod_adaptive', 'fpo++_guarded', 'dppo'),
    ),
    'regimes': Suite(
        'reuse, staleness, a bad start',
        ('pillar_reach',),
        ('stored_4', 'epochs_12', 'epochs_80', 'window_3', 'stale', 'sparse'),
        DRIFT,
    ),
    'scratch': Suite(
        'random weights and a dense reward',
        ('hopper',),
        ('scratch',),
        ('fpo++', 'dipod_0.1', 'dppo', 'gaussian_ppo'),
        3,
    ),
    'critic': Suite(
        'the off-policy critic where drift should bite',
        ('pillar_reach',),
        ('clip_0.5', 'clip_1.0', 'long', 'stale', 'window_3'),
        ('fpo++_q', 'dipod_0.1_q'),
    ),
    'gait': Suite(
        'a dense reward with the plain critic, large steps averaged, the off-policy critic',
        ('hopper', 'walker2d'),
        ('default',),
        (
            'fpo++_plain',
            'dipod_0.1_plain',
            'fpo++_ema',
            'dipod_0.1_ema',
            'fpo++_q_alone',
            'dipod_0.1_q_alone',
        ),
    ),
    'dense': Suite(
        'critic and advantages as for a dense reward, where the reward is at the end',
        ('pillar_reach',),
        ('default',),
        ('fpo++', 'fpo++_dense', 'dipod_0.1', 'dipod_0.1_dense'),
        3,
    ),
    'controls': Suite(
        'what of the regulariser does the work',
        ('pillar_reach',),
        ('default', 'clip_1.0'),
        (
            'fpo++',
            'dipod_0.1',
            'small_clip',
            'bc_anchor',
            'negative_only',
            'positive_only',
            'initial_distillation',
            'sde_rollouts',
        ),
    ),
    'arm_time': Suite(
        'what 13 minutes of an arm are enough for',
        ('pillar_reach',),
        ('arm_20k',),
        (
            'fpo++',
            'dipod_0.1',
            'dipod_0.1_ema',
            'dipod_0.1_demos',
            'dipod_0.1_ema_demos',
            'fpo++_q',
            'dipod_0.1_q',
            'dppo_q',
            'dipod_0.1_q_alone',
        ),
    ),
    'tuned': Suite(
        'each method as the sweep chose it, and with the off-policy critic',
        (*ARM, 'cube_single'),
        ('default',),
        (
            'fpo++_tuned',
            'fpo++_ema',
            'dipod_0.1_ema',
            'dipod_0.3_ema',
            'dppo_tuned',
            'reinflow_tuned',
            'gaussian_ppo_tuned',
            'fpo++_q',
            'dipod_0.1_q',
            'dppo_q',
            'dipod_0.1_q_alone',
        ),
    ),
    'sparse': Suite(
        'a start that succeeds one time in ten',
        ('pillar_reach',),
        ('sparse', 'sparse_128'),
        ('fpo++', 'dipod_0.1', 'dipod_0.1_self', 'fpo++_q_alone', 'dipod_0.1_q_alone'),
        3,
    ),
    'sweep': Suite(
        'eight settings of each method, on a seed of their own',
        ('pillar_reach',),
        ('sweep',),
        tuple(SWEPT),
        1,
        first_seed=100,
    ),
    'finals': Suite(
        'the best three settings of each method once more',
        ('pillar_reach',),
        ('sweep',),
        FINALISTS,
        1,
        first_seed=101,
    ),
    'external': Suite(
        'tasks that others made',
        ('cube_single', 'hopper', 'walker2d'),
        ('default',),
        ('fpo++', 'dipod', 'dipod_0.1', 'dipod_adaptive', *OTHERS, 'sb3_ppo'),
    ),
}


def plan(
    suites: Sequence[str],
    *,
    seeds: int | None = None,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    regimes: Sequence[str] | None = None,
) -> list[Job]:
    """Return the jobs of some suites, seed 0 of everything first, none twice.

    `tasks`, `methods`, `regimes` and `seeds` take the place of those of the suites. An interrupted
    benchmark is balanced that way. Without `methods`, those that are not for a task are left out,
    and what another library learns where that is not installed, which is logged. Raises UserError
    for unknown names and an impossible count.
    """
    check_names('suite', suites, SUITES)
    check_names('task', tasks or (), TASKS)
    check_names('method', methods or (), METHODS)
    check_names('regime', regimes or (), REGIMES)
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UserError(f'seeds must be within 1..{MAX_SEEDS}, got {seeds}')
    jobs: dict[Job, None] = {}
    for name in suites:
        suite = SUITES[name]
        for seed in range(suite.first_seed, suite.first_seed + (seeds or suite.seeds)):
            for task in tasks or suite.tasks:
                for regime in regimes or suite.regimes:
                    for method in methods or suite.methods:
                        jobs[Job(task, method, seed, regime)] = None
    # One that was asked for by name is refused later, and by name.
    return sorted(jobs if methods else _possible(jobs), key=lambda job: job.seed)


def _possible(jobs: Iterable[Job]) -> list[Job]:
    """Leave out methods where they are not for the task, or their library is not there."""
    left_out: dict[str, None] = {}
    possible = []
    for job in jobs:
        unfit, missing = problems(job)
        if unfit is None and missing is None:
            possible.append(job)
        elif unfit is None:
            left_out[missing] = None
    for text in left_out:
        log.warning('left out: %s', text)
    return possible


def unplanned(run_dir: Path) -> list[str]:
    """Return task/regime/method of results in a folder that no suite has, sorted."""
    planned = {str(job).rpartition('/')[0] for name in SUITES for job in plan([name])}
    found = {
        '/'.join(file.parent.relative_to(run_dir).parts)
        for file in Path(run_dir).glob('*/*/*/seed*.json')
    }
    return sorted(found - planned)


def describe() -> str:
    """Return all suites, tasks, regimes and methods as text."""
    lines = ['suites']
    for name, suite in SUITES.items():
        jobs = len(plan([name]))
        lines.append(f'  {name:22} {suite.about} ({jobs} jobs, {suite.seeds} seeds)')
        for what in ('tasks', 'regimes', 'methods'):
            names = getattr(suite, what)
            text = ' '.join(names) if names != tuple(SWEPT) else 'the settings of the sweep, below'
            lines.append(f'  {"":23}  {what}: {text}')
    lines.append('tasks')
    for name, task in TASKS.items():
        lines.append(
            f'  {name:22} {task.control_steps} control steps, {task.episodes} episodes per update, '
            f'score: {task.score_kind}'
        )
    once = {name: method for name, method in METHODS.items() if name not in SWEPT}
    for title, table in (('regimes', REGIMES), ('methods', once), ('settings of the sweep', SWEPT)):
        lines += [title, *(f'  {name:22} {entry.about}' for name, entry in table.items())]
    return '\n'.join(lines)
