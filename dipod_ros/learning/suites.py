# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of learning compares: tasks, regimes, methods, and suites of them. No torch.

A method is a configuration with a name, a regime is what learning meets besides (how much data, how
often it is used, how wide the trust region is). A suite is a set of jobs, one per task, regime,
method and seed.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipod_ros.errors import UserError
from dipod_ros.policy.spec import SamplerSpec

if TYPE_CHECKING:
    from dipod_ros.learning.algorithms.base import UpdateConfig
    from dipod_ros.learning.outside import OutsideConfig

log = logging.getLogger(__name__)

MAX_SEEDS = 100
# The same for every method, for speed; a learner on its own has float32.
SHARED = {'precision': 'bfloat16'}
# Those that a row is compared with, in the order of preference.
BASELINE = 'fpo++'
# What a method of learning/outside.py is for, and what it imports.
OUTSIDE_TASKS = ('hopper', 'walker2d')
OUTSIDE_NEEDS = ('stable_baselines3', 'imageio')


@dataclass(frozen=True)
class Task:
    """How much of a task is learned from and how it is judged."""

    control_steps: int  # of the default regime
    episodes: int = 64  # per update
    score_kind: str = 'success'  # or 'return': the mean undiscounted return of an episode
    worlds: int = 256  # side by side in evaluations
    evaluation_episodes: int = 512  # of the final score, of the student, and to distil on
    sweep_episodes: int = 256  # for each number of evaluations
    # Tolerance (m) at which the shipped flow succeeds about one time in ten.
    tight_tolerance: float | None = None


TASKS = {
    'reach': Task(40_000, tight_tolerance=0.005),
    'pillar_reach': Task(80_000, tight_tolerance=0.010),
    'rail_push': Task(80_000),
    # Its worlds are stepped one by one: an episode takes 0.08 s of a core.
    'cube_single': Task(100_000, worlds=64, evaluation_episodes=256, sweep_episodes=64),
    'hopper': Task(400_000, 16, 'return', worlds=64, evaluation_episodes=64, sweep_episodes=64),
    'walker2d': Task(400_000, 16, 'return', worlds=64, evaluation_episodes=64, sweep_episodes=64),
}


@dataclass(frozen=True)
class Regime:
    """What differs from the default; None leaves the task's or the method's own value."""

    about: str
    epochs: int | None = None
    clip: float | None = None
    # Monte-Carlo samples (t, eps) per action, met again in every epoch instead of drawn from a pool
    stored_samples: int | None = None
    control_steps: int | None = None
    budget: float = 1.0  # times the task's control steps
    lag: int = 0  # updates between a rollout and learning from it
    window: int = 1  # newest rollouts that each update learns from
    start: str = 'cloned'  # or 'scratch': random weights behind the cloned normaliser
    tight: bool = False  # the task's tight tolerance, in learning and in evaluation
    episodes: int | None = None
    gap_every: int = 10  # updates between estimates of the ELBO gap
    # Share of the evaluations' episodes and of the steps of distillation.
    effort: float = 1.0


REGIMES = {
    'default': Regime('64 episodes per update, 40 epochs, clip 0.2'),
    'clip_0.05': Regime('clip 0.05', clip=0.05, effort=0.5),
    'clip_0.5': Regime('clip 0.5', clip=0.5, effort=0.5),
    'clip_1.0': Regime('clip 1.0: no floor under the ratio of bad actions', clip=1.0, effort=0.5),
    'epochs_12': Regime('12 epochs per update', epochs=12, effort=0.5),
    'epochs_80': Regime('80 epochs per update', epochs=80, effort=0.5),
    'stored_4': Regime(
        '4 stored (t, eps) per action, the same in every epoch', stored_samples=4, effort=0.5
    ),
    'long': Regime('4 times the control steps', budget=4.0, gap_every=20, effort=0.5),
    'stale': Regime('learns from the rollout collected 4 updates ago', lag=4, effort=0.5),
    'window_3': Regime(
        '32 episodes per update, each learned from in 3 updates of 20 epochs',
        episodes=32,
        epochs=20,
        window=3,
        effort=0.5,
    ),
    'sparse': Regime(
        'tighter tolerance: succeeds one time in ten at the start', tight=True, effort=0.5
    ),
    'sparse_128': Regime(
        'as sparse, with 128 episodes per update and 10 epochs',
        tight=True,
        episodes=128,
        epochs=10,
        effort=0.5,
    ),
    'scratch': Regime(
        'random weights; with a sparse reward nothing can be expected', start='scratch'
    ),
    # An update of 64 episodes takes 2500 steps: none begins after these, so as to end in time.
    'arm_20k': Regime(
        'no update begins after 17 500 control steps: 17 500 to 20 500 in all',
        control_steps=17_500,
        gap_every=100,
        effort=0.5,
    ),
    'quick': Regime('20 000 control steps', control_steps=20_000),
    'smoke': Regime(
        'two small updates: shows that it works, not what it does',
        epochs=2,
        control_steps=500,
        episodes=8,
        gap_every=2,
        effort=0.02,
    ),
}


