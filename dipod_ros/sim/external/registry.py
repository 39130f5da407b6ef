# SPDX-License-Identifier: Apache-2.0
"""Owns which environment belongs to the name of a task, shipped or external."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dipod_ros.errors import UserError
from dipod_ros.sim.tasks.registry import task_names

if TYPE_CHECKING:
    from dipod_ros.sim.external.chunk_env import ExternalChunkEnv
    from dipod_ros.sim.vector_env import ChunkVectorEnv

# Task name, then Gymnasium's.
GYMNASIUM = {'hopper': 'Hopper-v5', 'walker2d': 'Walker2d-v5'}
EXTERNAL = ('cube_single', *GYMNASIUM)


def make_env(
    task: str, num_envs: int, seed: int | None = None
) -> ChunkVectorEnv | ExternalChunkEnv:
    """Return `num_envs` worlds of a task; a finished world freezes until `reset`.

    Raises UserError for an unknown name, or when an external task's package is not installed.
    """
    if task in GYMNASIUM:
        from dipod_ros.sim.external.gymnasium_chunks import GymnasiumChunkEnv

        return GymnasiumChunkEnv(GYMNASIUM[task], num_envs, seed)
    if task == 'cube_single':
        from dipod_ros.sim.external.ogbench_cube import OgbenchCubeEnv

        return OgbenchCubeEnv(num_envs, seed)
    if task not in task_names():
        raise UserError(f'unknown task {task!r}: use one of {[*task_names(), *EXTERNAL]}')
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    return ChunkVectorEnv(task, num_envs, 'arm7', seed=seed, autoreset=False)
