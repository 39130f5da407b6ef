# SPDX-License-Identifier: Apache-2.0
"""Demonstrations kept in the batch: their flow-matching loss in every gradient step. torch, no ROS.

    L + w_k * mean ell(a_demo; o_demo),    w_k = weight * decay^k   in update k

DAPG (arXiv 1709.10087, Eq. 4) adds the log-likelihood of demonstrations to the policy gradient with
a weight that decays geometrically. A flow has no likelihood at hand; minus its flow-matching loss
is the bound of it, in the units of DiPOD's regulariser (see algorithms/dipod.py). Successful
episodes of its own may stand beside them (self-imitation, arXiv 1806.05635; the mixing of such
data half and half is that of RLPD, arXiv 2302.02948).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning import parallel
from dipod_ros.learning.algorithms.base import ExtraTerm
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import cfm_loss, draw_path_samples
from dipod_ros.policy.vision import load_encoder

MEMORY = 'imitation'


@dataclass(frozen=True)
class ImitationConfig:
    """What is imitated beside the policy gradient, and how much."""

    weight: float = 0.1  # of the flow-matching loss, in units of the normalised advantage
    decay: float = 1.0  # of the weight, per update
    batch: int = 128  # chunks per gradient step
    # Newest successful episodes of the policy itself that are imitated as well; 0 is none.
    own_episodes: int = 0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(
                f'demo_weight must not be negative, got {self.weight}: 0 leaves imitation out'
            )
        if not 0 < self.decay <= 1:
            raise UserError(f'demo_decay must be above 0 and at most 1, got {self.decay}')
        if not (self.batch >= 1 and self.own_episodes >= 0):
            raise UserError(
                f'imitation needs a batch of at least 1 and no negative number of own episodes, '
                f'got {self.batch} and {self.own_episodes}'
            )


def imitation_config(weight: float, decay: float) -> ImitationConfig | None:
    """Return the settings, or None for a weight of 0; raises UserError for impossible ones.

    Demonstrations that only a critic learns from need not have succeeded.
    """
    config = ImitationConfig(weight, decay)
    return config if weight > 0 else None


class Imitation:
    """The demonstrations of a learner, and its own successes where these are imitated."""

    def __init__(
        self,
        policy: FlowPolicy,
        config: ImitationConfig,
        demonstrations: Sequence[Demonstrations] = (),
    ) -> None:
        """Normalise the successful demonstrations as `policy` does.

        Raises UserError when they are of another task or shape, when none of them succeeded, and
        when there is nothing to imitate at all.
        """
        self.config = config
        self.shown: tuple[torch.Tensor, torch.Tensor] | None = None
        if demonstrations:
            parts = [_successes(policy, one) for one in demonstrations]
            self.shown = tuple(torch.cat(part) for part in zip(*parts, strict=True))
            if len(self.shown[1]) == 0:
                raise UserError('none of the demonstrations succeeded: record others')
        elif config.own_episodes == 0 and config.weight > 0:
            raise UserError(
                'demo_weight is above 0 and there is nothing to imitate: name demonstrations '
                '(`dipod demos` makes them)'
            )
        self._own: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=config.own_episodes)

    def watch(self, policy: FlowPolicy, rollout: Rollout) -> None:
        """Keep the successful episodes of a rollout, where own episodes are imitated."""
        if not self.config.own_episodes:
            return
        normalizer = policy.normalizer
        ends = np.flatnonzero(rollout.last)
        # Of a window of rollouts only the newest, to which `success` belongs, has not been seen.
        for end, begin, won in zip(
            ends[-rollout.episodes :],
            np.append(0, ends[:-1] + 1)[-rollout.episodes :],
            rollout.success,
            strict=True,
        ):
            if won:
                rows = slice(begin, end + 1)
                self._own.append(
                    (
                        normalizer.observation(torch.from_numpy(rollout.observations[rows])),
                        normalizer.action(torch.from_numpy(rollout.chunks[rows]).flatten(1)),
                    )
                )

    def term(self, update: int, seed: int) -> ExtraTerm | None:
        """Return what update number `update` adds to its loss, or None when that is nothing."""
        weight = self.config.weight * self.config.decay**update
        sources = [] if self.shown is None else [self.shown]
        if self._own:
            sources.append(tuple(torch.cat(part) for part in zip(*self._own, strict=True)))
        if weight == 0 or not sources:
            return None
        generator = torch_rng(seed, 'imitation', update)
        count = -(-self.config.batch // len(sources))

        def loss(policy: FlowPolicy) -> tuple[torch.Tensor, dict[str, float]]:
            chosen = []
            for observations, actions in sources:
                rows = torch.randint(len(actions), (count,), generator=generator)
                chosen.append((observations[rows], actions[rows]))
            o, a = (torch.cat(part) for part in zip(*chosen, strict=True))
            samples = draw_path_samples(len(a), 1, a.shape[-1], generator)
            # Processes that learn together draw the same and take their rows of it; one with none
            # adds 0.
            mine = parallel.share(torch.arange(len(a)))
            ell = cfm_loss(policy, a[mine], o[mine], samples[mine]).sum() / len(a)
            return weight * ell, {'demo_loss': float(ell.detach())}

        return loss

    def memory(self) -> dict[str, torch.Tensor]:
        """Return the own episodes kept, as tensors by name."""
        return {
            f'{MEMORY}.{i}.{name}': value
            for i, pair in enumerate(self._own)
            for name, value in zip(('observations', 'actions'), pair, strict=True)
        }

    def set_memory(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `memory` returned; other names are ignored."""
        self._own.clear()
        i = 0
        while f'{MEMORY}.{i}.actions' in tensors:
            self._own.append(
                (tensors[f'{MEMORY}.{i}.observations'], tensors[f'{MEMORY}.{i}.actions'])
            )
            i += 1


