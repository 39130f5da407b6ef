# SPDX-License-Identifier: Apache-2.0
"""Scripted demonstrations of a simulated task as a dataset: same seed, same data. No ROS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.dataset import Demonstrations, require_space
from dipod_ros.learning.task_spec import spec_for
from dipod_ros.sim.demonstrations import collect
from dipod_ros.sim.vector_env import ChunkVectorEnv

# Episodes simulated at a time.
BATCH = 100


def record(
    task: str,
    episodes: int,
    seed: int = 0,
    robot: str = 'arm7',
    progress: Callable[[int], None] | None = None,
) -> Demonstrations:
    """Return `episodes` demonstrations by the task's script, failures included.

    `progress` is called with the number of episodes finished since the last call. Raises UserError
    for an unknown task or robot, no episodes, or more pictures than can be trained on.
    """
    if episodes < 1:
        raise UserError(f'episodes must be at least 1, got {episodes}')
    env = ChunkVectorEnv(task, 1, robot, seed=seed)
    spec = spec_for(env)
    require_space(spec, episodes * max(1, env.task.decisions))
    parts, offset = [], 0
    while offset < episodes:
        count = min(BATCH, episodes - offset)
        batch_seed = int(np.random.default_rng([seed, offset]).integers(2**31))
        parts.append((collect(task, count, seed=batch_seed, robot=robot), offset))
        offset += count
        if progress is not None:
            progress(count)
    return Demonstrations(
        spec=spec,
        observations=np.concatenate([p.observations for p, _ in parts]).astype(np.float32),
        actions=np.concatenate([p.actions for p, _ in parts]).astype(np.float32),
        episodes=np.concatenate([p.episodes + start for p, start in parts]),
        success=np.concatenate([p.success for p, _ in parts]),
        seed=seed,
        images=_joined([p.images for p, _ in parts]),
        privileged=_joined([p.privileged for p, _ in parts]),
    )


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
