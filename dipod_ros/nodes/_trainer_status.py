# SPDX-License-Identifier: Apache-2.0
"""What the trainer says about itself: ~/status when it changes, /diagnostics at 1 Hz."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dipod_ros.ros.diagnostics import Level, Report

if TYPE_CHECKING:
    from dipod_ros.learning.run import TrainingRun


# What became of the decisions; see learning/replay.py.
COUNTERS = (
    'duplicates', 'lost', 'invalid', 'interrupted', 'incomplete', 'stale', 'skipped', 'overflow',
)  # fmt: skip
# Decisions in a row of which none could be used: a minute of 5 Hz. Then something is wrong.
UNUSABLE = 300
# Why, by counter, and what to look at.
REASONS = {
    'duplicates': 'repeat numbers of their actor; is another program publishing as it?',
    'lost': 'are of episodes with a gap; records get lost on replay',
    'invalid': 'are no decisions of this policy; is another program publishing on replay?',
    'interrupted': 'were not executed as sampled, or had no outcome in time; see the policy server',
    'incomplete': 'are of episodes without beginning or end; does outcome tell of each end?',
    'stale': 'are of policies too old or unknown; the server must act with a flow of this run',
}


def describe(
    run: TrainingRun, state: str, error: str, metrics: dict[str, float], update_s: float
) -> dict[str, Any]:
    """Return what ~/status says."""
    learner, student = run.learner, run.student
    return {
        'state': state,
        'error': error,
        'version': learner.version,
        'updates': learner.updates,
        'episodes': learner.episodes,
        'control_steps': learner.control_steps,
        'alarms': learner.alarms,
        'resumed': run.resumed,
        'checkpoint': str(run.latest.path.resolve()),
        'sha256': run.latest.sha256,
        'student': None if student is None else str(student.path.resolve()),
        'run_dir': str(run.run_dir.resolve()),
        'seed': run.config.learner.seed,
        'update_s': round(update_s, 3),
        'success_rate': metrics.get('success_rate'),
    }


def report(
    state: str,
    error: str,
    metrics: dict[str, float],
    undecodable: int,
    counts: Counter[str],
    unusable: Counter[str],
) -> Report:
    """Report how learning goes; another thread may count on in `counts` and `unusable` meanwhile.

    `unusable` is that of the assembler: decisions since the last usable episode, by reason.
    """
    # At once: a new counter in the middle of a loop over it is an error.
    counts, unusable = dict(counts), dict(unusable)
    level, message = Level.OK, state
    if error:
        level, message = Level.ERROR, error
    elif sum(unusable.values()) >= UNUSABLE:
        worst = max(unusable, key=unusable.__getitem__)
        level = Level.WARN
        message = (
            f'nothing to learn from the last {sum(unusable.values())} decisions: '
            f'{unusable[worst]} {REASONS[worst]} ({worst})'
        )
    elif metrics.get('collapsed'):
        level, message = Level.WARN, 'the last update collapsed and was taken back'
    elif undecodable or counts.get('invalid'):
        level, message = Level.WARN, 'records on replay that are no decisions of this policy'
    return Report(level, message, {**metrics, **{f'replay_{k}': v for k, v in counts.items()}})
