# SPDX-License-Identifier: Apache-2.0
"""The learner: rollouts in, better policy versions out, with a way back when one collapses.

It owns policy, critic, optimisers and the memory of recent versions; the same object learns from a
vectorised env and from the replay topic. torch, no ROS.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import (
    Batch,
    UpdateConfig,
    UpdateStopped,
    root_mean_square,
    run_epochs,
)
from dipod_ros.learning.algorithms.dipod import DipodConfig
from dipod_ros.learning.collapse import HealthConfig, keeps_return
from dipod_ros.learning.critic import CriticConfig, CriticTrainer
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.drift.report import executed_gap
from dipod_ros.learning.health import check_health, elbo_gap_nats
from dipod_ros.learning.imitation import Imitation, ImitationConfig
from dipod_ros.learning.q_advantages import with_q_advantages
from dipod_ros.learning.q_critic import QCritic, QCriticConfig
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
from dipod_ros.learning.versions import Versions
from dipod_ros.policy.flow import FlowPolicy

log = logging.getLogger(__name__)

# A root mean square of advantages below this is no advantage at all.
ADVANTAGE_FLOOR = 1e-9


COUNTERS = ('version', 'updates', 'control_steps', 'episodes', 'alarms')
# Names in a state: the rollouts' returns, and what the last version with wide actions was.
RETURNS, WIDE = 'returns', 'wide.'
# Own actions whose exact likelihood is computed for the log: a standard error below one nat.
GAP_ACTIONS = 64


@dataclass(frozen=True)
class LearnerConfig:
    """Everything about learning that is not the update itself."""

    algorithm: UpdateConfig = field(default_factory=DipodConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    # Demonstrations, and own successes, that every gradient step imitates; None is none.
    imitation: ImitationConfig | None = None
    # An off-policy critic of chunks beside the critic; None is none.
    q_critic: QCriticConfig | None = None
    # The first updates fit the critic alone: an untrained baseline makes the first steps noise.
    critic_warmup_updates: int = 1
    # Versions whose decisions are still used; the prototype learned clearly slower at lag 8.
    max_lag: int = 2
    gap_every: int = 10  # updates between estimates of the ELBO gap; 0 is never
    seed: int = 0


class Learner:
    """Improves a flow policy from rollouts; see `update`."""

    def __init__(
        self,
        policy: FlowPolicy,
        config: LearnerConfig,
        demonstrations: Sequence[Demonstrations] = (),
    ) -> None:
        """Start from `policy`, which is copied; `config.seed` decides everything random.

        `demonstrations` are what `config.imitation` is about, and what `config.q_critic` learns
        from as well. Raises UserError when they do not fit the policy, or there is nothing to
        imitate.
        """
        torch.manual_seed(config.seed)
        self.config = config
        self.algorithm = config.algorithm.build()
        self.policy = self.algorithm.start(policy)
        self.reference = self.policy.clone()
        self.critic = CriticTrainer(policy.spec.observation_size, config.critic)
        self.optimizer = torch.optim.Adam(
            self.algorithm.parameters(self.policy), lr=self.algorithm.config.learning_rate
        )
        self.imitation: Imitation | None = None
        if config.imitation is not None:
            self.imitation = Imitation(self.policy, config.imitation, demonstrations)
        self.q: QCritic | None = None
        if config.q_critic is not None:
            self.q = QCritic(self.policy, config.q_critic, demonstrations)
        self.version = 0
        self.updates = 0
        self.control_steps = 0
        self.episodes = 0
        self.alarms = 0
        # Processor time in the epochs of policy and critic; no metric: those repeat, times do not.
        self.gradient_s = 0.0
        # Mean return of each rollout so far; goes back with the policy.
        self._returns: list[float] = []
        # While actions are narrow: everything as it was under the last version with wider ones.
        self._wide: dict[str, torch.Tensor] | None = None
        self.versions = Versions(config.max_lag + 1)
        self.versions.add(self.version, self.policy)

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
        finite. When `stop` turns true, the update is given up: everything is put back and
        UpdateStopped raised.
        """
        rollout.require_fits(self.policy.spec)
        self.versions.require_known(rollout)
        if self.q is not None:
            self.q.require_fits(rollout)
        begun = self._snapshot()
        try:
            return self._improve(rollout, stop)
        except UpdateStopped:
            self._restore(begun)
            raise

    def _improve(self, rollout: Rollout, stop: Callable[[], bool]) -> dict[str, float]:
        """Do what `update` says; UpdateStopped leaves everything half-way."""
        metrics: dict[str, float] = {
            'success_rate': float(rollout.success.mean()),
            'return_mean': float(rollout.returns.mean()),
            'episodes': rollout.episodes,
            'decisions': len(rollout),
            'lag_mean': float(self.version - rollout.version.mean()),
        }
        self._returns.append(metrics['return_mean'])
        advantages = self._learn_values(rollout, stop, metrics)
        if self.imitation is not None:
            self.imitation.watch(self.policy, rollout)
        batch = self._batch(rollout, advantages)
        before = self._snapshot()
        moved = self._learn_actions(batch, rollout, stop, metrics)
        self._judge(batch.observations, before, moved, metrics)
        self._measure_gap(batch.observations, metrics)
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
        advantages, returns = self.critic.advantages(self.policy, rollout)
        begun_s = time.process_time()
        metrics['explained_variance'] = self.critic.fit(
            self.policy, rollout, returns, self._rng('critic')
        )
        if self.q is not None:
            metrics |= self.q.learn(self.policy, rollout, self._rng('q'), stop)
        self.gradient_s += time.process_time() - begun_s
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
        self.gradient_s += time.process_time() - begun_s
        rng = self._rng('after')
        metrics |= self.algorithm.after_epochs(self.policy, batch, self.updates, rng)
        return True

    def _tells_apart(self, rollout: Rollout) -> bool:
        """Return whether anything that is remembered was worth more than anything else."""
        return (
            rollout.tells_apart
            or bool(np.ptp(self._returns) > 0)
            or (self.q is not None and self.q.tells_apart)
        )

    def _judge(
        self,
        observations: torch.Tensor,
        before: dict[str, torch.Tensor],
        moved: bool,
        metrics: dict[str, float],
    ) -> None:
        """Make the policy the next version, or put one back when it has collapsed."""
        metrics |= check_health(
            self.policy,
            self.reference,
            observations,
            self.config.health,
            self._rng('health'),
            self.algorithm.keeps_flow,
            self._returns,
        )
        if metrics['collapsed']:
            self._put_back(before)
            return
        self.version += int(moved)
        if not metrics['action_std_ratio'] < self.config.health.min_action_std_ratio:
            self._wide = None
        elif self._wide is None:
            self._wide = before

    def _measure_gap(self, observations: torch.Tensor, metrics: dict[str, float]) -> None:
        every = self.config.gap_every
        if not (every and self.updates % every == 0 and self.algorithm.keeps_flow):
            return
        rng = self._rng('gap')
        exact = self.policy.spec.sampler.deterministic
        if self.algorithm.wants_fitted_gap or not exact:
            metrics['elbo_gap_nats'] = elbo_gap_nats(self.policy, observations, rng)
        if exact:
            # The gap itself, in a quarter of the time that the fit of a lower bound takes.
            gap = executed_gap(self.policy, observations, rng, actions=GAP_ACTIONS)
            metrics['exact_gap_nats'] = gap.mean

    def mismatch(self, rollout: Rollout, limit: int = 64) -> float:
        """Return the largest |chunk executed - chunk this learner computes| (rad) for same noise.

        It is the distance between the policy that acted and the one that learning assumes.
        """
        return self.versions.mismatch(rollout, limit)

    def save(
        self, path: str | os.PathLike[str], more: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Write everything needed to go on, atomically, and what the caller keeps beside it."""
        tensors = self._snapshot() | pack_module('reference', self.reference)
        # Copies: the critic's rollouts may be the same tensors, which a file cannot say.
        tensors |= {f'{WIDE}{k}': v.clone() for k, v in (self._wide or {}).items()}
        tensors |= self.versions.tensors() | (more or {})
        info = {
            **{name: getattr(self, name) for name in COUNTERS},
            'recent': self.versions.numbers,
            'algorithm': asdict(self.algorithm.config),
            'algorithm_state': self.algorithm.state(),
            'seed': self.config.seed,
        }
        save_state(path, tensors, info)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from where `save` was called.

        Raises UserError, and changes nothing, when the file does not fit.
        """
        tensors, info = load_state(path)
        if self.q is not None and not any(name.startswith('q.') for name in tensors):
            raise UserError(
                f'{Path(path)} does not fit this policy: it was learned without a Q critic; leave '
                'q_critic off, or begin another run'
            )
        before = self._snapshot()
        try:
            counters = {name: int(info[name]) for name in COUNTERS}
            gentler = {name: info['algorithm'][name] for name in ('learning_rate', 'epochs')}
            state = info['algorithm_state']
            reference = self.reference.clone()
            unpack_module('reference', reference, tensors)
            versions = self.versions.read(tensors, info['recent'], like=self.policy)
            self._restore(tensors)
            self.algorithm.load_state(state)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            self._restore(before)
            reason = str(error).split('\n')[0]
            raise UserError(f'{Path(path)} does not fit this policy: {reason}') from error
        self.reference, self.versions = reference, versions
        cut = len(WIDE)
        self._wide = {k[cut:]: v for k, v in tensors.items() if k.startswith(WIDE)} or None
        for name, value in counters.items():
            setattr(self, name, value)
        if self.alarms:
            # The gentler settings after an alarm belong to the run, not to its configuration.
            self.algorithm.config = replace(self.algorithm.config, **gentler)
        self._use_learning_rate()

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
        if self._wide is None or keeps_return(self._returns, self.config.health):
            self._restore(before)
        else:
            log.warning(
                'update %d: actions are narrow and what the return had gained is being lost: back '
                'to the last version with wider actions',
                self.updates,
            )
            self._restore(self._wide)
            self._wide = None
            # Other weights than this version acted with.
            self.version += 1
        self.alarms += 1
        self.algorithm.gentler()
        self._use_learning_rate()

    def _use_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group['lr'] = self.algorithm.config.learning_rate

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return (
            pack_module('policy', self.policy)
            | pack_module('critic', self.critic.critic)
            | pack_optimizer('policy_adam', self.optimizer)
            | pack_optimizer('critic_adam', self.critic.optimizer)
            | self.critic.memory()
            | ({} if self.imitation is None else self.imitation.memory())
            | ({} if self.q is None else self.q.state())
            | {RETURNS: torch.tensor(self._returns, dtype=torch.float64)}
        )

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        unpack_module('policy', self.policy, tensors)
        unpack_module('critic', self.critic.critic, tensors)
        unpack_optimizer('policy_adam', self.optimizer, tensors)
        unpack_optimizer('critic_adam', self.critic.optimizer, tensors)
        self.critic.set_memory(tensors)
        if self.imitation is not None:
            self.imitation.set_memory(tensors)
        if self.q is not None:
            self.q.set_state(tensors)
        # States of older programs have none.
        self._returns = tensors[RETURNS].tolist() if RETURNS in tensors else []
