# SPDX-License-Identifier: Apache-2.0
"""One finished episode of the replay stream, and the rollout that it is. numpy, no ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipod_ros.learning.rollout import Rollout
from dipod_ros.policy.decision import Decision
from dipod_ros.policy.spec import PolicySpec


@dataclass
class Episode:
    """A finished one: what may be learned from, and what the whole of it came to."""

    decisions: list[Decision]
    total: float  # of its rewards
    length: int

    def __len__(self) -> int:
        return len(self.decisions)


def episode_rollout(
    episode: Episode, version_of: Callable[[str], int | None], spec: PolicySpec
) -> Rollout:
    """Build the rollout of one episode.

    A truncated episode (cut off from outside) gives up its last decision: that observation is the
    state whose value stands for the future. Where leading decisions were cut off, the return and
    the control steps are still those of the whole episode.
    """
    decisions = episode.decisions
    success, unused = decisions[-1].success, int(decisions[-1].truncated)
    observations = np.stack([d.observation for d in decisions])
    following = np.concatenate([observations[1:], observations[-1:]])
    used = decisions[:-1] if decisions[-1].truncated else decisions
    count = len(used)
    terminated = np.zeros(count, dtype=bool)
    terminated[-1] = not decisions[-1].truncated
    last = np.zeros(count, dtype=bool)
    last[-1] = True
    return Rollout(
        observations=observations[:count],
        noise=np.stack([d.noise for d in used]),
        chunks=np.stack([d.chunk for d in used]),
        rewards=np.array([d.reward for d in used], dtype=np.float32),
        next_observations=following[:count],
        terminated=terminated,
        last=last,
        version=np.array([version_of(d.policy_sha) for d in used], dtype=np.int64),
        success=np.array([success]),
        returns=np.array([episode.total], dtype=np.float32),
        control_steps=(episode.length - unused) * spec.horizon,
        step=np.array([d.step for d in used], dtype=np.int64),
    )
