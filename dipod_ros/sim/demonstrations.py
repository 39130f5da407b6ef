# SPDX-License-Identifier: Apache-2.0
"""Owns how demonstrations are recorded from a task's scripted expert. No ROS, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.vector_env import ChunkVectorEnv

# Worlds that run side by side.
BATCH = 256


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """M decisions of `len(success)` episodes, in the order of the episodes."""

    observations: np.ndarray  # float32 [M, O]; 0 in the place of image streams
    # Executed increments (rad per control step), after the limit filter: what is learned from them
    # is feasible.
    actions: np.ndarray  # float32 [M, H, A]
    episodes: np.ndarray  # int64 [M], which episode a decision belongs to
    success: np.ndarray  # bool [episodes]
    # What each image stream showed, uint8 [M, H, W, C] by its name.
    images: dict[str, np.ndarray] = field(default_factory=dict)
    # Points [M, 3] (m) of the task that its policies are not told, where they look instead.
    privileged: dict[str, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def concatenate(parts: Sequence[Demonstrations]) -> Demonstrations:
        """Join parts, in order, whose episodes are numbered on from one to the next."""
        arrays = {
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in ('observations', 'actions', 'episodes', 'success')
        }
        named = {
            field: {k: np.concatenate([getattr(p, field)[k] for p in parts]) for k in first}
            for field in ('images', 'privileged')
            for first in [getattr(parts[0], field)]
        }
        return Demonstrations(**arrays, **named)


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
    batches: list[Demonstrations] = []
    for first in range(0, episodes, count):
        if first:
            env.reset()
        keep = min(count, episodes - first)
        batches.append(_run(env, rng, first, keep))
        if progress is not None:
            progress(keep)
    env.close()
    return Demonstrations.concatenate(batches)


def _run(env: ChunkVectorEnv, rng: np.random.Generator, first: int, keep: int) -> Demonstrations:
    """Run one episode per world; return what the first `keep` worlds did."""
    expert = env.task.demonstrator(env.num_envs, rng)
    observation = env.observe()
    observations, actions, alive = [], [], []
    images: dict[str, list[np.ndarray]] = {s.name: [] for s in env.streams if s.image is not None}
    told = {s.name for s in env.streams}
    hidden = [name for name in env.episodes.points() if name not in told] if images else []
    points: dict[str, list[np.ndarray]] = {name: [] for name in hidden}
    while not env.episodes.done.all():
        before = env.command
        alive.append(~env.episodes.done)
        # Image streams are NaN as long as there is no encoder: the pictures are kept instead.
        observations.append(np.nan_to_num(observation) if images else observation)
        if images:
            shown = env.pictures()
            for name, kept in images.items():
                kept.append(shown[name][:keep][alive[-1][:keep]])
        now = env.episodes.points()
        for name, kept in points.items():
            kept.append(now[name].astype(np.float32))
        chunk = expert.chunk(before, now)
        observation, _, _, _, info = env.step(chunk)
        actions.append(np.diff(info['executed'], axis=1, prepend=before[:, None]))
    # [decisions, N, ...] -> episode after episode.
    chosen = np.stack(alive, axis=1)[:keep]
    owners = np.broadcast_to(first + np.arange(keep)[:, None], chosen.shape)[chosen]
    # Pictures of ended worlds are not kept (they are large): from [decision, world] order, too.
    order = np.argsort(np.nonzero(chosen.T)[1], kind='stable')
    return Demonstrations(
        np.stack(observations, axis=1)[:keep][chosen],
        np.stack(actions, axis=1)[:keep][chosen].astype(np.float32),
        owners.astype(np.int64),
        env.episodes.success[:keep].copy(),
        {name: np.concatenate(kept)[order] for name, kept in images.items()},
        {name: np.stack(kept, axis=1)[:keep][chosen] for name, kept in points.items()},
    )
