# SPDX-License-Identifier: Apache-2.0
"""One training run of the benchmark of learning, and the settings it runs with. No torch.

Tasks and regimes are in regimes.py, methods in methods.py, what belongs together in suites.py.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.methods import METHODS
from dipod_ros.learning.bench.regimes import REGIMES, TASKS, Regime

if TYPE_CHECKING:
    from dipod_ros.learning.algorithms.base import UpdateConfig
    from dipod_ros.learning.bench.outside import OutsideConfig

# The same for every method, for speed; a learner on its own has float32.
SHARED = {'precision': 'bfloat16'}
# What a method of learning/bench/outside.py is for, and what it imports.
OUTSIDE_TASKS = ('hopper', 'walker2d')
OUTSIDE_NEEDS = ('stable_baselines3', 'imageio')


@dataclass(frozen=True)
class Job:
    """One training run."""

    task: str
    method: str
    seed: int
    regime: str = 'default'

    def __post_init__(self) -> None:
        for kind, name, table in (
            ('task', self.task, TASKS),
            ('method', self.method, METHODS),
            ('regime', self.regime, REGIMES),
        ):
            check_names(kind, [name], table)

    def __str__(self) -> str:
        return f'{self.task}/{self.regime}/{self.method}/seed{self.seed}'

    def file(self, folder: Path, suffix: str = '.json') -> Path:
        """Return a file of this job: its result, or beside it what `suffix` names."""
        path = Path(folder) / self.task / self.regime / self.method
        return path / f'seed{self.seed}{suffix}'


def check_names(kind: str, names: Sequence[str], allowed: dict[str, Any]) -> None:
    """Raise UserError, listing what is allowed, when one of the names is not."""
    for name in names:
        if name not in allowed:
            raise UserError(f'unknown {kind} {name!r}: use one of {list(allowed)}')


def problems(job: Job) -> tuple[str | None, str | None]:
    """Return why a method is not for its task, and why it cannot run here."""
    method = METHODS[job.method]
    if method.q_critic is not None and method.demonstrations and TASKS[job.task].shaped:
        return (
            f'method {job.method} shows demonstrations to its Q critic, and they hold none of the '
            f'rewards of {job.task}: use a method without, such as dipod_0.1_q_alone'
        ), None
    if method.module != 'outside':
        return None, None
    unfit = missing = None
    if job.task not in OUTSIDE_TASKS:
        known = ' and '.join(OUTSIDE_TASKS)
        unfit = f'method {job.method} is for {known} only: leave out {job.task}'
    lacks = [name for name in OUTSIDE_NEEDS if importlib.util.find_spec(name) is None]
    if lacks:
        missing = f'method {job.method} needs {", ".join(lacks)}: pip install "dipod_ros[bench]"'
    return unfit, missing


def critic_settings(job: Job) -> dict[str, Any]:
    """Return what a job's critic of states has besides its defaults, of a CriticConfig."""
    return TASKS[job.task].critic | METHODS[job.method].critic


def update_config(job: Job) -> UpdateConfig | OutsideConfig:
    """Return the settings of a job's method under its regime.

    Raises UserError when the method is not installed, is not for the task, or has not what the
    regime changes.
    """
    method, regime = METHODS[job.method], REGIMES[job.regime]
    outside = method.module == 'outside'
    for problem in filter(None, problems(job)):
        raise UserError(problem)
    path = f'dipod_ros.learning.{"bench." if outside else "algorithms."}{method.module}'
    if importlib.util.find_spec(path) is None:
        raise UserError(f'method {job.method} is not part of this installation: leave it out')
    make = getattr(importlib.import_module(path), method.config)
    known = {field.name for field in fields(make)}
    usual = {k: v for k, v in TASKS[job.task].update.items() if k in known}
    config = make(**(usual | method.settings))
    changes = {
        name: value
        for name, value in (('epochs', regime.epochs), ('clip', regime.clip))
        if value is not None
    }
    if outside:  # the learner of all others has these; PPO has batches of its own
        plain = Regime('')
        names = ('lag', 'tight', 'window')
        values = {name: getattr(regime, name) for name in names}
        changes |= {name: v for name, v in values.items() if v != getattr(plain, name)}
    if regime.stored_samples is not None:
        changes |= {'samples_per_action': regime.stored_samples, 'samples_per_step': 0}
    shared = {name: value for name, value in SHARED.items() if hasattr(config, name)}
    for name in changes:
        if not hasattr(config, name):
            raise UserError(f'method {job.method} has no {name}: leave it out of {job.regime}')
    return replace(config, **(shared | changes))
