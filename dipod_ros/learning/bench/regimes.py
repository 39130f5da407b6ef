# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of learning learns on, and under which conditions. No torch.

A task is what is learned and how it is judged; a regime is what learning meets besides its method:
how much data, how often it is used, how wide the trust region is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dipod_ros.learning.dense_reward import DENSE_CRITIC, DENSE_UPDATE


@dataclass(frozen=True)
class Task:
    """How much of a task is learned from and how it is judged."""

    control_steps: int  # of the default regime
    episodes: int = 64  # per update
    score_kind: str = 'success'  # or 'return': the mean undiscounted return of an episode
    worlds: int = 256  # side by side in evaluations
    evaluation_episodes: int = 512  # of the final score, of the student, and to distil on
    sweep_episodes: int = 256  # for each number of evaluations
    # Whether there is reward besides 1 at the end of a success: demonstrations hold none of it.
    shaped: bool = False
    # Tolerance (m) at which the shipped flow succeeds about one time in ten.
    tight_tolerance: float | None = None
    # Of an UpdateConfig and a CriticConfig, for every method that says nothing else.
    update: dict[str, Any] = field(default_factory=dict)
    critic: dict[str, Any] = field(default_factory=dict)


TASKS = {
    'reach': Task(40_000, tight_tolerance=0.005),
    'pillar_reach': Task(80_000, tight_tolerance=0.010),
    'rail_push': Task(80_000, shaped=True),
    # Its worlds are stepped one by one: an episode takes 0.08 s of a core.
    'cube_single': Task(100_000, worlds=64, evaluation_episodes=256, sweep_episodes=64),
    **{
        name: Task(
            400_000,
            16,
            'return',
            worlds=64,
            evaluation_episodes=64,
            sweep_episodes=64,
            shaped=True,
            update=DENSE_UPDATE,
            critic=DENSE_CRITIC,
        )
        for name in ('hopper', 'walker2d')
    },
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
    'default': Regime('40 epochs per update, clip 0.2'),
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
    'sweep': Regime('as default, on the seeds that settings are chosen by', effort=0.5),
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
