# SPDX-License-Identifier: Apache-2.0
"""The parameters of the trainer, and the training run that they describe. Used by trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipod_ros.errors import UserError
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.model_dirs import folder_of, folders_of
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.resources import share_dir
from dipod_ros.ros.params import param

if TYPE_CHECKING:
    from dipod_ros.learning.run import TrainingRun

STUDENT_MODES = ('off', 'final', 'every_n', 'fresh')


@dataclass(frozen=True)
class TrainerParams:
    """Parameters of the trainer node."""

    checkpoint: str = param('', 'flow policy to start from: a shipped name or a folder')
    model_dirs: tuple[str, ...] = param((), 'further folders that checkpoints may come from')
    run_dir: str = param('runs/online', 'folder of this run; an earlier run in it is resumed')
    sampler: str = param(
        '',
        "SOLVER-STEPS, such as midpoint-5, to learn and act with instead of the checkpoint's own; "
        'version 0 with it is announced at the start',
    )
    episodes_per_update: int = param(64, 'finished episodes that start an update', low=1)
    max_episodes_per_update: int = param(
        64,
        'newest episodes an update learns from, where more have come; at least the above',
        low=1,
    )
    max_updates: int = param(0, 'updates after which learning is finished; 0 is no end', low=0)
    beta: float = param(
        0.1, 'on-policy ELBO regulariser, x RMS of the advantage', low=0.0, high=1000.0
    )
    gap_target: float = param(
        0.0,
        'above 0: beta is adapted until the ELBO gap is this many nats above that of the initial '
        'policy',
        low=0.0,
        high=1000.0,
    )
    burst_every: int = param(
        0, 'updates between bursts of self-distillation (Algorithm 1); 0 is none', low=0
    )
    burst_steps: int = param(30, 'gradient steps of a burst', low=1)
    epochs: int = param(40, 'passes over the episodes of an update', low=1)
    minibatches: int = param(4, 'gradient steps per pass', low=1)
    samples_per_action: int = param(64, 'Monte-Carlo (t, eps) kept per action', low=1)
    samples_per_step: int = param(4, 'of these, drawn for a gradient step; 0 is all', low=0)
    clip: float = param(0.2, 'trust region of the ratio', low=0.0, high=100.0)
    trust_region: str = param('ppo', 'ppo, or aspo for A < 0', choices=('ppo', 'aspo'))
    learning_rate: float = param(3e-4, 'of the policy (Adam)', low=0.0, high=1.0)
    ema: float = param(
        0.0,
        'decay per gradient step of the weights averaged over an update, below 1; 0 is none',
        low=0.0,
        high=1.0,
    )
    dense_reward: bool = param(
        False,
        'for rewards at every decision, as of a gait: the values of what is remembered are '
        'computed anew in each update, and advantages beyond three times their root mean square '
        'are cut there before they are scaled',
    )
    precision: str = param(
        'float32', 'of the matrix products of an update', choices=('float32', 'bfloat16')
    )
    demonstrations: str = param(
        '',
        'file or folder of demonstrations that q_critic learns from, and that every gradient step '
        'imitates with demo_weight',
    )
    demo_weight: float = param(
        0.0,
        'of their flow-matching loss, x RMS of the advantage; 0 imitates none',
        low=0.0,
        high=1000.0,
    )
    demo_decay: float = param(1.0, 'of demo_weight, per update', low=0.0, high=1.0)
    q_critic: bool = param(
        False,
        'an off-policy critic of chunks beside the usual one, for few episodes; demonstrations '
        'beside it want a reward of 1 at the end of a success and 0 elsewhere',
    )
    critic_warmup_updates: int = param(1, 'first updates that fit the critic alone', low=0)
    max_lag: int = param(2, 'policy versions after which a decision is stale', low=0)
    gap_every: int = param(10, 'updates between ELBO gap estimates; 0 is never', low=0)
    student: str = param(
        'final',
        'when a few-step student is distilled; fresh: one follows with every checkpoint',
        choices=STUDENT_MODES,
    )
    student_every: int = param(10, 'updates between students, with every_n', low=1)
    student_steps: int = param(1, 'sampler steps of the student', low=1, high=4)
    student_train_steps: int = param(600, 'gradient steps of a distillation', low=1)
    student_fresh_steps: int = param(
        60, 'gradient steps of the student after each update, with fresh', low=1
    )
    seed: int = param(
        0,
        'decides everything random here; -1 draws a seed for a new run (it is in ~/status) and '
        'keeps that of a run that is resumed',
        low=-1,
    )
    threads: int = param(1, 'threads of torch', low=1, high=256)
    nice: int = param(5, 'scheduling niceness: the server goes first', low=0, high=19)
    tensorboard: bool = param(True, 'write TensorBoard logs into run_dir')


def open_run(p: TrainerParams) -> TrainingRun:
    """Open the run, or go on with the one that is there; raises UserError.

    torch takes a second to import: not before the parameters are known to be right.
    """
    if not p.checkpoint:
        raise UserError('parameter checkpoint is empty: name the flow policy to start from')
    run_dir = folder_of(p.run_dir, 'run_dir')
    folders = [share_dir() / 'models', run_dir, *folders_of(p.model_dirs)]
    initial = ckpt.resolve(p.checkpoint, folders)

    import torch

    from dipod_ros.learning.algorithms.self_distillation import InterleavedConfig
    from dipod_ros.learning.critic import CriticConfig
    from dipod_ros.learning.dense_reward import DENSE_CRITIC, DENSE_UPDATE
    from dipod_ros.learning.imitation import imitation_config
    from dipod_ros.learning.learner_state import LearnerConfig
    from dipod_ros.learning.q_critic import QCriticConfig
    from dipod_ros.learning.run import RunConfig, TrainingRun
    from dipod_ros.learning.run_seed import seed_of_run
    from dipod_ros.learning.students.distill import DistillConfig
    from dipod_ros.learning.students.fresh_student import FreshConfig

    torch.set_num_threads(p.threads)
    os.nice(p.nice)
    return TrainingRun(
        run_dir,
        initial,
        RunConfig(
            learner=LearnerConfig(
                algorithm=InterleavedConfig(
                    beta=p.beta,
                    gap_target=p.gap_target,
                    burst_every=p.burst_every,
                    burst_steps=p.burst_steps,
                    precision=p.precision,
                    epochs=p.epochs,
                    minibatches=p.minibatches,
                    samples_per_action=p.samples_per_action,
                    samples_per_step=p.samples_per_step,
                    clip=p.clip,
                    trust_region=p.trust_region,
                    learning_rate=p.learning_rate,
                    ema=p.ema,
                    **(DENSE_UPDATE if p.dense_reward else {}),
                ),
                critic=CriticConfig(**(DENSE_CRITIC if p.dense_reward else {})),
                imitation=imitation_config(p.demo_weight, p.demo_decay),
                q_critic=QCriticConfig() if p.q_critic else None,
                critic_warmup_updates=p.critic_warmup_updates,
                max_lag=p.max_lag,
                gap_every=p.gap_every,
                seed=seed_of_run(run_dir, p.seed),
            ),
            distill=DistillConfig(steps=p.student_steps, train_steps=p.student_train_steps),
            fresh=FreshConfig(steps=p.student_steps, train_steps=p.student_fresh_steps)
            if p.student == 'fresh'
            else None,
            demonstrations=Path(p.demonstrations) if p.demonstrations else None,
            sampler=SamplerSpec.parse(p.sampler) if p.sampler else None,
            tensorboard=p.tensorboard,
        ),
    )
