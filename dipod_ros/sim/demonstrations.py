# SPDX-License-Identifier: Apache-2.0
"""Owns how demonstrations are recorded from a task's scripted expert. No ROS, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.vector_env import ChunkVectorEnv

# Worlds that run side by side; the result does not depend on it.
BATCH = 256


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """M decisions of `len(success)` episodes, in the order of the episodes."""

    observations: np.ndarray  # float32 [M, O]
    # Executed increments (rad per control step), after the limit filter: what is learned from them
    # is feasible.
    actions: np.ndarray  # float32 [M, H, A]
    episodes: np.ndarray  # int64 [M], which episode a decision belongs to
    success: np.ndarray  # bool [episodes]


def collect(
    task: str,
    episodes: int,
    seed: int = 0,
    robot: RobotConfig | str = 'arm7',
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Demonstrations:
    """Record `episodes` episodes of the task's demonstrator, failures included.

    `progress` is called with the number of episodes finished since the last call. Raises UserError
    for an unknown task, a robot that does not fit, or a task without a demonstrator.
    """
    parts, wins = [], []
    for first in range(0, episodes, BATCH):
        count = min(BATCH, episodes - first)
        # One seed per batch: episode k is the same whether 300 or 3000 are asked for, as long as
        # its batch is full.
        env = ChunkVectorEnv(task, count, robot, [seed, first], autoreset=False, threads=threads)
        part, success = _run(env, first, [seed, first])
        parts.append(part)
        wins.append(success)
        if progress is not None:
            progress(count)
    observations, actions, owners = (np.concatenate(p) for p in zip(*parts, strict=True))
    order = np.argsort(owners, kind='stable')
    return Demonstrations(observations[order], actions[order], owners[order], np.concatenate(wins))
