# SPDX-License-Identifier: Apache-2.0
"""Owns offscreen pictures of a world; the only file here that needs GL. No ROS."""

from __future__ import annotations

import os
import sys

import mujoco
import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.sim.batch import STATE
from dipod_ros.sim.world import World

GL_HINT = (
    'no OpenGL for offscreen rendering here: apt-get install libegl1 libgl1-mesa-dri '
    '(or libosmesa6, then MUJOCO_GL=osmesa)'
)


class NoGL(UserError):
    """There is no offscreen OpenGL on this machine; everything but pictures works."""


class SceneRenderer:
    """Renders states of one world to RGB; shadows and reflections are off (4x faster on a CPU)."""

    def __init__(self, world: World, width: int = 320, height: int = 240) -> None:
        """Take the world and the size of the pictures in pixels. Raises NoGL."""
        # mujoco picks its GL library at the first import of its renderer; on a machine without a
        # screen the default (GLFW) fails, and with it every later attempt of the process.
        if sys.platform == 'linux' and not os.environ.get('DISPLAY'):
            os.environ.setdefault('MUJOCO_GL', 'egl')
        self._world = world
        self._data = mujoco.MjData(world.model)
        world.model.vis.global_.offwidth = max(width, world.model.vis.global_.offwidth)
        world.model.vis.global_.offheight = max(height, world.model.vis.global_.offheight)
        try:
            self._renderer = mujoco.Renderer(world.model, height=height, width=width)
        except Exception as error:  # the classes differ between GL libraries
            reason = str(error).split('\n')[0] or type(error).__name__
            raise NoGL(f'{GL_HINT} [{reason}]') from error
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def render(
        self, state: np.ndarray, camera: str | None = None, goal: np.ndarray | None = None
    ) -> np.ndarray:
        """Return uint8 [height, width, 3] of a full-physics state [S].

        `camera` is a camera of the scene or the robot; None is a free camera on the arm. A `goal`
        [3] (m) is drawn as a green ball.
        """
        model = self._world.model
        mujoco.mj_setState(model, self._data, state, STATE)
        mujoco.mj_forward(model, self._data)
        view = self._free_camera() if camera is None else self._world.camera_id(camera)
        self._renderer.update_scene(self._data, view)
        if goal is not None:
            self._mark(goal)
        return self._renderer.render().copy()

    def close(self) -> None:
        """Release the GL context."""
        self._renderer.close()

    def _free_camera(self) -> mujoco.MjvCamera:
        camera = mujoco.MjvCamera()
        camera.lookat[:] = (0.35, 0.0, 0.3)
        camera.distance, camera.azimuth, camera.elevation = 1.7, 150, -25
        return camera

    def _mark(self, goal: np.ndarray) -> None:
        scene = self._renderer.scene
        if scene.ngeom >= scene.maxgeom:
            return
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.array([0.02, 0.0, 0.0]),
            np.asarray(goal, dtype=np.float64),
            np.eye(3).ravel(),
            np.array([0.1, 0.8, 0.2, 0.6], dtype=np.float32),
        )
        scene.ngeom += 1
