# SPDX-License-Identifier: Apache-2.0
"""The losses that make a flow need few steps. torch, no ROS.

All three train the same network v(x, t; o) as the teacher's, so that a student is a swap of
weights. A student samples with K evaluations at the times t_k = 1 - k/K; noise is t=1, action t=0.
None of these losses bounds a likelihood: no policy gradient may see them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.policy import samplers
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec

METHODS = ('reflow', 'trajectory', 'consistency')

# Step of the teacher between two points that must land on the same action: that of its default
# sampler, midpoint-5. Wider is cheaper per unit of time and less exact.
CONSISTENCY_STEP = 0.2
# The consistency target divides by the rest of the interval; nearer to its end is no use.
LEAST_REST = 0.02


@dataclass(frozen=True, eq=False)
class TeacherPaths:
    """Paths of the teacher's flow: observation [P, O] and points [P, S, D], both normalised.

    The first point is the noise, the last is the action that the teacher makes of it; between them
    are the points at the student's evaluation times, where the method needs them.
    """

    observation: torch.Tensor
    points: torch.Tensor

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: torch.Tensor) -> TeacherPaths:
        return TeacherPaths(self.observation[index], self.points[index])


def check_method(method: str, solver: str) -> None:
    """Raise UserError for an unknown method, or a student's solver that it cannot teach."""
    if method not in METHODS:
        raise UserError(f'method {method!r} is not one of {list(METHODS)}')
    if solver not in ('euler', 'midpoint'):
        raise UserError(
            f'a student is sampled by euler or midpoint, not {solver!r}: '
            'coupling needs a deterministic sampler'
        )
    if solver != 'euler' and method != 'reflow':
        raise UserError(
            f'method {method} teaches whole euler steps: choose sampler euler, or method reflow'
        )


@torch.no_grad()
def teacher_paths(
    teacher: FlowPolicy,
    observation: torch.Tensor,
    noise: torch.Tensor,
    method: str,
    sampler: SamplerSpec,
) -> TeacherPaths:
    """Integrate the teacher from noise [P, D] at normalised observations [P, O].

    For `trajectory` the points are those at the student's K + 1 times, each interval integrated
    with the teacher's solver and at least its step length; where K divides the teacher's steps the
    last point is the teacher's own sample but for round-off. The others take noise and sample only.
    """
    pieces = []
    for o, z in zip(observation.split(4096), noise.split(4096), strict=True):
        if method != 'trajectory' or sampler.steps == 1:
            pieces.append(torch.stack([z, teacher.sample(o, z)], dim=1))
            continue
        points, width = [z], 1 / sampler.steps
        own = teacher.spec.sampler
        within = SamplerSpec(own.solver, -(-own.steps // sampler.steps))
        for k in range(sampler.steps):
            field = _rescaled(teacher, o, end=1 - (k + 1) * width, width=width)
            points.append(samplers.sample(field, points[-1], within))
        pieces.append(torch.stack(points, dim=1))
    return TeacherPaths(observation, torch.cat(pieces))


def _rescaled(
    teacher: FlowPolicy, observation: torch.Tensor, end: float, width: float
) -> samplers.Velocity:
    """Return the field whose flow from s=1 to 0 is the teacher's from end + width to end."""

    def field(x: torch.Tensor, s: float) -> torch.Tensor:
        return width * teacher.velocity(x, x.new_full((len(x),), end + width * s), observation)

    return field


@dataclass(frozen=True, eq=False)
class FewStepLoss:
    """One of METHODS for a student's sampler; see `__call__`.

    `on_grid` is the share of the training times placed on the student's own evaluation times,
    where its whole accuracy is decided; the rest are uniform (`trajectory` knows no others).
    """

    method: str
    sampler: SamplerSpec
    on_grid: float = 0.5

    def __post_init__(self) -> None:
        check_method(self.method, self.sampler.solver)

    def __call__(
        self,
        student: FlowPolicy,
        average: FlowPolicy,
        teacher: FlowPolicy,
        batch: TeacherPaths,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return |v_student(x, t) - target|^2 / sqrt(D), averaged over the batch.

        `average` is the slow average of the student's weights, which consistency aims at.
        """
        x, t, target = getattr(self, f'_{self.method}')(average, teacher, batch, generator)
        error = student.velocity(x, t, batch.observation) - target
        return error.square().sum(-1).mean() / x.shape[-1] ** 0.5

    def _times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        grid = torch.tensor(samplers.evaluation_times(self.sampler))
        uniform = torch.rand(count, generator=generator)
        on_grid = grid[torch.randint(len(grid), (count,), generator=generator)]
        pick = torch.rand(count, generator=generator) < self.on_grid
        return torch.where(pick, on_grid, uniform)

    def _reflow(self, average, teacher, batch, generator):
        """Straight lines between coupled noise and action: rectified flow, arXiv 2209.03003, Eq. 1.

        x_t = (1-t) a + t z, target z - a, with a = ODE(z).
        """
        z, a = batch.points[:, 0], batch.points[:, -1]
        t = self._times(len(z), generator)
        return (1 - t)[:, None] * a + t[:, None] * z, t, z - a

    def _trajectory(self, average, teacher, batch, generator):
        """Land one student step from t_k on the teacher's point at t_{k+1}.

        The update of progressive distillation (arXiv 2202.00512, Algorithm 2), with all K intervals
        at once and the whole teacher inside each, in place of halving:

            target = K (x_{t_k} - x_{t_{k+1}}), so that x_{t_k} - target / K = x_{t_{k+1}}
        """
        steps = self.sampler.steps
        k = torch.randint(steps, (len(batch),), generator=generator)
        rows = torch.arange(len(batch))
        x, landing = batch.points[rows, k], batch.points[rows, k + 1]
        return x, 1 - k / steps, steps * (x - landing)

    @torch.no_grad()
    def _consistency(self, average, teacher, batch, generator):
        """Points of one trajectory land on the same point: arXiv 2303.01469, Eq. 7.

        f(x, t) = x - (t - r) v(x, t) is where the student lands at the end r of the interval that t
        is in (multistep consistency, arXiv 2403.06807); f(x, r) = x holds by construction. The
        teacher steps from t to s = max(t - 0.2, r), and the student's average says where that
        lands:

            y = x_t - one midpoint step of the teacher,  target = (x_t - f_average(y, s)) / (t - r)

        x_t is on the path to the action with noise of its own: no coupling is needed.
        """
        steps, a = self.sampler.steps, batch.points[:, -1]
        t = self._times(len(a), generator)
        # The interval (r, r + 1/K] that t lies in.
        r = (torch.ceil(t * steps - 1e-5).clamp(1, steps) - 1) / steps
        t = torch.maximum(t, r + LEAST_REST)
        noise = torch.randn(a.shape, generator=generator)
        x = (1 - t)[:, None] * a + t[:, None] * noise
        s = torch.maximum(t - CONSISTENCY_STEP, r)
        width = (t - s)[:, None]
        half = x - width / 2 * teacher.velocity(x, t, batch.observation)
        y = x - width * teacher.velocity(half, (t + s) / 2, batch.observation)
        landing = y - (s - r)[:, None] * average.velocity(y, s, batch.observation)
        return x, t, (x - landing) / (t - r)[:, None]


@torch.no_grad()
def follow(average: FlowPolicy, policy: FlowPolicy, decay: float) -> None:
    """Move the weights of `average` towards those of `policy`: average <- decay average + ..."""
    for slow, fast in zip(average.parameters(), policy.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
