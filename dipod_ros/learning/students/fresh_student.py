# SPDX-License-Identifier: Apache-2.0
"""A few-step student kept up to date while its flow learns. torch, no ROS.

After each update of the flow the student takes a few gradient steps, from where it was, on coupled
pairs: noise and action of the newest version, made anew at observations of the newest rollouts, or
those that a rollout of a deterministic sampler carries for free, which are one version old. It is
never far behind, and is published with every checkpoint. It neither acts nor is learned from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.learning.state_io import (
    load_state,
    pack_module,
    pack_optimizer,
    save_state,
    unpack_module,
    unpack_optimizer,
)
from dipod_ros.learning.students.few_step import FewStepLoss, TeacherPaths, teacher_paths
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec

METHOD = 'trajectory'


@dataclass(frozen=True)
class FreshConfig:
    """Settings of a fresh student; why these: docs/few_steps.md."""

    steps: int = 1  # of the student's Euler sampler
    first_steps: int = 300  # gradient steps after the first update, from the flow's own weights
    train_steps: int = 60  # gradient steps after each further update
    batch: int = 256
    learning_rate: float = 1e-3  # cosine to 0 within each update
    # Pairs of the newest version that are made for the student: about 0.05 s for a small MLP.
    new_pairs: int = 1024
    # Whether the rollout's own pairs are used too: they cost nothing, but are one version old, and
    # beside new ones the student was no nearer for them.
    use_rollout: bool = False
    memory: int = 4096  # newest observations at which new pairs are made
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('steps', 'first_steps', 'train_steps', 'batch', 'memory'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')
        if self.new_pairs < 0 or not self.learning_rate > 0:
            raise UserError('new_pairs must be at least 0 and learning_rate above 0')
        if not self.new_pairs and not self.use_rollout:
            raise UserError(
                'a fresh student needs pairs: raise new_pairs above 0, or turn use_rollout on'
            )


class FreshStudent:
    """A student that follows a flow; see `update`."""

    def __init__(self, flow: FlowPolicy, config: FreshConfig) -> None:
        """Start with the weights of `flow`, which is copied.

        Raises UserError for a flow with a stochastic sampler: its noise is not coupled to actions.
        """
        if not flow.spec.sampler.deterministic:
            raise UserError(
                f'a flow with an {flow.spec.sampler.solver} sampler cannot have a fresh student: '
                'choose midpoint'
            )
        self.config = config
        self.policy = flow.with_sampler(SamplerSpec('euler', config.steps))
        self.policy.requires_grad_(True)
        self.updates = 0
        self._loss = FewStepLoss(METHOD, self.policy.spec.sampler)
        self._optimizer = torch.optim.Adam(self.policy.net.parameters(), lr=config.learning_rate)
        self._seen = torch.empty(0, flow.spec.observation_size)

    def update(self, flow: FlowPolicy, rollout: Rollout) -> dict[str, float]:
        """Move the student towards `flow`, the newest version, which learned from `rollout`.

        Returns `student_rms`: the root mean square distance of normalised actions between student
        and flow for the same noise, over the pairs of the newest version before this update's
        gradient steps (so it is how far the student had fallen behind); 0 pairs have none.
        """
        config = self.config
        rng = torch_rng(config.seed, 'fresh-student', self.updates)
        observed = torch.from_numpy(np.ascontiguousarray(rollout.observations, dtype=np.float32))
        self._seen = torch.cat([self._seen, observed])[-config.memory :]
        pool, metrics = self._pairs(flow, rollout, rng)
        steps = config.train_steps if self.updates else config.first_steps
        for step in range(steps):
            for group in self._optimizer.param_groups:
                group['lr'] = config.learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            batch = pool[torch.randint(len(pool), (config.batch,), generator=rng)]
            loss = self._loss(self.policy, self.policy, flow, batch, rng)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        self.updates += 1
        return metrics

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything needed to go on, atomically."""
        tensors = pack_module('student', self.policy) | pack_optimizer('adam', self._optimizer)
        info = {'updates': self.updates, 'steps': self.config.steps}
        save_state(path, tensors | {'seen': self._seen}, info)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from where `save` was called; raises UserError when the file does not fit."""
        tensors, info = load_state(path)
        if info.get('steps') != self.config.steps:
            raise UserError(
                f'{path} holds a student of {info.get("steps")} steps, not of '
                f'{self.config.steps}: give the same number, or delete that file to begin anew'
            )
        try:
            unpack_module('student', self.policy, tensors)
            unpack_optimizer('adam', self._optimizer, tensors)
            self._seen, self.updates = tensors['seen'], int(info['updates'])
        except (KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
            reason = str(error).split('\n')[0]
            raise UserError(f'{path} does not fit this policy: {reason}') from error

    @torch.no_grad()
    def _pairs(
        self, flow: FlowPolicy, rollout: Rollout, rng: torch.Generator
    ) -> tuple[TeacherPaths, dict[str, float]]:
        """Return the paths of this update, and how far the student is from the newest ones."""
        parts, metrics, sampler = [], {}, self.policy.spec.sampler
        if self.config.new_pairs:
            rows = torch.randint(len(self._seen), (self.config.new_pairs,), generator=rng)
            o = flow.normalizer.observation(self._seen[rows])
            z = torch.randn(len(o), flow.spec.action_size, generator=rng)
            parts.append(teacher_paths(flow, o, z, METHOD, sampler))
            error = self.policy.sample(o, z) - parts[0].points[:, -1]
            metrics['student_rms'] = float(error.square().mean().sqrt())
        if self.config.use_rollout:
            o = flow.normalizer.observation(torch.from_numpy(rollout.observations))
            z = torch.from_numpy(rollout.noise)
            if sampler.steps == 1:
                a = flow.normalizer.action(torch.from_numpy(rollout.chunks).flatten(1))
                parts.append(TeacherPaths(o, torch.stack([z, a], dim=1)))
            else:
                # A decision does not carry the points in between.
                parts.append(teacher_paths(flow, o, z, METHOD, sampler))
        pool = TeacherPaths(
            torch.cat([p.observation for p in parts]), torch.cat([p.points for p in parts])
        )
        return pool, metrics
