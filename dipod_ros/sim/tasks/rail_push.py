# SPDX-License-Identifier: Apache-2.0
"""rail_push: push a puck along its rail onto a mark and leave it there. Needs contact.

The puck can only be pushed, never pulled: to go too far is to lose.
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

RAIL_X = 0.5  # m
PUCK_RADIUS = 0.04  # m
PEG_RADIUS = 0.012  # m
# Tip (m) at the start, behind the puck; the puck's start and its mark along the rail.
START_BOX = ((0.48, 0.52), (-0.30, -0.24), (0.05, 0.08))
PUCK_START = (-0.16, -0.10)
MARK = (0.08, 0.20)
POSES = 400
# Reward per metre that the puck comes closer to the mark; below 0.1 in all, against 1 for success.
SHAPING = 0.3


@dataclass(frozen=True)
class Expert:
    """Ranges of what the demonstrator gets wrong, drawn once per episode."""

    speed: tuple[float, float] = (0.22, 0.38)  # m/s
    # Where it stops the puck, relative to the mark (m).
    stop_offset: float = 0.010
    # How far off the rail's axis it pushes (m).
    lateral_offset: float = 0.010
    motion: Motion = Motion(wander_m_s=0.006)


class RailPush(Task):
    """Success: the puck is within `tolerance` of the mark and slower than `rest_speed`."""

    name = 'rail_push'
    scene = 'rail_push'
    decisions = 14
    tolerance = 0.015  # m
    rest_speed = 0.05  # m/s
    # Beyond the mark by this much, the episode is lost: the puck cannot be pulled back.
    overshoot = 0.02  # m

    def __init__(self, robot: RobotConfig) -> None:
        super().__init__(robot)
        self._puck = self.world.scene_id(mujoco.mjtObj.mjOBJ_JOINT, 'puck')
        body = self.world.scene_id(mujoco.mjtObj.mjOBJ_BODY, 'puck')
        self._rail = self.world.model.body_pos[body].copy()
        rng = np.random.default_rng(0)
        targets = np.stack([rng.uniform(low, high, POSES) for low, high in START_BOX], axis=1)
        poses = solve_poses(self.chain, robot.home, targets)
        self._starts = [self.world.rest_state(pose) for pose in poses]

    @property
    def point_names(self) -> tuple[str, ...]:
        """Tip, mark and puck."""
        return ('tip', 'goal', 'puck')

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a start pose, the puck's place and the mark."""
        state = self._starts[rng.integers(POSES)].copy()
        state[1 + self.world.model.jnt_qposadr[self._puck]] = rng.uniform(*PUCK_START)
        return state, self._rail + [0.0, rng.uniform(*MARK), 0.0]

    def points(self, worlds: BatchWorlds, goal: np.ndarray) -> dict[str, np.ndarray]:
        """Return tip, mark and puck, each [N, 3] (m)."""
        puck = np.tile(self._rail, (worlds.count, 1))
        puck[:, 1] += worlds.qpos(self._puck)
        return {**super().points(worlds, goal), 'puck': puck}

    def judge(
        self, worlds: BatchWorlds, goal: np.ndarray, progress: np.ndarray, touched: np.ndarray
    ) -> Verdict:
        """Reward 1 on the mark, plus a little for every metre that the puck came closer."""
        past = self._past(worlds, goal)
        at_rest = np.abs(worlds.qvel(self._puck)) < self.rest_speed
        there = (np.abs(past) < self.tolerance) & at_rest
        shaped = SHAPING * (self.progress(worlds, goal) - progress)
        return Verdict(there + shaped, there, ~there & (past > self.overshoot))

    def progress(self, worlds: BatchWorlds, goal: np.ndarray) -> np.ndarray:
        """Return minus the distance [N] (m) between puck and mark."""
        return -np.abs(self._past(worlds, goal))

    def demonstrator(
        self, count: int, rng: np.random.Generator, expert: Expert | None = None
    ) -> Demonstrator:
        """Get behind the puck, push along the rail, slow down before the mark."""
        x = expert or Expert()
        speed = rng.uniform(*x.speed, size=count)
        stop = rng.normal(size=count) * x.stop_offset
        lateral = rng.normal(size=count) * x.lateral_offset

        def push(tip: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
            end = points['goal'][:, 1] + stop - PUCK_RADIUS - PEG_RADIUS
            left = end - tip[:, 1]
            return np.stack(
                [
                    4.0 * (RAIL_X + lateral - tip[:, 0]),
                    speed * np.clip(left / 0.08, -1, 1),
                    4.0 * (self._rail[2] - tip[:, 2]),
                ],
                axis=1,
            )

        return Demonstrator(self.chain, self.world.robot, self.horizon, push, rng, x.motion)

    def _past(self, worlds: BatchWorlds, goal: np.ndarray) -> np.ndarray:
        """Return how far [N] (m) the puck is past the mark; negative before it."""
        return self._rail[1] + worlds.qpos(self._puck) - goal[:, 1]
