# SPDX-License-Identifier: Apache-2.0
"""The methods that the benchmark of learning compares: configurations with names. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dipod_ros.learning.dense_reward import DENSE_CRITIC, DENSE_UPDATE
from dipod_ros.policy.spec import SamplerSpec


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
    # Whether those that the start was cloned from are imitated, and taught to the Q critic.
    demonstrations: bool = False
    q_critic: dict[str, Any] | None = None  # of a QCriticConfig; None is none
    critic: dict[str, Any] = field(default_factory=dict)  # of a CriticConfig
    critic_warmup_updates: int = 1
    # Whether steps of a sampler make the actions, so that other numbers of them mean something.
    flow: bool = True


def _interleaved(about: str, **settings: Any) -> Method:
    return Method(about, 'self_distillation', 'InterleavedConfig', settings)


# A critic as it is by default, also where the task has another.
PLAIN_CRITIC = {'refresh': False, 'first_sweeps': 1}
# Three times the usual rate; the average over the last 20 gradient steps acts.
LARGE = {'learning_rate': 1e-3, 'ema': 0.95}
# What the sweep chose for DPPO.
DPPO_SWEPT = {'learning_rate': 3e-4, 'epochs': 40, 'ema': 0.95}

METHODS = {
    'fpo++': Method('FPO++, per-sample ratio', settings={'beta': 0.0}),
    'dipod': Method('DiPOD, beta 0.03', settings={'beta': 0.03}),
    'dipod_0.1': Method('DiPOD, beta 0.1', settings={'beta': 0.1}),
    'dipod_0.3': Method('DiPOD, beta 0.3', settings={'beta': 0.3}),
    'dipod_1': Method('DiPOD, beta 1', settings={'beta': 1.0}),
    'dipod_adaptive': Method(
        "DiPOD, beta adapted to a gap 1 nat above the start's",
        settings={'beta': 0.03, 'gap_target': 1.0},
    ),
    'dipod_interleaved': _interleaved('Algorithm 1: bursts of self-distillation'),
    'fpo': Method('FPO, ratio per action', settings={'beta': 0.0, 'ratio': 'action'}),
    'aspo': Method('FPO++ with ASPO', settings={'beta': 0.0, 'trust_region': 'aspo'}),
    'dppo': Method('DPPO', 'dppo', 'DppoConfig'),
    'reinflow': Method('ReinFlow', 'reinflow', 'ReinFlowConfig'),
    'gaussian_ppo': Method('Gaussian PPO', 'gaussian_ppo', 'GaussianPpoConfig', flow=False),
    'fpo++_guarded': Method('FPO++ with the alarm', settings={'beta': 0.0}, guarded=True),
    'fpo++_plain': Method(
        'FPO++, critic and advantages as for a reward at the end',
        settings={'beta': 0.0, 'advantage_clip': 0.0},
        critic=PLAIN_CRITIC,
    ),
    'dipod_0.1_plain': Method(
        'DiPOD 0.1, critic and advantages as for a reward at the end',
        settings={'beta': 0.1, 'advantage_clip': 0.0},
        critic=PLAIN_CRITIC,
    ),
    'fpo++_dense': Method(
        'FPO++, critic and advantages as for a dense reward',
        settings={'beta': 0.0, **DENSE_UPDATE},
        critic=DENSE_CRITIC,
    ),
    'dipod_0.1_dense': Method(
        'DiPOD 0.1, critic and advantages as for a dense reward',
        settings={'beta': 0.1, **DENSE_UPDATE},
        critic=DENSE_CRITIC,
    ),
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
    'fpo++_ema': Method('FPO++, large steps averaged', settings={'beta': 0.0, **LARGE}),
    'dipod_0.1_ema': Method('DiPOD 0.1, large steps averaged', settings={'beta': 0.1, **LARGE}),
    'dipod_0.3_ema': Method('DiPOD 0.3, large steps averaged', settings={'beta': 0.3, **LARGE}),
    'dipod_0.1_ema_demos': Method(
        'DiPOD 0.1, large steps averaged, demonstrations kept in the batch',
        settings={'beta': 0.1, **LARGE},
        imitation={'weight': 0.3},
        demonstrations=True,
    ),
    'dipod_0.1_q': Method(
        'DiPOD 0.1, large steps averaged, an off-policy critic that saw the demonstrations',
        settings={'beta': 0.1, **LARGE},
        demonstrations=True,
        q_critic={},
    ),
    'fpo++_q': Method(
        'FPO++, large steps averaged, an off-policy critic that saw the demonstrations',
        settings={'beta': 0.0, **LARGE},
        demonstrations=True,
        q_critic={},
    ),
    'dipod_0.1_q_alone': Method(
        'DiPOD 0.1, large steps averaged, an off-policy critic without demonstrations',
        settings={'beta': 0.1, **LARGE},
        q_critic={},
    ),
    'fpo++_q_alone': Method(
        'FPO++, large steps averaged, an off-policy critic without demonstrations',
        settings={'beta': 0.0, **LARGE},
        q_critic={},
    ),
    # What the sweep chose; its choice for DiPOD is dipod_0.1_ema.
    'fpo++_tuned': Method(
        'FPO++ as swept', settings={'beta': 0.0, 'learning_rate': 3e-4, 'epochs': 12, 'ema': 0.95}
    ),
    'dppo_tuned': Method(
        'DPPO as swept',
        'dppo',
        'DppoConfig',
        DPPO_SWEPT,
    ),
    'dppo_q': Method(
        'DPPO as swept, an off-policy critic that saw the demonstrations',
        'dppo',
        'DppoConfig',
        DPPO_SWEPT,
        demonstrations=True,
        q_critic={},
    ),
    'reinflow_tuned': Method(
        'ReinFlow as swept',
        'reinflow',
        'ReinFlowConfig',
        {'learning_rate': 1e-4, 'epochs': 16, 'ema': 0.95},
    ),
    'gaussian_ppo_tuned': Method(
        'Gaussian PPO as swept',
        'gaussian_ppo',
        'GaussianPpoConfig',
        {'learning_rate': 1e-4, 'epochs': 40, 'ema': 0.0},
        flow=False,
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

# What the others are compared with: no regulariser.
BASELINE = 'fpo++'
REGULARISED = ('dipod_0.1', 'dipod_0.3')


def baseline(name: str) -> str:
    """Return the method that another is compared with: its own without the regulariser, or FPO++.

    That of dipod_0.1_q is fpo++_q; that of dppo, and of fpo++_q, is fpo++.
    """
    for start in REGULARISED:
        twin = BASELINE + name.removeprefix(start)
        if name.startswith(start) and twin in METHODS:
            return twin
    return BASELINE


# The sweep: for each method eight settings of the three that all of them have. The rates and
# epochs are around what each method's authors and earlier sweeps found.
AVERAGES = (0.0, 0.95)
SWEEP: dict[str, dict[str, tuple[float, ...]]] = {
    'fpo++': {'learning_rate': (3e-4, 1e-3), 'epochs': (12, 40), 'ema': AVERAGES},
    'dipod_0.1': {'learning_rate': (3e-4, 1e-3), 'epochs': (12, 40), 'ema': AVERAGES},
    'dppo': {'learning_rate': (1e-4, 3e-4), 'epochs': (16, 40), 'ema': AVERAGES},
    'reinflow': {'learning_rate': (1e-4, 3e-4), 'epochs': (16, 40), 'ema': AVERAGES},
    'gaussian_ppo': {'learning_rate': (1e-4, 3e-4), 'epochs': (10, 40), 'ema': AVERAGES},
}


def swept(name: str, grid: Mapping[str, tuple[float, ...]]) -> dict[str, Method]:
    """Return a method at every point of a grid, by names such as dppo_rate0.0003_epochs16_ema0."""
    points = {}
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        parts = [f'{key.removeprefix("learning_")}{value:g}' for key, value in settings.items()]
        method = METHODS[name]
        points['_'.join([name, *parts])] = replace(
            method,
            about=f'{method.about}; {", ".join(parts)}',
            settings=method.settings | settings,
        )
    return points


SWEPT = {point: one for name in SWEEP for point, one in swept(name, SWEEP[name]).items()}
METHODS |= SWEPT

# The best three of each method on the first seed, which get a second one.
FINALISTS = (
    'fpo++_rate0.001_epochs40_ema0.95',
    'fpo++_rate0.0003_epochs12_ema0.95',
    'fpo++_rate0.001_epochs12_ema0.95',
    'dipod_0.1_rate0.001_epochs40_ema0.95',
    'dipod_0.1_rate0.0003_epochs40_ema0.95',
    'dipod_0.1_rate0.0003_epochs40_ema0',
    'dppo_rate0.0003_epochs16_ema0.95',
    'dppo_rate0.0001_epochs40_ema0',
    'dppo_rate0.0003_epochs40_ema0.95',
    'reinflow_rate0.0001_epochs16_ema0.95',
    'reinflow_rate0.0003_epochs16_ema0.95',
    'reinflow_rate0.0003_epochs40_ema0.95',
    'gaussian_ppo_rate0.0001_epochs40_ema0.95',
    'gaussian_ppo_rate0.0001_epochs40_ema0',
    'gaussian_ppo_rate0.0001_epochs10_ema0',
)
