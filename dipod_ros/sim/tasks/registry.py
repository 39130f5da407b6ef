# SPDX-License-Identifier: Apache-2.0
"""Owns the list of tasks; a new task is one file and one line here."""

from __future__ import annotations

from dipod_ros.errors import UserError
from dipod_ros.sim.robot import RobotConfig, load_robot
from dipod_ros.sim.tasks.base import Task
from dipod_ros.sim.tasks.none import NoTask
from dipod_ros.sim.tasks.pillar_reach import PillarReach
from dipod_ros.sim.tasks.rail_push import RailPush
from dipod_ros.sim.tasks.reach import Reach
from dipod_ros.sim.tasks.reach_camera import ReachCamera

TASKS: dict[str, type[Task]] = {
    t.name: t for t in (Reach, PillarReach, RailPush, ReachCamera, NoTask)
}


def task_names() -> list[str]:
    """Return the names of all tasks."""
    return list(TASKS)


def make_task(name: str, robot: RobotConfig | str = 'arm7') -> Task:
    """Compile task `name` for a robot (a config, a shipped name, or a robot file).

    Raises UserError listing the tasks when there is no such task.
    """
    if name not in TASKS:
        raise UserError(f'unknown task {name!r}: use one of {task_names()}')
    return TASKS[name](robot if isinstance(robot, RobotConfig) else load_robot(robot))
