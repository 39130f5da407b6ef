# SPDX-License-Identifier: Apache-2.0
"""The cameras that mujoco_sim publishes; touches GL only when there is one. Used by mujoco_sim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dipod_ros.nodes._mujoco_sim_params import MujocoSimParams
from dipod_ros.sim.tasks.base import Task


class Cameras:
    """All cameras asked for or looked through, sharing one renderer."""

    def __init__(self, params: MujocoSimParams, task: Task) -> None:
        """Open them, and those that policies of the task see through.

        Raises UserError for an unknown camera, NoGL where nothing can be drawn.
        """
        names = tuple(dict.fromkeys((*params.cameras, *task.cameras().values())))
        world = task.world
        self._every = params.camera_every
        self._focal_px: dict[str, float] = {}
        self._renderer = None
        if names:
            from dipod_ros.sim.render import SceneRenderer, focal_length

            width, height = params.camera_width, params.camera_height
            self._focal_px = {c: focal_length(world, c, height) for c in names}
            self._renderer = SceneRenderer(world, width, height, smooth=False)

    def pictures(
        self, tick: int, state: np.ndarray, goal: np.ndarray, begins: bool
    ) -> Iterator[tuple[str, np.ndarray, float]]:
        """Yield name, uint8 [height, width, 3] and focal length (pixel), when it is their turn.

        Takes a full-physics state [S], the goal [3] (m), and whether an episode `begins`: what was
        seen before is another world then, so that it is their turn in any case.
        """
        if self._renderer is not None and (begins or tick % self._every == 0):
            for name, focal_px in self._focal_px.items():
                yield name, self._renderer.render(state, name, goal), focal_px

    def close(self) -> None:
        """Release the GL context."""
        if self._renderer is not None:
            self._renderer.close()