@dataclass(frozen=True)
class Method:
    """A configuration with a name."""

    about: str
    # Of dipod_ros.learning.algorithms, or 'outside': learned by another library, from scratch.
    module: str = 'dipod'
    config: str = 'DipodConfig'
    settings: dict[str, Any] = field(default_factory=dict)
    # With the learner's collapse alarm: roll back, then half the learning rate and half the epochs.
    guarded: bool = False
    sampler: SamplerSpec | None = None  # instead of the one of the checkpoint
    imitation: dict[str, Any] | None = None  # of an ImitationConfig; None is none
    demonstrations: bool = False  # whether those that the start was cloned from are imitated
    critic: dict[str, Any] = field(default_factory=dict)  # of a CriticConfig
    critic_warmup_updates: int = 1
    # Whether steps of a sampler make the actions, so that other numbers of them mean something.
    flow: bool = True


def _interleaved(about: str, **settings: Any) -> Method:
    return Method(about, 'self_distillation', 'InterleavedConfig', settings)


# Three times the usual rate; the average over the last 20 gradient steps acts.
LARGE = {'learning_rate': 1e-3, 'ema': 0.95}

METHODS = {
    'fpo++': Method('FPO++, per-sample ratio', settings={'beta': 0.0}),
    'dipod': Method('DiPOD, beta 0.03', settings={'beta': 0.03}),
    'dipod_0.1': Method('DiPOD, beta 0.1', settings={'beta': 0.1}),
    'dipod_0.3': Method('DiPOD, beta 0.3', settings={'beta': 0.3}),
    'dipod_1': Method('DiPOD, beta 1', settings={'beta': 1.0}),
    'dipod_adaptive': Method(
        'DiPOD, beta adapted to a gap of 1 nat', settings={'beta': 0.03, 'gap_target': 1.0}
    ),
    'dipod_interleaved': _interleaved('Algorithm 1: bursts of self-distillation'),
    'fpo': Method('FPO, ratio per action', settings={'beta': 0.0, 'ratio': 'action'}),
    'aspo': Method('FPO++ with ASPO', settings={'beta': 0.0, 'trust_region': 'aspo'}),
    'dppo': Method('DPPO', 'dppo', 'DppoConfig'),
    'reinflow': Method('ReinFlow', 'reinflow', 'ReinFlowConfig'),
    'gaussian_ppo': Method('Gaussian PPO', 'gaussian_ppo', 'GaussianPpoConfig', flow=False),
    'fpo++_guarded': Method('FPO++ with the alarm', settings={'beta': 0.0}, guarded=True),
    'small_clip': Method('FPO++, clip 0.05', settings={'beta': 0.0, 'clip': 0.05}),
    'bc_anchor': Method(
        'holds the cloned actions, beta 0.1', settings={'beta': 0.1, 'anchor': 'start'}
    ),
    'negative_only': Method(
        'DiPOD 0.1 on bad actions only', settings={'beta': 0.1, 'regularise': 'negative'}
    ),
    'positive_only': Method(
        'DiPOD 0.1 on good actions only', settings={'beta': 0.1, 'regularise': 'positive'}
    ),
    'initial_distillation': _interleaved(
        'one self-distillation before the first update', initial_steps=300, burst_every=0
    ),
    'sde_rollouts': Method(
        'FPO++ on the SDE sampler, for which its loss is a bound',
        settings={'beta': 0.0},
        sampler=SamplerSpec('sde', 10),
    ),
    'dipod_0.1_demos': Method(
        'DiPOD 0.1, demonstrations kept in the batch',
        settings={'beta': 0.1},
        imitation={'weight': 0.3},
        demonstrations=True,
    ),
    'dipod_0.1_ema': Method('DiPOD 0.1, large steps averaged', settings={'beta': 0.1, **LARGE}),
    'dipod_0.1_ema_demos': Method(
        'DiPOD 0.1, large steps averaged, demonstrations kept in the batch',
        settings={'beta': 0.1, **LARGE},
        imitation={'weight': 0.3},
        demonstrations=True,
    ),
    'dipod_0.1_self': Method(
        'DiPOD 0.1, own successes kept in the batch, a small critic',
        settings={'beta': 0.1},
        imitation={'weight': 0.3, 'own_episodes': 256},
        critic={'width': 64, 'learning_rate': 3e-4},
    ),
    'sb3_ppo': Method(
        'PPO of Stable-Baselines3, from scratch; hopper and walker2d only',
        'outside',
        'OutsideConfig',
        flow=False,
    ),
}


@dataclass(frozen=True)
class Suite:
    """Tasks x regimes x methods, and how many seeds it wants."""

    about: str
    tasks: tuple[str, ...]
    regimes: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int = 5


ARM = ('reach', 'pillar_reach', 'rail_push')
DRIFT = ('fpo++', 'dipod', 'dipod_0.1', 'dipod_interleaved')
OTHERS = ('dppo', 'reinflow', 'gaussian_ppo')

