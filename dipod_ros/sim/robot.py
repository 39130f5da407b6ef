# SPDX-License-Identifier: Apache-2.0
"""Owns what the simulator must know about a robot, and reads it from a ROS parameter file.

The same file configures the nodes (`--params-file`) and the commands (`--robot`), so a robot is
described once. Imports neither rclpy nor mujoco.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.plain_yaml import read_yaml
from dipod_ros.policy.ros_names import topic_problem
from dipod_ros.resources import resource, share_dir

DRIVES = ('position', 'velocity', 'effort')


class RobotError(UserError):
    """A robot file that cannot be used; one line that says what to change."""


@dataclass(frozen=True, eq=False)
class RobotConfig:
    """One robot: its MJCF, its joints in command order, and the limits that are enforced."""

    name: str
    mjcf: Path
    joints: tuple[str, ...]
    actuators: tuple[str, ...]  # position actuators of the MJCF, in the order of `joints`
    home: np.ndarray  # rad, float64 [A]
    limits: JointLimits
    effort: np.ndarray | None  # N m, float64 [A]; None leaves the force ranges of the MJCF
    control_period_s: float
    controller: str  # prefix of the command topics
    tip_site: str  # site published as `tip`; '' when the robot has none
    drive: str = 'position'  # what its drives are simulated to take, one of DRIVES
    max_timestep_s: float | None = None  # physics steps are at most this long; None: as in the MJCF

    @property
    def size(self) -> int:
        """Number of joints A."""
        return len(self.joints)

    @classmethod
    def from_params(cls, params: Mapping[str, Any], beside: Path | None = None) -> RobotConfig:
        """Build from the parameters of a robot file (see config/robots/arm7.yaml).

        `beside` is the folder of that file: a relative `mjcf` is looked for in the share directory
        of dipod_ros first, then there. Raises RobotError naming the parameter to mend.
        """
        name = str(params.get('robot') or '')
        if not name:
            raise RobotError('the robot file gives no `robot` (its name)')
        where = f'robot {name}'
        try:
            joints = tuple(str(j) for j in _required(params, 'joints', where))
            limits_block = _required(params, 'limits', where)
            limits = JointLimits.from_params(joints, limits_block)
            actuators = tuple(str(a) for a in _required(params, 'actuators', where))
            home = np.asarray(_required(params, 'home', where), dtype=np.float64)
            effort = limits_block.get('effort')
            effort = np.asarray(effort, dtype=np.float64) if effort is not None else None
            period = float(params.get('control_period_s', 0.04))
        except (TypeError, ValueError, AttributeError) as error:
            raise RobotError(f'{where}: {error}') from error
        if len(set(joints)) != len(joints):
            raise RobotError(f'{where}: joints must be distinct, got {list(joints)}')
        for key, count in (
            ('actuators', len(actuators)),
            ('home', home.size),
            ('limits.effort', len(joints) if effort is None else effort.size),
        ):
            if count != len(joints):
                raise RobotError(f'{where}: {key} has {count} values for {len(joints)} joints')
        if not np.all((home >= limits.lower) & (home <= limits.upper)):
            raise RobotError(f'{where}: home {home.tolist()} is outside the position limits')
        if not period > 0:
            raise RobotError(f'{where}: control_period_s must be above 0, got {period}')
        controller = str(params.get('controller', 'arm_controller'))
        problem = topic_problem(controller)
        if problem:
            raise RobotError(f'{where}: controller {problem}')
        return cls(
            name=name,
            mjcf=_find_mjcf(str(_required(params, 'mjcf', where)), beside, where),
            joints=joints,
            actuators=actuators,
            home=home,
            limits=limits,
            effort=effort,
            control_period_s=period,
            controller=controller,
            tip_site=str(params.get('tip_site', '')),
        )


def robot_names() -> list[str]:
    """Return the names of the robots that are shipped."""
    return sorted(p.stem for p in resource('config/robots').glob('*.yaml'))


def load_robot(name_or_path: str | Path) -> RobotConfig:
    """Read a robot by its shipped name (`arm7`) or by the path of its parameter file.

    Raises RobotError, listing the shipped names, when there is none.
    """
    path = Path(name_or_path)
    if path.suffix not in ('.yaml', '.yml'):
        if str(name_or_path) not in robot_names():
            raise RobotError(
                f'unknown robot {str(name_or_path)!r}: use one of {robot_names()} or the path of '
                'a robot file (.yaml)'
            )
        path = resource(f'config/robots/{name_or_path}.yaml')
    try:
        tree = read_yaml(path, 'robot file')
    except UserError as error:
        raise RobotError(str(error)) from error
    return RobotConfig.from_params(_ros_parameters(tree, path), beside=path.resolve().parent)


def _ros_parameters(tree: Any, path: Path) -> Mapping[str, Any]:
    """Return the parameters of the only node entry of a ROS parameter file."""
    if isinstance(tree, Mapping):
        for entry in tree.values():
            if isinstance(entry, Mapping) and isinstance(entry.get('ros__parameters'), Mapping):
                return entry['ros__parameters']
    raise RobotError(f'robot file {path} has no `/**: ros__parameters:` block')


def _required(params: Mapping[str, Any], key: str, where: str) -> Any:
    value = params.get(key)
    if value is None or (hasattr(value, '__len__') and len(value) == 0):
        raise RobotError(f'{where}: the robot file gives no `{key}`')
    return value


def _find_mjcf(text: str, beside: Path | None, where: str) -> Path:
    path = Path(text).expanduser()
    tried = [path] if path.is_absolute() else [share_dir() / path]
    if beside is not None and not path.is_absolute():
        tried.append(beside / path)
    for candidate in tried:
        if candidate.is_file():
            return candidate.resolve()
    raise RobotError(f'{where}: no MJCF at {" or ".join(str(p) for p in tried)}; set `mjcf`')
