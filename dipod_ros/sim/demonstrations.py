# SPDX-License-Identifier: Apache-2.0
"""Owns how demonstrations are recorded from a task's scripted expert. No ROS, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.vector_env import ChunkVectorEnv

# Worlds that run side by side.
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
    count = min(BATCH, episodes)
    env = ChunkVectorEnv(task, count, robot, seed, autoreset=False, threads=threads)
    rng = np.random.default_rng(seed)
    batches = []
    for first in range(0, episodes, count):
        if first:
            env.reset()
        keep = min(count, episodes - first)
        batches.append(_run(env, rng, first, keep))
        if progress is not None:
            progress(keep)
    return Demonstrations(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def _run(
    env: ChunkVectorEnv, rng: np.random.Generator, first: int, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Run one episode per world; return the fields of Demonstrations for the first `keep`."""
    expert = env.task.demonstrator(env.num_envs, rng)
    observation = env.observe()
    observations, actions, alive = [], [], []
    while not env.episodes.done.all():
        before = env.command
        alive.append(~env.episodes.done)
        observations.append(observation)
        chunk = expert.chunk(before, env.episodes.points())
        observation, _, _, _, info = env.step(chunk)
        actions.append(np.diff(info['executed'], axis=1, prepend=before[:, None]))
    # [decisions, N, ...] -> episode after episode.
    chosen = np.stack(alive, axis=1)[:keep]
    owners = np.broadcast_to(first + np.arange(keep)[:, None], chosen.shape)[chosen]
    return (
        np.stack(observations, axis=1)[:keep][chosen],
        np.stack(actions, axis=1)[:keep][chosen].astype(np.float32),
        owners.astype(np.int64),
        env.episodes.success[:keep].copy(),
    )
