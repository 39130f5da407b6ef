# SPDX-License-Identifier: Apache-2.0
"""What a URDF says about an arm: its chain of joints, their limits, their axes. numpy, no ROS.

Of the format (http://wiki.ros.org/urdf/XML/joint) only what a robot file needs is read.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.plain_xml import read_xml
from dipod_ros.policy.plain_yaml import YamlError, read_yaml

HINGES = ('revolute', 'continuous')
MOVING = (*HINGES, 'prismatic')
XACRO = 'xmlns:xacro'


@dataclass(frozen=True, eq=False)
class UrdfJoint:
    """One joint of a URDF; SI units, NaN where the file says nothing."""

    name: str
    kind: str  # 'revolute', 'continuous', 'prismatic', 'fixed', ...
    parent: str  # link
    child: str  # link
    pose: np.ndarray  # [4, 4] of the joint in its parent link
    axis: np.ndarray  # [3] unit vector in the joint's frame
    lower: float
    upper: float
    velocity: float
    effort: float
    mimics: bool = False  # follows another joint


def read_urdf(path: str | Path) -> dict[str, UrdfJoint]:
    """Return the joints of a URDF by their child link.

    Raises UserError when the file is missing, is no URDF, or is xacro that was not expanded.
    """
    root, text = read_xml(path)
    if root.tag != 'robot':
        raise UserError(f'{path} is no URDF: its root element is <{root.tag}>, not <robot>')
    if XACRO in text and '<xacro:' in text:
        raise UserError(f'{path} is xacro: run `xacro {path} > arm.urdf` and give that file')
    joints = {}
    for element in root.findall('joint'):
        try:
            joint = _joint(element)
        except (ValueError, TypeError) as error:
            name = element.get('name')
            raise UserError(f'{path}: joint {name!r} cannot be read: {error}') from error
        joints[joint.child] = joint
    if not joints:
        raise UserError(f'{path} has no joints')
    return joints


def chain_to(joints: Mapping[str, UrdfJoint], tip: str, base: str = '') -> list[UrdfJoint]:
    """Return the joints from link `base` (the root when empty) to link `tip`, fixed ones included.

    Raises UserError, naming the links that there are, when the tip does not hang on the base.
    """
    links = sorted(joints.keys() | {j.parent for j in joints.values()})
    for link in filter(None, (tip, base)):
        if link not in links:
            raise UserError(f'the URDF has no link {link!r}; it has {", ".join(links)}')
    chain: list[UrdfJoint] = []
    link = tip
    while link in joints and link != base:
        chain.append(joints[link])
        link = joints[link].parent
        if len(chain) > len(joints):
            raise UserError(f'the joints of the URDF form a loop at link {link!r}')
    if base and link != base:
        raise UserError(f'link {tip!r} does not hang on {base!r}, its chain begins at {link!r}')
    return chain[::-1]


def moving(chain: Sequence[UrdfJoint]) -> list[UrdfJoint]:
    """Return the joints of a chain that can be commanded, in order.

    Raises UserError when there is none, or one of a kind that no command is for.
    """
    found = []
    for joint in chain:
        if joint.kind in MOVING and not joint.mimics:
            found.append(joint)
        elif joint.kind != 'fixed':
            what = 'mimics another joint' if joint.mimics else f'is {joint.kind}'
            raise UserError(
                f'joint {joint.name} {what}: a chain to command has hinges and sliders only; '
                'choose another --tip or --base'
            )
    if not found:
        raise UserError('no joint between base and tip moves; choose another --tip or --base')
    return found


def screws(chain: Sequence[UrdfJoint]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return axes [A, 3], origins [A, 3] and the tip [3], in the base's frame, all joints at 0.

    Those of `TipKinematics` (product of exponentials; Lynch and Park, "Modern Robotics", 2017,
    section 4.1.1). None for a chain with a slider, which has other screws.
    """
    pose, axes, origins = np.eye(4), [], []
    for joint in chain:
        pose = pose @ joint.pose
        if joint.kind == 'prismatic':
            return None
        if joint.kind in HINGES:
            axes.append(pose[:3, :3] @ joint.axis)
            origins.append(pose[:3, 3].copy())
    return np.array(axes), np.array(origins), pose[:3, 3]


def read_joint_limits(path: str | Path) -> dict[str, Mapping[str, Any]]:
    """Return the entries of a `joint_limits` file, as MoveIt and ros2_control have it, by joint.

    Raises UserError when it is none.
    """
    try:
        tree = read_yaml(path)
    except YamlError as error:
        raise UserError(f'{error}; write plain numbers, angles in rad') from error
    blocks = [tree] if isinstance(tree, Mapping) else []
    blocks += [v['ros__parameters'] for b in blocks for v in b.values() if _has_parameters(v)]
    for block in blocks:
        if isinstance(block.get('joint_limits'), Mapping):
            return {str(k): v for k, v in block['joint_limits'].items() if isinstance(v, Mapping)}
    raise UserError(f'{path} has no `joint_limits:` block')


def _has_parameters(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get('ros__parameters'), Mapping)


def _joint(element: ElementTree.Element) -> UrdfJoint:
    origin, limit, soft = (element.find(tag) for tag in ('origin', 'limit', 'safety_controller'))
    axis = element.find('axis')
    xyz, rpy = (_numbers(origin, key, (0.0, 0.0, 0.0)) for key in ('xyz', 'rpy'))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = _rotation(*rpy), xyz
    direction = np.array(_numbers(axis, 'xyz', (1.0, 0.0, 0.0)))
    length = float(np.linalg.norm(direction))
    kind = element.get('type', '')
    if kind in MOVING and not length > 0:
        raise ValueError('its axis has no direction')
    parent, child = (element.find(tag) for tag in ('parent', 'child'))
    if parent is None or child is None or not (parent.get('link') and child.get('link')):
        raise ValueError('it has no parent or no child link')
    # The soft limits lie inside; a drive stops by itself beyond them.
    lower = [_number(limit, 'lower'), _number(soft, 'soft_lower_limit')]
    upper = [_number(limit, 'upper'), _number(soft, 'soft_upper_limit')]
    if kind == 'continuous':
        lower, upper = [math.nan], [math.nan]
    names = (element.get('name', ''), parent.get('link', ''), child.get('link', ''))
    if not all(map(str.isprintable, names)):
        raise ValueError('its name, or that of a link, has a line break or another control sign')
    return UrdfJoint(
        name=element.get('name', ''),
        kind=kind,
        parent=parent.get('link', ''),
        child=child.get('link', ''),
        pose=pose,
        axis=direction / (length or 1.0),
        lower=max((v for v in lower if math.isfinite(v)), default=math.nan),
        upper=min((v for v in upper if math.isfinite(v)), default=math.nan),
        velocity=_number(limit, 'velocity'),
        effort=_number(limit, 'effort'),
        mimics=element.find('mimic') is not None,
    )


def _number(element: ElementTree.Element | None, key: str) -> float:
    text = None if element is None else element.get(key)
    return math.nan if text is None else float(text)


def _numbers(
    element: ElementTree.Element | None, key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    text = None if element is None else element.get(key)
    if text is None:
        return default
    values = tuple(float(v) for v in text.split())
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(f'{key} needs three finite numbers, got {text!r}')
    return values


def _rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Return the rotation [3, 3] about the fixed axes x, y, z in turn."""
    (sr, cr), (sp, cp), (sy, cy) = ((math.sin(a), math.cos(a)) for a in (roll, pitch, yaw))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
