# SPDX-License-Identifier: Apache-2.0
"""Decisions as an off-policy critic remembers them, from rollouts and demonstrations. torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.chunk_chains import chunk_chains
from dipod_ros.learning.critic import CLOCK_UNIT
from dipod_ros.learning.demonstrations.dataset import Demonstrations
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
    # What followed an end may be no number.
    following = torch.from_numpy(np.nan_to_num(rollout.next_observations, posinf=0.0, neginf=0.0))
    return Decisions(
        policy.normalizer.observation(torch.from_numpy(rollout.observations)),
        torch.from_numpy(rollout.step).float() / CLOCK_UNIT,
        policy.normalizer.action(torch.from_numpy(rollout.chunks).flatten(1)),
        torch.from_numpy(rollout.rewards),
        policy.normalizer.observation(following),
        torch.from_numpy(rollout.terminated),
        torch.from_numpy(rollout.last),
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
    ends by itself (see `require_sparse`). Where chunks overlap, as in recordings, each episode is
    several, a chunk from one decision to the next (see `chunk_chains`). Raises UserError when they
    do not fit the policy, or cannot be had a chunk apart.
    """
    observations, actions = normalised(policy, demonstrations)
    order, ends, age = chunk_chains(demonstrations.actions, demonstrations.episodes)
    observations, actions = observations[order], actions[order]
    last = torch.from_numpy(ends)
    won = torch.from_numpy(demonstrations.success[demonstrations.episodes[order]])
    return Decisions(
        observations,
        torch.from_numpy(age.astype(np.float32)) / CLOCK_UNIT,
        actions,
        (last & won).float(),
        observations.roll(-1, 0),
        last,
        last,
    )


def thinned(decisions: Decisions, most: int) -> Decisions:
    """Return every n-th episode, n the smallest with which about `most` decisions are left."""
    every = -(-len(decisions) // most)
    episode = torch.cumsum(decisions.last, 0) - decisions.last.long()
    return decisions if every == 1 else decisions[torch.nonzero(episode % every == 0)[:, 0]]


def require_sparse(rollout: Rollout) -> None:
    """Raise UserError where demonstrations, which hold no rewards, cannot stand beside a rollout.

    They can when an episode is worth 1 if it succeeded and 0 if not, at its end; one that was cut
    off is worth 0 so far, whatever came of it.
    """
    newest = slice(-rollout.episodes, None)
    won = rollout.success & rollout.terminated[rollout.last][newest]
    if np.any(rollout.rewards[~rollout.last]) or not np.array_equal(
        rollout.rewards[rollout.last][newest], won
    ):
        raise UserError(
            'demonstrations hold no rewards, so that beside them the reward must be 1 at the end '
            'of a success and 0 elsewhere, and here it is not: give the Q critic no '
            'demonstrations, or leave q_critic off'
        )
