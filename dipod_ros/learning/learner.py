# SPDX-License-Identifier: Apache-2.0
"""The learner: rollouts in, better policy versions out, with a way back when one collapses.

The same object learns from a vectorised env and from the replay topic. What it consists of and
keeps is in learner_state.py. torch, no ROS.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import (
    Batch,
    UpdateStopped,
    root_mean_square,
    run_epochs,
)
from dipod_ros.learning.collapse import keeps_return
from dipod_ros.learning.drift.report import executed_gap
from dipod_ros.learning.health import check_health, elbo_gap_nats
from dipod_ros.learning.learner_state import LearnerState
from dipod_ros.learning.q_advantages import with_q_advantages
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy.flow import FlowPolicy

log = logging.getLogger(__name__)

# A root mean square of advantages below this is no advantage at all.
ADVANTAGE_FLOOR = 1e-9
# Own actions whose exact likelihood is computed for the log: a standard error below one nat.
GAP_ACTIONS = 64
# ... and for a beta that follows it: half of that error.
ADAPT_ACTIONS = 256


class Learner(LearnerState):
    """Improves a flow policy from rollouts; see `update`."""

    def behaviour(self, version: int) -> FlowPolicy | None:
        """Return the frozen policy of a version, or None when it is too old to learn from."""
        return self.versions.get(version)

    def update(
        self, rollout: Rollout, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Learn from one rollout and return what happened, as plain numbers.

        Decisions must come from recent versions (see `behaviour`). Afterwards `policy` is the next
        version; when it has collapsed, the version before it is put back instead, and learning
        goes on with half the learning rate and half the epochs. Where the version before is itself
        narrow and has lost its return, the last one with wider actions is put back, as a new
        version. While nothing was ever worth more than anything else (a sparse task before its
        first success), only the critics learn: what is left of an advantage then is their error,
        and advantages are scaled to one whatever their size. Raises UserError, and changes
        nothing, for an empty rollout, one of forgotten versions or with numbers that are not
        finite, and after too many collapses in a row. When `stop` turns true, the update is given
        up: everything is put back and UpdateStopped raised; so is what an error in the middle has
        left.
        """
        self.require_fits(rollout)
        self._require_progress()
        begun, counts = self.snapshot(), self.counts()
        try:
            return self._improve(rollout, stop)
        except Exception:
            self.restore(begun)
            self.set_counts(counts)
            raise

    def require_fits(self, rollout: Rollout) -> None:
        """Raise UserError when `update` would refuse a rollout, with the reason that it gives."""
        rollout.require_fits(self.policy.spec)
        self.versions.require_known(rollout)
        if self.q is not None:
            self.q.require_fits(rollout)

    def _require_progress(self) -> None:
        """Raise UserError when nothing but collapses came of the last updates."""
        most = self.config.max_alarms_in_a_row
        if most and self.alarms_in_a_row >= most:
            raise UserError(
                f'{most} updates in a row collapsed the policy and were taken back: learning ends, '
                f'version {self.version} is kept; begin again with a smaller learning_rate or '
                'clip, or a larger beta'
            )

    def _improve(self, rollout: Rollout, stop: Callable[[], bool]) -> dict[str, float]:
        """Do what `update` says; UpdateStopped leaves everything half-way."""
        metrics: dict[str, float] = {
            'success_rate': float(rollout.success.mean()),
            'return_mean': float(rollout.returns.mean()),
            'episodes': rollout.episodes,
            'decisions': len(rollout),
            'lag_mean': float(self.version - rollout.version.mean()),
        }
        self.returns.append(metrics['return_mean'])
        advantages = self._learn_values(rollout, stop, metrics)
        if self.imitation is not None:
            self.imitation.watch(self.policy, rollout)
        batch = self._batch(rollout, advantages)
        before = self.snapshot()
        moved = self._learn_actions(batch, rollout, stop, metrics)
        self._judge(batch.observations, before, moved, metrics)
        self._measure_gap(batch.observations, stop, metrics)
        self.algorithm.observe(metrics)
        metrics |= self.algorithm.state()
        self.updates += 1
        self.control_steps += rollout.control_steps
        self.episodes += rollout.episodes
        self.versions.add(self.version, self.policy)
        return metrics | {
            'version': self.version,
            'updates': self.updates,
            'control_steps': self.control_steps,
            'alarms': self.alarms,
        }

    def _learn_values(
        self, rollout: Rollout, stop: Callable[[], bool], metrics: dict[str, float]
    ) -> torch.Tensor:
        """Fit what judges the decisions, and return their advantages [M]."""
        rng = self._rng('critic')
        advantages, explained = self.critic.learn(self.policy, rollout, rng)
        metrics['explained_variance'] = explained
        if self.q is not None:
            metrics |= self.q.learn(self.policy, rollout, self._rng('q'), stop)
        return advantages

    def _learn_actions(
        self, batch: Batch, rollout: Rollout, stop: Callable[[], bool], metrics: dict[str, float]
    ) -> bool:
        """Take the gradient steps of the policy; return whether it moved."""
        moved = False
        if self.updates == 0:
            rng = torch_rng(self.config.seed, 'initial')
            initial = self.algorithm.initial_stage(self.policy, batch, rng)
            metrics |= initial
            moved = bool(initial)
        metrics['advantage_rms'] = float(root_mean_square(batch.advantages))
        metrics['advantage_mean'] = float(batch.advantages.mean())
        if metrics['advantage_rms'] < ADVANTAGE_FLOOR or not self._tells_apart(rollout):
            log.warning(
                'update %d: no decision so far was worth more than another (is the reward '
                'constant, or nothing succeeded yet?): nothing to learn from, the critic alone was '
                'fitted',
                self.updates,
            )
            return moved
        if self.updates < self.config.critic_warmup_updates:
            return moved
        batch = self.versions.remembered(batch, rollout, self.algorithm, self._rng('path'))
        if self.q is not None:
            rng = self._rng('imagined')
            if not self._own_tell_apart(rollout):
                # Where the demonstrations alone do, what is left of these is the critic's error.
                batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
            batch = with_q_advantages(self.q, batch, rollout, self.policy, self.algorithm, rng)
        begun_s = time.process_time()
        metrics |= run_epochs(
            self.algorithm,
            self.policy,
            self.optimizer,
            batch,
            self._rng('minibatch'),
            stop,
            self.imitation and self.imitation.term(self.updates, self.config.seed),
        )
        self.policy_gradient_s += time.process_time() - begun_s
        rng = self._rng('after')
        metrics |= self.algorithm.after_epochs(self.policy, batch, self.updates, rng)
        return True

    def _tells_apart(self, rollout: Rollout) -> bool:
        """Return whether anything that is remembered was worth more than anything else."""
        return self._own_tell_apart(rollout) or (self.q is not None and self.q.tells_apart)

    def _own_tell_apart(self, rollout: Rollout) -> bool:
        """Return whether any own decision was worth more than another."""
        return rollout.tells_apart or bool(np.ptp(self.returns) > 0)

    def _judge(
        self,
        observations: torch.Tensor,
        before: dict[str, torch.Tensor],
        moved: bool,
        metrics: dict[str, float],
    ) -> None:
        """Make the policy the next version, or put one back when it has collapsed."""
        begun_s = time.process_time()
        metrics |= check_health(
            self.policy,
            self.reference,
            observations,
            self.config.health,
            self._rng('health'),
            self.algorithm.keeps_flow,
            self.returns,
        )
        self.health_s += time.process_time() - begun_s
        if metrics['collapsed']:
            self._put_back(before)
            return
        self.alarms_in_a_row = 0
        self.version += int(moved)
        if not metrics['action_std_ratio'] < self.config.health.min_action_std_ratio:
            self.wide = None
        elif self.wide is None:
            self.wide = before

    def _measure_gap(
        self, observations: torch.Tensor, stop: Callable[[], bool], metrics: dict[str, float]
    ) -> None:
        """Measure the gap, unless it is time to stop: what was learned is kept without it."""
        every = self.config.gap_every
        if not (every and self.updates % every == 0 and self.algorithm.keeps_flow):
            return
        begun_s = time.process_time()
        rng = self._rng('gap')
        policy = self.policy
        if self.updates == 0 and self.algorithm.adapts_to_gap:
            policy = self.reference  # beta is adapted to an excess over its gap
        exact = policy.spec.sampler.deterministic

        def between() -> None:
            if stop():
                raise UpdateStopped

        try:
            if not exact:
                gap = elbo_gap_nats(policy, observations, rng, between=between)
                metrics['elbo_gap_nats'] = gap
            else:
                # The gap itself, in a quarter of the time that the fit of a copy takes.
                actions = ADAPT_ACTIONS if self.algorithm.adapts_to_gap else GAP_ACTIONS
                estimate = executed_gap(policy, observations, rng, actions=actions, between=between)
                metrics['exact_gap_nats'] = estimate.mean
        except UpdateStopped:
            log.info('update %d: asked to stop, its gap was not measured', self.updates)
        self.gap_s += time.process_time() - begun_s

    def mismatch(self, rollout: Rollout, limit: int = 64) -> float:
        """Return the largest |chunk executed - chunk this learner computes| (rad) for same noise.

        It is the distance between the policy that acted and the one that learning assumes.
        """
        return self.versions.mismatch(rollout, limit)

    def _rng(self, what: str) -> torch.Generator:
        return torch_rng(self.config.seed, what, self.updates)

    def _batch(self, rollout: Rollout, advantages: torch.Tensor) -> Batch:
        normalizer = self.policy.normalizer
        return Batch(
            normalizer.observation(torch.from_numpy(rollout.observations)),
            normalizer.action(torch.from_numpy(rollout.chunks).flatten(1)),
            torch.from_numpy(rollout.noise),
            advantages,
            {},
        )

    def _put_back(self, before: dict[str, torch.Tensor]) -> None:
        """Take a collapsed update back and go on more gently."""
        if self.wide is None or keeps_return(self.returns, self.config.health):
            self.restore(before)
        else:
            log.warning(
                'update %d: actions are narrow and what the return had gained is being lost: back '
                'to the last version with wider actions',
                self.updates,
            )
            self.restore(self.wide)
            self.wide = None
            # Other weights than this version acted with.
            self.version += 1
        self.alarms += 1
        self.alarms_in_a_row += 1
        self.algorithm.gentler()
        self.use_learning_rate()
