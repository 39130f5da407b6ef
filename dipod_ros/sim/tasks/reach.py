# SPDX-License-Identifier: Apache-2.0
"""reach: bring the tip to a goal in free space. The easy one: nothing to hit, one solution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.demonstrator import Demonstrator, Motion, solve_poses
from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.tasks.base import Task, Verdict

# Tip positions (m) of starts and goals.
BOX = ((0.36, 0.58), (-0.25, 0.25), (0.15, 0.40))
# Start poses are solved once; an episode draws one of them.
POSES = 400
# A goal closer than this to the start would be won without moving.
MINIMUM_DISTANCE = 0.12


@dataclass(frozen=True)
class Expert:
    """Ranges of what the demonstrator gets wrong, drawn once per episode."""

    speed: tuple[float, float] = (0.22, 0.45)  # m/s; the slowest runs out of time
    goal_offset: float = 0.008  # m, standard deviation per axis
    motion: Motion = Motion()


@dataclass(frozen=True)
class GoalMotion:
    """A goal that swings along y about where it was drawn: amplitude sin(2 pi t / period).

    t is the time since the episode began, so the motion depends on nothing but that.
    """

    amplitude_m: float = 0.05
    period_s: float = 3.0

    def __post_init__(self) -> None:
        if not (self.amplitude_m >= 0 and self.period_s > 0):
            raise UserError(
                f'goal motion: amplitude_m {self.amplitude_m} must be at least 0 and period_s '
                f'{self.period_s} above 0'
            )

    def at(self, goal: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """Return where goals drawn at [N, 3] are at times [N] of their episodes."""
        moved = goal.copy()
        moved[:, 1] += self.amplitude_m * np.sin(2 * np.pi * time_s / self.period_s)
        return moved


class Reach(Task):
    """Success: the tip is within `tolerance` of the goal at the end of a chunk."""

    name = 'reach'
    scene = 'reach'
    decisions = 10
    tolerance = 0.025  # m

    def __init__(self, robot: RobotConfig, motion: GoalMotion | None = None) -> None:
        """Compile the world; with `motion` the goal moves."""
        super().__init__(robot)
        self._motion = motion
        rng = np.random.default_rng(0)
        self._tips = _draw(rng, POSES)
        poses = solve_poses(self.chain, robot.home, self._tips)
        self._starts = [self.world.rest_state(pose) for pose in poses]

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw one of the start poses and a goal that is not already reached."""
        index = rng.integers(POSES)
        while True:
            goal = _draw(rng, 1)[0]
            if np.linalg.norm(goal - self._tips[index]) > MINIMUM_DISTANCE:
                return self._starts[index], goal

    def points(self, worlds: BatchWorlds, goal: np.ndarray) -> dict[str, np.ndarray]:
        """Return every point stream as [N, 3] (m, world frame), the goal where it is now."""
        if self._motion is not None:
            goal = self._motion.at(goal, worlds.state[:, 0])  # the first of a state is its time
        return super().points(worlds, goal)

    def judge(
        self, worlds: BatchWorlds, goal: np.ndarray, progress: np.ndarray, touched: np.ndarray
    ) -> Verdict:
        """Sparse: 1 at the goal, 0 otherwise."""
        points = self.points(worlds, goal)
        there = np.linalg.norm(points['tip'] - points['goal'], axis=1) < self.tolerance
        return Verdict(there.astype(np.float64), there, np.zeros_like(there))

    def demonstrator(
        self, count: int, rng: np.random.Generator, expert: Expert | None = None
    ) -> Demonstrator:
        """Go straight to where it believes the goal to be."""
        x = expert or Expert()
        speed = rng.uniform(*x.speed, size=count)[:, None]
        offset = rng.normal(size=(count, 3)) * x.goal_offset

        def straight(tip: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
            to_goal = points['goal'] + offset - tip
            distance = np.linalg.norm(to_goal, axis=1, keepdims=True)
            # Constant speed, then a linear slow-down over the last 10 cm.
            return speed * to_goal / np.maximum(distance, 0.10)

        return Demonstrator(self.chain, self.world.robot, self.horizon, straight, rng, x.motion)


def _draw(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.stack([rng.uniform(low, high, count) for low, high in BOX], axis=1)
