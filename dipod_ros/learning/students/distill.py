# SPDX-License-Identifier: Apache-2.0
"""Few-step students of a flow, distilled from its own trajectories. torch, no ROS.

The teacher maps noise z to an action a = ODE(z); a student is the same network with a sampler of
few steps, trained with one of the losses in few_step.py to make the same a of the same z. Policy
gradients must never see these losses: they bound no likelihood. A student is made after learning,
or beside it (fresh_student.py). Which method and why: docs/few_steps.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.learning.students.few_step import (
    FewStepLoss,
    TeacherPaths,
    check_method,
    follow,
    teacher_paths,
)
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec


@dataclass(frozen=True)
class DistillConfig:
    """Settings of a distillation; the defaults take about 7 s of one core for a small MLP."""

    method: str = 'trajectory'  # one of few_step.METHODS
    solver: str = 'euler'
    steps: int = 1  # of the student's sampler
    train_steps: int = 600
    # Pairs (noise, action) that the teacher makes beforehand: sampling it afresh in every step
    # would be three quarters of the work, for students that are no better.
    pairs: int = 32_768
    batch: int = 512
    learning_rate: float = 1e-3  # cosine to 0
    # Share of the training times placed on the student's own evaluation times (t=1 for one step),
    # where its whole accuracy is decided; the rest are uniform.
    on_grid: float = 0.5
    ema: float = 0.995
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('train_steps', 'pairs', 'batch'):
            if not getattr(self, name) >= 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')
        if not self.learning_rate > 0:
            raise UserError(f'learning_rate must be above 0, got {self.learning_rate}')
        if not 0 <= self.ema < 1:
            raise UserError(f'ema must be at least 0 and below 1, got {self.ema}')
        if not 0 <= self.on_grid <= 1:
            raise UserError(f'on_grid must be within 0..1, got {self.on_grid}')
        check_method(self.method, self.solver)


def distill(
    teacher: FlowPolicy,
    observations: np.ndarray,
    config: DistillConfig,
    *,
    progress: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> FlowPolicy:
    """Return a student of the same architecture that needs `config.steps` steps.

    Args:
        teacher: a policy with a deterministic sampler.
        observations: raw observations [M, O] on which the teacher is imitated, best its own.
        config: the student's sampler and the training settings.
        progress: called with the steps done and the latest loss.
        stop: asked before each step; True ends early, with the weights reached so far.

    Raises UserError for a stochastic teacher, whose noise is not coupled to one action.

    """
    if not teacher.spec.sampler.deterministic:
        raise UserError(
            f'a teacher with an {teacher.spec.sampler.solver} sampler cannot be distilled: '
            'choose midpoint'
        )
    if len(observations) == 0:
        raise UserError('distillation needs observations; run or record some episodes first')
    teacher = teacher.clone()
    student = teacher.with_sampler(SamplerSpec(config.solver, config.steps))
    student.requires_grad_(True)
    average = student.clone()
    paths = _draw_paths(teacher, student.spec.sampler, observations, config)
    compute_loss = FewStepLoss(config.method, student.spec.sampler, config.on_grid)
    optimizer = torch.optim.Adam(student.net.parameters(), lr=config.learning_rate)
    for step in range(config.train_steps):
        if stop():
            break
        rng = torch_rng(config.seed, 'distill', step)
        for group in optimizer.param_groups:
            group['lr'] = (
                config.learning_rate * 0.5 * (1 + np.cos(np.pi * step / config.train_steps))
            )
        batch = paths[torch.randint(len(paths), (config.batch,), generator=rng)]
        loss = compute_loss(student, average, teacher, batch, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # A short average in the beginning, so that early weights do not linger.
        follow(average, student, min(config.ema, (1 + step) / (10 + step)))
        if progress is not None and (step % 25 == 24 or step == config.train_steps - 1):
            progress(step + 1, float(loss.detach()))
    return average


def _draw_paths(
    teacher: FlowPolicy, sampler: SamplerSpec, observations: np.ndarray, config: DistillConfig
) -> TeacherPaths:
    """Return `config.pairs` paths of the teacher, at observations drawn with replacement."""
    raw = torch.from_numpy(np.asarray(observations, np.float32))
    rng = torch_rng(config.seed, 'pairs')
    rows = torch.randint(len(raw), (config.pairs,), generator=rng)
    o = teacher.normalizer.observation(raw[rows])
    z = torch.randn(config.pairs, teacher.spec.action_size, generator=rng)
    return teacher_paths(teacher, o, z, config.method, sampler)
