# SPDX-License-Identifier: Apache-2.0
"""pillar_reach: bring the tip to a goal behind a pillar, on its left or on its right.

Two good solutions and nothing between them: a policy that averages runs into the pillar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.demonstrator import Demonstrator, Motion, solve_poses
from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.tasks.base import Task, Verdict

PILLAR_X = 0.52
# Tip positions (m) at the start and at the goal: opposite sides of the pillar.
START_BOX = ((0.42, 0.60), (-0.32, -0.22), (0.20, 0.30))
GOAL_BOX = ((0.42, 0.60), (0.22, 0.32), (0.20, 0.30))
# Start poses are solved once; an episode draws one of them.
POSES = 400


@dataclass(frozen=True)
class Expert:
    """Ranges of what the demonstrator gets wrong, drawn once per episode."""

    # Distance (m) at which it passes the pillar's axis: base + |normal(mean, std)|. The peg
    # touches below 0.052, the hand below 0.082 where the tip is low: it cuts the corner finely, and
    # a policy that clones it with some error touches often.
    clearance_base: float = 0.07
    clearance_mean: float = 0.015
    clearance_std: float = 0.015
    # m/s; the slowest runs out of time.
    speed: tuple[float, float] = (0.25, 0.42)
    # Standard deviation (m) per axis of where it believes the goal to be.
    goal_offset: float = 0.012
    motion: Motion = Motion()


class PillarReach(Task):
    """Success: the tip is within `tolerance` of the goal at the end of a chunk; touching loses."""

    name = 'pillar_reach'
    scene = 'pillar_reach'
    decisions = 14
    tolerance = 0.025  # m

    def __init__(self, robot: RobotConfig) -> None:
        super().__init__(robot)
        self._touch = int(
            self.world.model.sensor_adr[self.world.scene_id(mujoco.mjtObj.mjOBJ_SENSOR, 'pillar')]
        )
        rng = np.random.default_rng(0)
        targets = np.stack([rng.uniform(low, high, POSES) for low, high in START_BOX], axis=1)
        poses = solve_poses(self.chain, robot.home, targets)
        self._starts = [self.world.rest_state(pose) for pose in poses]

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw one of the start poses and a goal."""
        state = self._starts[rng.integers(POSES)]
        return state, np.array([rng.uniform(low, high) for low, high in GOAL_BOX])

    def touched(self, sensors: np.ndarray) -> np.ndarray:
        """Return whether anything touched the pillar."""
        return np.any(sensors[:, :, self._touch] > 0, axis=1)

    def judge(
        self, worlds: BatchWorlds, goal: np.ndarray, progress: np.ndarray, touched: np.ndarray
    ) -> Verdict:
        """Sparse: 1 at the goal, 0 otherwise."""
        tip = self.points(worlds, goal)['tip']
        there = (np.linalg.norm(tip - goal, axis=1) < self.tolerance) & ~touched
        return Verdict(there.astype(np.float64), there, touched)

    def demonstrator(
        self, count: int, rng: np.random.Generator, expert: Expert | None = None
    ) -> Demonstrator:
        """Pass the pillar on either side with equal odds."""
        x = expert or Expert()
        side = rng.choice([-1.0, 1.0], size=count)
        clearance = x.clearance_base + np.abs(
            rng.normal(x.clearance_mean, x.clearance_std, size=count)
        )
        speed = rng.uniform(*x.speed, size=count)
        offset = rng.normal(size=(count, 3)) * x.goal_offset
        path = _Path(PILLAR_X + side * clearance, speed, offset)
        return Demonstrator(self.chain, self.world.robot, self.horizon, path, rng, x.motion)


class _Path:
    """A straight line to the goal, bent around the pillar by a bell of `WIDTH` along y."""

    WIDTH = 0.17  # m
    PULL = 3.0  # 1/s, back to the path
    SLOW_DOWN = 0.10  # m from the goal

    def __init__(self, waypoint_x: np.ndarray, speed: np.ndarray, offset: np.ndarray) -> None:
        self._waypoint_x = waypoint_x
        self._speed = speed
        self._offset = offset
        self._start: np.ndarray | None = None

    def __call__(self, tip: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the wanted tip velocity [N, 3] (m/s)."""
        if self._start is None:
            self._start = tip.copy()
        goal = points['goal'] + self._offset
        here, slope = self._at(tip[:, 1], goal)
        tangent = slope / np.linalg.norm(slope, axis=1, keepdims=True)
        to_goal = goal - tip
        distance = np.linalg.norm(to_goal, axis=1, keepdims=True)
        # Near the goal the path's tangent says nothing any more: go straight for it.
        near = np.clip(1 - distance / self.SLOW_DOWN, 0, 1)
        direction = (1 - near) * tangent + near * to_goal / np.maximum(distance, 1e-6)
        speed = self._speed[:, None] * np.minimum(1, distance / self.SLOW_DOWN)
        return speed * direction + self.PULL * (1 - near) * (here - tip)

    def _at(self, y: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the path's point and its derivative by y, both [N, 3], at the tip's own y."""
        start = self._start
        span = goal[:, 1] - start[:, 1]
        rate = (goal - start) / span[:, None]
        line = start + rate * (y - start[:, 1])[:, None]
        middle_x = start[:, 0] + rate[:, 0] * (0 - start[:, 1])
        bell = (self._waypoint_x - middle_x) * np.exp(-((y / self.WIDTH) ** 2))
        here, slope = line.copy(), rate.copy()
        here[:, 0] += bell
        slope[:, 0] += bell * (-2 * y / self.WIDTH**2)
        return here, slope