def normalised(
    policy: FlowPolicy, demonstrations: Demonstrations
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return observations [M, O] and chunks [M, D] of all episodes, normalised as `policy` does it.

    Raises UserError when they are of another task or shape.
    """
    spec, other = policy.spec, demonstrations.spec
    for what, mine, theirs in (
        ('task', spec.task, other.task),
        ('joints', spec.joints, other.joints),
        ('steps per chunk', spec.horizon, other.horizon),
        ('control_period_s', spec.control_period_s, other.control_period_s),
        ('action', spec.action, other.action),
        ('streams', *([(x.name, x.source, x.size) for x in y.streams] for y in (spec, other))),
    ):
        if mine != theirs:
            raise UserError(
                f'the demonstrations have {what} {theirs}, the policy has {mine}: name '
                'demonstrations that were recorded for this policy'
            )
    observations = demonstrations.observations.copy()
    for stream, place in spec.images:
        encoder = load_encoder(stream, policy.encoder_weights)
        observations[:, place] = encoder.encode(demonstrations.images[stream.name])
    return (
        policy.normalizer.observation(torch.from_numpy(observations)),
        policy.normalizer.action(torch.from_numpy(demonstrations.actions).flatten(1)),
    )


def _successes(
    policy: FlowPolicy, demonstrations: Demonstrations
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `normalised` returns, of the episodes that succeeded."""
    observations, actions = normalised(policy, demonstrations)
    good = torch.from_numpy(demonstrations.success[demonstrations.episodes])
    return observations[good], actions[good]


def load_demonstrations(path: Path | str) -> list[Demonstrations]:
    """Return the demonstrations of a file, or of every *.safetensors file in a folder, by name.

    Raises UserError when there are none.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return [Demonstrations.load(path)]
    files = sorted(path.glob('*.safetensors'))
    if not files:
        raise UserError(f'no *.safetensors file in {path}: make demonstrations with `dipod demos`')
    return [Demonstrations.load(file) for file in files]
