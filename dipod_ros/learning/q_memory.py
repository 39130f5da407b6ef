# SPDX-License-Identifier: Apache-2.0
"""Decisions as an off-policy critic remembers them, from rollouts and demonstrations. torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.critic import CLOCK_UNIT, decision_index
from dipod_ros.learning.dataset import Demonstrations
from dipod_ros.learning.imitation import normalised
from dipod_ros.learning.rollout import Rollout
from dipod_ros.policy.flow import FlowPolicy

MEMORY = 'q_memory'


@dataclass(frozen=True, eq=False)
class Decisions:
    """M decisions, episode after episode, normalised as a policy does it."""

    observations: torch.Tensor  # [M, O]
    clock: torch.Tensor  # [M], decisions before it in its episode, in units of CLOCK_UNIT
    actions: torch.Tensor  # [M, D]
    rewards: torch.Tensor  # [M]
    next_observations: torch.Tensor  # [M, O]; any numbers where `terminated`
    terminated: torch.Tensor  # bool [M]
    last: torch.Tensor  # bool [M], of its episode

    def __len__(self) -> int:
        return len(self.rewards)

    def __getitem__(self, rows: slice | torch.Tensor) -> Decisions:
        return Decisions(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Decisions]) -> Decisions:
        """Join decisions, in order."""
        names = [f.name for f in fields(Decisions)]
        return Decisions(*(torch.cat([getattr(p, n) for p in parts]) for n in names))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by the names of a state on disk."""
        return {f'{MEMORY}.{f.name}': getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Decisions | None:
        """Return what `tensors` returned, or None when it is not among these."""
        if f'{MEMORY}.rewards' not in tensors:
            return None
        return Decisions(*(tensors[f'{MEMORY}.{f.name}'] for f in fields(Decisions)))


def rollout_decisions(policy: FlowPolicy, rollout: Rollout) -> Decisions:
    """Return all decisions of a rollout."""
    last = torch.from_numpy(rollout.last)
    # What followed an end may be no number.
    following = torch.from_numpy(np.nan_to_num(rollout.next_observations))
    return Decisions(
        policy.normalizer.observation(torch.from_numpy(rollout.observations)),
        decision_index(last) / CLOCK_UNIT,
        policy.normalizer.action(torch.from_numpy(rollout.chunks).flatten(1)),
        torch.from_numpy(rollout.rewards),
        policy.normalizer.observation(following),
        torch.from_numpy(rollout.terminated),
        last,
    )


def newest_decisions(policy: FlowPolicy, rollout: Rollout) -> Decisions:
    """Return the decisions of the newest rollout in a window, to which `success` belongs."""
    ends = np.flatnonzero(rollout.last)
    older = len(ends) - rollout.episodes
    first = ends[older - 1] + 1 if older > 0 else 0
    return rollout_decisions(policy, rollout)[first:]


def demonstrated_decisions(policy: FlowPolicy, demonstrations: Demonstrations) -> Decisions:
    """Return all decisions of demonstrations, failures included.

    They hold no rewards: the last decision of a success gets 1, all others 0, and every episode
    ends by itself (see `require_sparse`). Raises UserError when they do not fit the policy.
    """
    observations, actions = normalised(policy, demonstrations)
    episodes = torch.from_numpy(demonstrations.episodes.astype(np.int64))
    last = torch.cat([episodes[1:] != episodes[:-1], torch.tensor([True])])
    won = torch.from_numpy(demonstrations.success)[episodes]
    return Decisions(
        observations,
        decision_index(last) / CLOCK_UNIT,
        actions,
        (last & won).float(),
        observations.roll(-1, 0),
        last,
        last,
    )


def require_sparse(rollout: Rollout) -> None:
    """Raise UserError where demonstrations, which hold no rewards, cannot stand beside a rollout.

    They can when an episode is worth 1 if it succeeded and 0 if not, at its end.
    """
    newest = rollout.rewards[rollout.last][-rollout.episodes :]
    if np.any(rollout.rewards[~rollout.last]) or not np.array_equal(newest, rollout.success):
        raise UserError(
            'demonstrations hold no rewards, and here they are more than 1 at the end of a '
            'success: give the Q critic no demonstrations'
        )