SUITES = {
    'smoke': Suite(
        'seconds: every part runs', ('pillar_reach',), ('smoke',), ('fpo++', 'dipod'), 1
    ),
    'quick': Suite(
        'minutes: a first look',
        ('pillar_reach',),
        ('quick',),
        ('fpo++', 'dipod', 'dppo', 'gaussian_ppo'),
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
        'reuse, staleness, a bad start, none',
        ('pillar_reach',),
        ('stored_4', 'epochs_12', 'epochs_80', 'window_3', 'stale', 'sparse', 'scratch'),
        DRIFT,
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
        ('fpo++', 'dipod_0.1', 'dipod_0.1_ema', 'dipod_0.1_demos', 'dipod_0.1_ema_demos'),
    ),
    'sparse': Suite(
        'a start that succeeds one time in ten',
        ('pillar_reach',),
        ('sparse_128',),
        ('fpo++', 'dipod_0.1', 'dipod_0.1_self'),
        3,
    ),
    'external': Suite(
        'tasks that others made',
        ('cube_single', 'hopper', 'walker2d'),
        ('default',),
        ('fpo++', 'dipod', 'dipod_0.1', 'dipod_adaptive', *OTHERS, 'sb3_ppo'),
    ),
}


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


def _outside_problems(job: Job) -> tuple[str | None, str | None]:
    """Return why a job of another library is not for its task, and why it cannot run here."""
    if METHODS[job.method].module != 'outside':
        return None, None
    unfit = missing = None
    if job.task not in OUTSIDE_TASKS:
        known = ' and '.join(OUTSIDE_TASKS)
        unfit = f'method {job.method} is for {known} only: leave out {job.task}'
    lacks = [name for name in OUTSIDE_NEEDS if importlib.util.find_spec(name) is None]
    if lacks:
        missing = f'method {job.method} needs {", ".join(lacks)}: pip install "dipod_ros[bench]"'
    return unfit, missing


def update_config(job: Job) -> UpdateConfig | OutsideConfig:
    """Return the settings of a job's method under its regime.

    Raises UserError when the method is not installed, is not for the task, or has not what the
    regime changes.
    """
    method, regime = METHODS[job.method], REGIMES[job.regime]
    outside = method.module == 'outside'
    for problem in filter(None, _outside_problems(job)):
        raise UserError(problem)
    path = f'dipod_ros.learning.{"" if outside else "algorithms."}{method.module}'
    if importlib.util.find_spec(path) is None:
        raise UserError(f'method {job.method} is not part of this installation: leave it out')
    config = getattr(importlib.import_module(path), method.config)(**method.settings)
    changes = {
        name: value
        for name, value in (('epochs', regime.epochs), ('clip', regime.clip))
        if value is not None
    }
    if outside:  # the learner of all others has these
        changes |= {name: True for name in ('lag', 'tight') if getattr(regime, name)}
    if regime.stored_samples is not None:
        changes |= {'samples_per_action': regime.stored_samples, 'samples_per_step': 0}
    shared = {name: value for name, value in SHARED.items() if hasattr(config, name)}
    for name in changes:
        if not hasattr(config, name):
            raise UserError(f'method {job.method} has no {name}: leave it out of {job.regime}')
    return replace(config, **(shared | changes))


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
    benchmark is balanced that way. Without `methods`, what another library learns is left out where
    that has not the task or is not installed; the latter is logged. Raises UserError for unknown
    names and an impossible count.
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
        for seed in range(seeds or suite.seeds):
            for task in tasks or suite.tasks:
                for regime in regimes or suite.regimes:
                    for method in methods or suite.methods:
                        jobs[Job(task, method, seed, regime)] = None
    # One that was asked for by name is refused later, and by name.
    return sorted(jobs if methods else _possible(jobs), key=lambda job: job.seed)


def _possible(jobs: Iterable[Job]) -> list[Job]:
    """Leave out what another library learns where that has not the task, or is not there."""
    left_out: dict[str, None] = {}
    possible = []
    for job in jobs:
        unfit, missing = _outside_problems(job)
        if unfit is None and missing is None:
            possible.append(job)
        elif unfit is None:
            left_out[missing] = None
    for text in left_out:
        log.warning('left out: %s', text)
    return possible


def describe() -> str:
    """Return all suites, tasks, regimes and methods as text."""
    lines = ['suites']
    for name, suite in SUITES.items():
        jobs = len(plan([name]))
        lines.append(f'  {name:22}{suite.about} ({jobs} jobs, {suite.seeds} seeds)')
        for what in ('tasks', 'regimes', 'methods'):
            lines.append(f'  {"":22}  {what}: {" ".join(getattr(suite, what))}')
    lines.append('tasks')
    for name, task in TASKS.items():
        lines.append(
            f'  {name:22}{task.control_steps} control steps, {task.episodes} episodes per update, '
            f'score: {task.score_kind}'
        )
    for title, table in (('regimes', REGIMES), ('methods', METHODS)):
        lines += [title, *(f'  {name:22}{entry.about}' for name, entry in table.items())]
    return '\n'.join(lines)
