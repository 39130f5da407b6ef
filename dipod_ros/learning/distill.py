# SPDX-License-Identifier: Apache-2.0
"""Few-step students by coupled-noise distillation (reflow). torch, no ROS.

The teacher maps noise z to an action a = ODE(z). Fitting the straight line between *coupled* pairs
(z, a) makes the velocity constant along each line, so one to four steps arrive where the teacher's
many do (rectified flow, arXiv 2209.03003, Eq. 1 and section 2.2). Policy gradients must never see
this loss: the student's loss is no bound of its likelihood. It is made beside learning or after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.samplers import evaluation_times
from dipod_ros.policy.spec import SamplerSpec


@dataclass(frozen=True)
class DistillConfig:
    """Settings of a distillation; the defaults take about 8 s of one core for a small MLP."""

    solver: str = 'euler'
    steps: int = 1  # of the student's sampler
    train_steps: int = 1200
    # Pairs (noise, action) that the teacher makes beforehand: sampling it afresh in every step
    # would be three quarters of the work, for students that are no better.
    pairs: int = 32_768
    batch: int = 512
    learning_rate: float = 3e-4  # cosine to 0
    # Share of the training times placed on the student's own evaluation times (t=1 for one step),
    # where its whole accuracy is decided; the rest are uniform.
    on_grid: float = 0.5
    ema: float = 0.995
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError(f'pairs must be at least 1, got {self.pairs}')
        if not 0 <= self.on_grid <= 1:
            raise UserError(f'on_grid must be within 0..1, got {self.on_grid}')
        if self.solver not in ('euler', 'midpoint'):
            raise UserError(
                f'a student is sampled by euler or midpoint, not {self.solver!r}: '
                'coupling needs a deterministic sampler'
            )


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
    if teacher.spec.sampler.solver == 'sde':
        raise UserError('a teacher with an sde sampler cannot be distilled: choose midpoint')
    if len(observations) == 0:
        raise UserError('distillation needs observations; run or record some episodes first')
    teacher = teacher.clone()
    student = teacher.with_sampler(SamplerSpec(config.solver, config.steps))
    student.requires_grad_(True)
    average = student.clone()
    o_all, z_all, a_all = _coupled_pairs(teacher, observations, config)
    dim = teacher.spec.action_size
    optimizer = torch.optim.Adam(student.net.parameters(), lr=config.learning_rate)
    grid = torch.tensor(evaluation_times(student.spec.sampler))
    for step in range(config.train_steps):
        if stop():
            break
        rng = torch_rng(config.seed, 'distill', step)
        for group in optimizer.param_groups:
            group['lr'] = (
                config.learning_rate * 0.5 * (1 + np.cos(np.pi * step / config.train_steps))
            )
        rows = torch.randint(len(z_all), (config.batch,), generator=rng)
        o, z, a = o_all[rows], z_all[rows], a_all[rows]
        uniform = torch.rand(config.batch, generator=rng)
        on_grid = grid[torch.randint(len(grid), (config.batch,), generator=rng)]
        pick = torch.rand(config.batch, generator=rng) < config.on_grid
        t = torch.where(pick, on_grid, uniform)
        x_t = (1 - t)[:, None] * a + t[:, None] * z
        loss = (student.velocity(x_t, t, o) - (z - a)).square().sum(-1).mean() / dim**0.5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            # A short average in the beginning, so that early weights do not linger.
            decay = min(config.ema, (1 + step) / (10 + step))
            for slow, fast in zip(average.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if progress is not None and (step % 25 == 24 or step == config.train_steps - 1):
            progress(step + 1, float(loss.detach()))
    return average


@torch.no_grad()
def _coupled_pairs(
    teacher: FlowPolicy, observations: np.ndarray, config: DistillConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return observations [P, O] (normalised), noise [P, D] and the teacher's actions [P, D]."""
    raw = torch.from_numpy(np.asarray(observations, np.float32))
    rng = torch_rng(config.seed, 'pairs')
    rows = torch.randint(len(raw), (config.pairs,), generator=rng)
    o = teacher.normalizer.observation(raw[rows])
    z = torch.randn(config.pairs, teacher.spec.action_size, generator=rng)
    actions = [teacher.sample(*part) for part in zip(o.split(4096), z.split(4096), strict=True)]
    return o, z, torch.cat(actions)
