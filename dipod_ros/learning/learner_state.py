# SPDX-License-Identifier: Apache-2.0
"""What a learner consists of and remembers, in memory and on disk. torch, no ROS."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import UpdateConfig
from dipod_ros.learning.algorithms.dipod import DipodConfig
from dipod_ros.learning.collapse import HealthConfig
from dipod_ros.learning.critic import CriticConfig, CriticTrainer
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.imitation import Imitation, ImitationConfig
from dipod_ros.learning.q_critic import QCritic, QCriticConfig
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

COUNTERS = ('version', 'updates', 'control_steps', 'episodes', 'alarms')
# Names in a state: the rollouts' returns, and what the last version with wide actions was.
RETURNS, WIDE = 'returns', 'wide.'


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
    # Versions whose decisions are still used; at lag 8 learning was clearly slower.
    max_lag: int = 2
    # So many collapsed updates in a row end learning, each with half the rate of the one before;
    # 0 is never.
    max_alarms_in_a_row: int = 10
    gap_every: int = 10  # updates between estimates of the ELBO gap; 0 is never
    seed: int = 0

    def __post_init__(self) -> None:
        if self.algorithm.build().adapts_to_gap and not self.gap_every > 0:
            raise UserError(
                'gap_target adapts beta to the measured gap, and gap_every 0 never measures it: '
                'set gap_every to 4, or gap_target to 0'
            )


class LearnerState:
    """The parts that learn, and what they remember: taken back as one, saved as one."""

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
        self.alarms_in_a_row = 0  # counted anew after `load`
        # Processor time so far of the policy's gradient steps, of the health check and of measuring
        # the gap; no metrics: those repeat, times do not.
        self.policy_gradient_s = 0.0
        self.health_s = 0.0
        self.gap_s = 0.0
        # Mean return of each rollout so far; goes back with the policy.
        self.returns: list[float] = []
        # While actions are narrow: everything as it was under the last version with wider ones.
        self.wide: dict[str, torch.Tensor] | None = None
        self.versions = Versions(config.max_lag + 1)
        self.versions.add(self.version, self.policy)

    @property
    def gradient_s(self) -> float:
        """Processor time of gradient steps so far: of the policy and of what judges it.

        Minibatches, forward and backward passes and optimisers; not rollouts, own chunks and
        targets of Q, advantages, old losses, bursts of self-distillation, health and gap.
        """
        of_q = 0.0 if self.q is None else self.q.gradient_s
        return self.policy_gradient_s + self.critic.gradient_s + of_q

    def save(
        self, path: str | os.PathLike[str], more: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Write everything needed to go on, atomically, and what the caller keeps beside it."""
        tensors = self.snapshot() | pack_module('reference', self.reference)
        # Copies: the critic's rollouts may be the same tensors, which a file cannot say.
        tensors |= {f'{WIDE}{k}': v.clone() for k, v in (self.wide or {}).items()}
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
        before = self.snapshot()
        try:
            counters = {name: int(info[name]) for name in COUNTERS}
            gentler = {name: info['algorithm'][name] for name in ('learning_rate', 'epochs')}
            state = info['algorithm_state']
            reference = self.reference.clone()
            unpack_module('reference', reference, tensors)
            versions = self.versions.read(tensors, info['recent'], like=self.policy)
            self.restore(tensors)
            self.algorithm.load_state(state)
        except (KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
            self.restore(before)
            reason = str(error).split('\n')[0]
            raise UserError(f'{Path(path)} does not fit this policy: {reason}') from error
        self.reference, self.versions = reference, versions
        cut = len(WIDE)
        self.wide = {k[cut:]: v for k, v in tensors.items() if k.startswith(WIDE)} or None
        for name, value in counters.items():
            setattr(self, name, value)
        if self.alarms:
            # The gentler settings after an alarm belong to the run, not to its configuration.
            self.algorithm.config = replace(self.algorithm.config, **gentler)
        self.use_learning_rate()

    def use_learning_rate(self) -> None:
        """Give the optimiser the rate of the algorithm's present settings."""
        for group in self.optimizer.param_groups:
            group['lr'] = self.algorithm.config.learning_rate

    def counts(self) -> dict[str, Any]:
        """Return what an update changes besides tensors, for `set_counts`."""
        names = (*COUNTERS, 'alarms_in_a_row', 'wide')
        return {name: getattr(self, name) for name in names} | {
            'config': self.algorithm.config,
            'state': self.algorithm.state(),
        }

    def set_counts(self, counts: Mapping[str, Any]) -> None:
        """Put back what `counts` returned."""
        counts = dict(counts)
        self.algorithm.config = counts.pop('config')
        self.algorithm.load_state(counts.pop('state'))
        for name, value in counts.items():
            setattr(self, name, value)
        self.use_learning_rate()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return copies of everything that an update changes, by name."""
        return (
            pack_module('policy', self.policy)
            | pack_module('critic', self.critic.critic)
            | pack_optimizer('policy_adam', self.optimizer)
            | pack_optimizer('critic_adam', self.critic.optimizer)
            | self.critic.memory()
            | ({} if self.imitation is None else self.imitation.memory())
            | ({} if self.q is None else self.q.state())
            | {RETURNS: torch.tensor(self.returns, dtype=torch.float64)}
        )

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `snapshot` returned; other names are ignored."""
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
        self.returns = tensors[RETURNS].tolist() if RETURNS in tensors else []
