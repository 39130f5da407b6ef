# SPDX-License-Identifier: Apache-2.0
"""What the trainer says about itself: ~/status when it changes, /diagnostics at 1 Hz."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dipod_ros.ros.diagnostics import Level, Report

if TYPE_CHECKING:
    from dipod_ros.learning.run import TrainingRun


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
    state: str, error: str, metrics: dict[str, float], undecodable: int, counts: Counter[str]
) -> Report:
    """Report how learning goes; `counts` may be counted on by another thread meanwhile."""
    counts = dict(counts)  # at once: a new counter in the middle of a loop over it is an error
    level, message = Level.OK, state
    if error:
        level, message = Level.ERROR, error
    elif metrics.get('collapsed'):
        level, message = Level.WARN, 'the last update collapsed and was taken back'
    elif undecodable or counts.get('invalid'):
        level, message = Level.WARN, 'records on replay that are no decisions of this policy'
    return Report(level, message, {**metrics, **{f'replay_{k}': v for k, v in counts.items()}})
