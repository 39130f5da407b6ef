# SPDX-License-Identifier: Apache-2.0
"""The result of a job of the benchmark as a file, and what is read off its learning curve."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.jobs import Job, critic_settings, update_config
from dipod_ros.learning.bench.methods import METHODS
from dipod_ros.learning.bench.regimes import REGIMES, TASKS
from dipod_ros.learning.collapse import HealthConfig, first_alarm
from dipod_ros.learning.critic import CriticConfig
from dipod_ros.learning.imitation import ImitationConfig
from dipod_ros.learning.q_critic import QCriticConfig
from dipod_ros.policy.atomic import write_file

SCHEMA = 'dipod_ros.learn/1'
# Success and return are read off the mean of this many updates.
SMOOTHING = 5
# Collapsed: the smoothed score ends below this share of the best that it ever was.
COLLAPSE = 0.5


def outdated(job: Job, result: dict[str, Any], start_sha256: str) -> bool:
    """Return whether a result was made with other settings than the job would be run with now."""
    return not fits(settings_of(job, start_sha256), result['settings'])


def judged_exploring(job: Job, result: dict[str, Any]) -> bool:
    """Return whether a result was judged with exploring noise, as older programs did."""
    if 'score_exploring' in result or METHODS[job.method].module == 'outside':
        return False
    sampler = str(result.get('sampler')).split('-')[0]
    return not METHODS[job.method].flow or sampler not in ('euler', 'midpoint')


def settings_of(job: Job, start_sha256: str) -> dict[str, Any]:
    """Return everything that decides a result besides the program, as plain values."""
    q_critic, imitation = METHODS[job.method].q_critic, METHODS[job.method].imitation
    settings = {
        'method': asdict(METHODS[job.method]),
        'config': asdict(update_config(job)),
        'critic': asdict(CriticConfig(**critic_settings(job))),
        'q_critic': None if q_critic is None else asdict(QCriticConfig(**q_critic)),
        'imitation': None if imitation is None else asdict(ImitationConfig(**imitation)),
        'task': asdict(TASKS[job.task]),
        'regime': asdict(REGIMES[job.regime]),
        'start_sha256': start_sha256,
    }
    for part in ('method', 'regime'):
        del settings[part]['about']
    return json.loads(json.dumps(_plain(settings)))


def smooth(values: list[float]) -> np.ndarray:
    """Return the mean of the last SMOOTHING values at each place; NaN where there are fewer."""
    values = np.asarray(values, dtype=float)
    out = np.full(len(values), np.nan)
    for i in range(SMOOTHING - 1, len(values)):
        out[i] = values[i - SMOOTHING + 1 : i + 1].mean()
    return out


def steps_to(level: float, steps: np.ndarray, smoothed: np.ndarray) -> int | None:
    """Return the control steps after which the smoothed score first is `level`, or None."""
    reached = np.flatnonzero(smoothed >= level)
    return int(steps[reached[0]]) if len(reached) else None


def collapsed(smoothed: np.ndarray) -> bool:
    """Return whether the smoothed score ended below half of the best that it was."""
    known = smoothed[np.isfinite(smoothed)]
    return bool(len(known) and known.max() > 0 and known[-1] < COLLAPSE * known.max())


def alarm_at(result: dict[str, Any]) -> int | None:
    """Return the control steps after which the collapse alarm rings, or None.

    Read off the curve by the present rule, whatever the rule was when the job ran.
    """
    job = Job(**result['job'])
    if METHODS[job.method].module == 'outside':  # its curve says nothing of its actions
        return None
    keeps_flow = update_config(job).build().keeps_flow
    return first_alarm(numbers(result['curve']), HealthConfig(), keeps_flow)


def read_result(file: Path) -> dict[str, Any] | None:
    """Return a result, or None when there is none; raises UserError for a file that is none."""
    if not Path(file).is_file():
        return None
    try:
        result = json.loads(Path(file).read_text(encoding='utf-8'))
        if result['schema'] == SCHEMA and 'settings' in result:
            return result
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f'{file} is no result of this benchmark: delete it to make it again')


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write values atomically; what is no number becomes null. Raises UserError."""
    text = json.dumps(_plain(values), indent=1, allow_nan=False) + '\n'
    try:
        write_file(Path(file), text.encode())
    except OSError as error:
        raise UserError(f'cannot write {file}: {error.strerror or error}') from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def numbers(value: Any) -> Any:
    """Return plain values with NaN where there is null."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return math.nan if value is None else value


def fits(mine: Any, other: Any) -> bool:
    """Return whether two settings agree in all that both name: a newer program has more names."""
    if isinstance(mine, dict) and isinstance(other, dict):
        return all(fits(mine[key], other[key]) for key in mine.keys() & other.keys())
    return mine == other
