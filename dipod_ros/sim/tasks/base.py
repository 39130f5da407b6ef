# SPDX-License-Identifier: Apache-2.0
"""Owns what a task is: how an episode starts, what is observed, when it is won or lost. No ROS.

A task never steps physics and keeps no state of an episode: it is asked about N worlds at a time,
so the vectorised env and the ROS node share one definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.spec import Stream
from dipod_ros.resources import resource
from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.demonstrator import Demonstrator
from dipod_ros.sim.kinematics import SerialChain
from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.world import World, compile_world

# Two streams of every policy. `command` is known to whoever commands: it has no topic.
JOINTS_TOPIC = 'joint_states'
# The pictures of a camera are on <camera>/image_raw.
IMAGE_SUFFIX = '/image_raw'


@dataclass(frozen=True, eq=False)
class Verdict:
    """What N worlds earned at a judgement; `success` and `failed` end the episode."""

    reward: np.ndarray  # float64 [N]
    success: np.ndarray  # bool [N]
    failed: np.ndarray  # bool [N]


class Task:
    """Base of all tasks; a subclass gives the class attributes and the methods below."""

    name: ClassVar[str]
    scene: ClassVar[str | None] = None  # MJCF below sim/scenes/, without suffix
    # Control steps per chunk and between two judgements.
    horizon: ClassVar[int] = 5
    # Judgements until the time is up; 0: the episode never ends. Running out of time is a loss
    # like any other (terminated, not truncated): the deadline is part of the task.
    decisions: ClassVar[int] = 0
    needs_tip: ClassVar[bool] = True

    def __init__(self, robot: RobotConfig) -> None:
        """Compile the world; raises UserError when the robot cannot do this task."""
        scene = resource(f'sim/scenes/{self.scene}.xml') if self.scene else None
        self.world: World = compile_world(robot, scene)
        if self.needs_tip and self.world.tip_id < 0:
            raise UserError(
                f'task {self.name} needs a tip: set tip_site of robot {robot.name} to a site of '
                f'{robot.mjcf.name}, or use task none'
            )
        self.chain = SerialChain(self.world) if self.world.tip_id >= 0 else None

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names, and topics, of the point streams, in observation order."""
        return ('tip', 'goal') if self.needs_tip else ()

    def streams(self) -> tuple[Stream, ...]:
        """Return the observation streams of a policy for this task, in order."""
        size = self.world.robot.size
        return (
            Stream('joint_position', 'joint_position', size, JOINTS_TOPIC),
            Stream('command', 'command', size),
            *(Stream(name, 'point', 3, name) for name in self.point_names),
        )

    def cameras(self) -> dict[str, str]:
        """Return the camera of the scene that each image stream sees through, by stream name."""
        return {
            s.name: s.topic.removesuffix(IMAGE_SUFFIX)
            for s in self.streams()
            if s.image is not None
        }

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw an episode; return its first full-physics state [S] and its goal [3] (m)."""
        raise NotImplementedError

    def points(self, worlds: BatchWorlds, goal: np.ndarray) -> dict[str, np.ndarray]:
        """Return every point stream as [N, 3] (m, world frame)."""
        if not self.needs_tip:
            return {}
        return {'tip': self.chain.forward(worlds.joint_position), 'goal': goal}

    def touched(self, sensors: np.ndarray) -> np.ndarray:
        """Return booleans [N]: a forbidden contact within `sensors` [N, T, sensordata]."""
        return np.zeros(len(sensors), dtype=bool)

    def judge(
        self, worlds: BatchWorlds, goal: np.ndarray, progress: np.ndarray, touched: np.ndarray
    ) -> Verdict:
        """Judge N worlds at the end of a chunk.

        `progress` [N] is what `progress()` gave at the previous judgement, `touched` [N] whether a
        forbidden contact happened since the episode began.
        """
        raise NotImplementedError

    def progress(self, worlds: BatchWorlds, goal: np.ndarray) -> np.ndarray:
        """Return a measure [N] of how far the task has come, for shaping; 0 when unused."""
        return np.zeros(worlds.count)

    def demonstrator(self, count: int, rng: np.random.Generator) -> Demonstrator:
        """Return the scripted, imperfect expert for `count` episodes, to be begun together.

        Raises UserError for a task that has none.
        """
        raise UserError(f'task {self.name} has no demonstrator')
