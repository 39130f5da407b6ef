# SPDX-License-Identifier: Apache-2.0
"""Owns where a site or body of an MJCF or URDF is, by MuJoCo's forward kinematics. No ROS."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.plain_xml import read_xml
from dipod_ros.resources import share_dir

# Of a URDF only the kinematics matter: its meshes may be in packages that are not here.
_LOOKS = ('visual', 'collision')
_ENDLESS_M = 1e3  # travel of a slide without limits
# Links of a URDF may come without a mass; MuJoCo wants one of what moves. Kinematics ignore it.
_LEAST_MASS_KG, _LEAST_INERTIA = 1e-3, 1e-6


class ToolPosition:
    """Maps joint positions to the position of the tool; joints outside the arm stay at zero.

    One pose at a time and not thread-safe, like the MjData behind it.
    """

    def __init__(self, model: str, name: str, joints: Sequence[str]) -> None:
        """Read a model, relative to the share directory or absolute, and find a site or body in it.

        Raises UserError for a file that is not there or cannot be read, and for an unknown name or
        joint, listing those of the model.
        """
        path = _find(model)
        self._model = m = _compile(path)
        self._data = mujoco.MjData(m)
        self._data.qpos[:] = m.qpos0
        ids = [mujoco.mj_name2id(m, mujoco.mjtObj.mjOBJ_JOINT, j) for j in joints]
        single = [int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)]
        kinds = m.jnt_type.tolist()
        wrong = [j for j, i in zip(joints, ids, strict=True) if i < 0 or kinds[i] not in single]
        if wrong:
            there = [m.joint(i).name for i in range(m.njnt)]
            raise UserError(f'workspace.model {path.name} has no hinge or slide {wrong}: {there}')
        self._qpos = np.array([int(m.jnt_qposadr[i]) for i in ids])
        site = mujoco.mj_name2id(m, mujoco.mjtObj.mjOBJ_SITE, name)
        body = mujoco.mj_name2id(m, mujoco.mjtObj.mjOBJ_BODY, name)
        if site < 0 and body <= 0:
            sites = [m.site(i).name for i in range(m.nsite)]
            bodies = [m.body(i).name for i in range(1, m.nbody)]
            raise UserError(
                f'workspace.tool {name!r} is no site {sites} and no body {bodies} of {path.name}'
            )
        self._slides = [kind == single[1] for kind in kinds]
        self._at = self._data.site_xpos[site] if site >= 0 else self._data.xpos[body]
        offset = float(np.linalg.norm(m.site_pos[site])) if site >= 0 else 0.0
        self.reach = self._reach(ids, int(m.site_bodyid[site]) if site >= 0 else body, offset)
        if not self.reach.any():
            raise UserError(f'workspace.tool {name!r} of {path.name} is moved by none of {joints}')

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the tool's positions [N, 3] (m, world frame) for `positions` [N, A] (rad)."""
        out = np.empty((len(positions), 3))
        model, data, at, qpos = self._model, self._data, self._at, self._qpos
        joints = data.qpos
        for k, position in enumerate(positions):
            joints[qpos] = position
            mujoco.mj_kinematics(model, data)
            out[k] = at
        return out

    def _reach(self, ids: list[int], body: int, offset: float) -> np.ndarray:
        """Return [A] how far the tool moves at most per unit of each joint (m/rad, m/m).

        A hinge turns the tool on a circle no larger than the lengths of all that lies between.
        """
        m = self._model
        reach = np.zeros(len(ids))
        length = offset
        while body > 0:
            first = int(m.body_jntadr[body])
            for joint in reversed(range(first, first + int(m.body_jntnum[body]))):
                anchor = float(np.linalg.norm(m.jnt_pos[joint]))
                slides = self._slides[joint]
                if joint in ids:
                    reach[ids.index(joint)] = 1.0 if slides else length + anchor
                if slides:
                    limited = m.jnt_limited[joint]
                    length += np.abs(m.jnt_range[joint]).max() if limited else _ENDLESS_M
                else:
                    length += 2 * anchor
            length += float(np.linalg.norm(m.body_pos[body]))
            body = int(m.body_parentid[body])
        return reach


def _find(model: str) -> Path:
    path = Path(model).expanduser()
    path = path if path.is_absolute() else share_dir() / path
    if not model or not path.is_file():
        raise UserError(
            f'workspace.model {model!r} is no file (looked at {path}): give an MJCF or a URDF, '
            'relative to the share directory of dipod_ros or absolute'
        )
    return path


def _compile(path: Path) -> mujoco.MjModel:
    try:
        root, _ = read_xml(path, 'workspace.model')
        if root.tag != 'robot':
            return mujoco.MjModel.from_xml_path(str(path))
        for link in root.iter('link'):
            for look in [child for child in link if child.tag in _LOOKS]:
                link.remove(look)
        spec = mujoco.MjSpec.from_string(ElementTree.tostring(root, encoding='unicode'))
        # A tool frame is a link at a fixed joint, which MuJoCo would merge into its parent.
        spec.compiler.fusestatic = False
        spec.compiler.boundmass, spec.compiler.boundinertia = _LEAST_MASS_KG, _LEAST_INERTIA
        return spec.compile()
    except (ValueError, RecursionError) as error:
        text = ' '.join(str(error).split())
        raise UserError(f'workspace.model {path}: MuJoCo cannot read it: {text}') from error
