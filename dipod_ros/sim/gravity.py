# SPDX-License-Identifier: Apache-2.0
"""Owns the torques that hold an arm against gravity, from its MJCF. No ROS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from dipod_ros.errors import UserError


class GravityModel:
    """Inverse dynamics of an arm at rest: joint positions to holding torques."""

    def __init__(self, mjcf: Path, joints: Sequence[str]) -> None:
        """Compile `mjcf`; raises UserError when that fails or a joint is not in it."""
        try:
            self._model = mujoco.MjModel.from_xml_path(str(mjcf))
            found = [self._model.joint(name) for name in joints]
        except (ValueError, KeyError) as error:
            text = ' '.join(str(error).split())
            raise UserError(f'gravity compensation: cannot use {mjcf}: {text}') from error
        # Only the links' weights: the world around the arm may push, but that is not known here.
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        self._data = mujoco.MjData(self._model)
        self._qpos = np.array([int(j.qposadr[0]) for j in found])
        self._qvel = np.array([int(j.dofadr[0]) for j in found])

    def __call__(self, position: np.ndarray) -> np.ndarray:
        """Return the torques [A] (N m) that hold the arm at `position` [A] (rad).

        What the MJCF compensates by itself (`gravcomp`) is not asked for again.
        """
        data = self._data
        data.qpos[self._qpos] = position
        mujoco.mj_forward(self._model, data)
        return (data.qfrc_bias - data.qfrc_gravcomp)[self._qvel]
