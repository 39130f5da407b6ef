# SPDX-License-Identifier: Apache-2.0
"""Owns offscreen pictures of a world. No ROS; GL is loaded when the first renderer is made."""

from __future__ import annotations

import mujoco
import numpy as np

from dipod_ros.sim.gl import GL_HINT, NoGL, offscreen_context
from dipod_ros.sim.world import SCENE_PREFIX, STATE, World

MAX_GEOMS = 1000
# Slices of a sphere in the pictures of a camera: enough for what is a few dozen pixels wide.
CAMERA_SLICES = 16


class SceneRenderer:
    """Renders states of one world to RGB; shadows and reflections are off (4x faster on a CPU)."""

    def __init__(
        self, world: World, width: int = 320, height: int = 240, smooth: bool = True
    ) -> None:
        """Take the world and the size of the pictures in pixels. Raises NoGL.

        `smooth` False is for cameras that policies look through: no antialiasing and coarser
        spheres, three times as fast on a CPU.
        """
        self._world = world
        self._data = mujoco.MjData(world.model)
        self._gl = offscreen_context(width, height)
        try:
            self._context = _make_context(world.model, width, height, smooth)
        except mujoco.FatalError as error:
            # libmujoco looks GL up in whichever library was loaded first, which may be an EGL
            # that could not make a context.
            self._gl.free()
            raise NoGL(f'{GL_HINT}; or set MUJOCO_GL=osmesa [{error}]') from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(world.model, maxgeom=MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), dtype=np.uint8)
        body = mujoco.mj_name2id(world.model, mujoco.mjtObj.mjOBJ_BODY, f'{SCENE_PREFIX}goal')
        # Row of the goal marker among the mocap bodies, None in a scene without one.
        self._marker = int(world.model.body_mocapid[body]) if body >= 0 else None

    def render(
        self, state: np.ndarray, camera: str | None = None, goal: np.ndarray | None = None
    ) -> np.ndarray:
        """Return uint8 [height, width, 3] of a full-physics state [S].

        `camera` is a camera of the scene or of the robot's MJCF; None is the scene's `front`, or a
        view of the whole arm where there is none. `goal` [3] (m) places the scene's goal marker.
        """
        model = self._world.model
        mujoco.mj_setState(model, self._data, state, STATE)
        if goal is not None and self._marker is not None:
            self._data.mocap_pos[self._marker] = goal
        mujoco.mj_forward(model, self._data)
        mujoco.mjv_updateScene(
            model,
            self._data,
            self._option,
            None,
            self._view(camera),
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        return self._pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Release the GL context."""
        self._context.free()
        self._gl.free()

    def _view(self, name: str | None) -> mujoco.MjvCamera:
        view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self._world.model, view)
        front = mujoco.mj_name2id(
            self._world.model, mujoco.mjtObj.mjOBJ_CAMERA, f'{SCENE_PREFIX}front'
        )
        found = front if name is None else self._world.camera_id(name)
        if found >= 0:
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, found
        return view


def _make_context(
    model: mujoco.MjModel, width: int, height: int, smooth: bool
) -> mujoco.MjrContext:
    """Return a context whose buffer is no larger than the pictures; the model stays as it is."""
    size, quality = model.vis.global_, model.vis.quality
    wanted = [(size, 'offwidth', width), (size, 'offheight', height)]
    if not smooth:
        wanted += [
            (quality, 'offsamples', 0),
            (quality, 'numslices', CAMERA_SLICES),
            (quality, 'numstacks', CAMERA_SLICES // 2),
        ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def focal_length(world: World, camera: str, height: int) -> float:
    """Return the focal length (pixel) of a camera whose pictures are `height` pixels high."""
    angle = np.radians(world.model.cam_fovy[world.camera_id(camera)])
    return float(height / 2 / np.tan(angle / 2))
