# SPDX-License-Identifier: Apache-2.0
"""Owns the episodes of N worlds: their starts, goals, clocks and verdicts. No ROS.

What commands the arm (a policy's chunk, a JointTrajectory) is somebody else's business: this takes
setpoints. The vectorised env and the ROS node differ only in where those come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.tasks.base import Task


@dataclass(frozen=True, eq=False)
class Outcome:
    """What happened in N worlds since the previous outcome."""

    reward: np.ndarray  # float64 [N]
    success: np.ndarray  # bool [N], of the episode
    terminated: np.ndarray  # bool [N]: won, lost or out of time


class Episodes:
    """N worlds of one task, each in its own episode.

    Episode e of world i depends on (seed, i, e) only: neither on the other worlds nor on how many
    random numbers an earlier episode drew.
    """

    def __init__(self, task: Task, count: int, seed: int, threads: int = 1) -> None:
        self.task = task
        self.worlds = BatchWorlds(task.world, count, threads)
        self.seed = int(seed)
        self.episode = np.full(count, -1, dtype=np.int64)
        self.step = np.zeros(count, dtype=np.int64)  # control steps in this episode
        self.goal = np.zeros((count, 3))
        self.done = np.zeros(count, dtype=bool)
        self.success = np.zeros(count, dtype=bool)
        self._touched = np.zeros(count, dtype=bool)
        self._progress = np.zeros(count)
        self._reward = np.zeros(count)
        self.begin(np.ones(count, dtype=bool))

    @property
    def count(self) -> int:
        """Number of worlds N."""
        return self.worlds.count

    def restart(self, seed: int) -> None:
        """Begin episode 0 of every world again, with another seed."""
        self.seed = int(seed)
        self.episode[:] = -1
        self.begin(np.ones(self.count, dtype=bool))

    def begin(self, mask: np.ndarray) -> None:
        """Begin the next episode of the worlds marked in `mask` [N]."""
        if not mask.any():
            return
        for i in np.flatnonzero(mask):
            self.episode[i] += 1
            rng = np.random.default_rng([self.seed, int(i), int(self.episode[i])])
            self.worlds.state[i], self.goal[i] = self.task.start(rng)
        self.step[mask] = 0
        self.done[mask] = False
        self.success[mask] = False
        self._touched[mask] = False
        self._reward[mask] = 0
        self._progress[mask] = self.task.progress(self.worlds, self.goal)[mask]

    def advance(
        self, setpoints: np.ndarray, active: np.ndarray | None = None, period_ends: bool = True
    ) -> np.ndarray:
        """Advance one control period and judge the episodes that reached the end of a chunk.

        Args:
            setpoints: references of the drives [N, substeps, A] (rad, rad/s or N m).
            active: booleans [N]; the other worlds stand still. None means all.
            period_ends: False when this is only a part of a control period, and not its last.

        Returns:
            torque at each joint [N, A] (N m), 0 for worlds that stood still.

        """
        moving = np.ones(self.count, dtype=bool) if active is None else active
        sensors = self.worlds.advance(setpoints, active)
        self._touched |= self.task.touched(sensors) & ~self.done
        if period_ends:
            self.step[moving] += 1
            if self.task.decisions:
                self._judge(moving & ~self.done & (self.step % self.task.horizon == 0))
        return sensors[:, -1, self.task.world.effort_index]

    def outcome(self) -> Outcome:
        """Return what happened since the last call; `begin` the terminated ones to go on."""
        reward, self._reward = self._reward, np.zeros(self.count)
        return Outcome(reward, self.success.copy(), self.done.copy())

    def points(self) -> dict[str, np.ndarray]:
        """Return every point stream as [N, 3] (m)."""
        return self.task.points(self.worlds, self.goal)

    def get_state(self) -> dict[str, Any]:
        """Return a copy of everything that the future depends on."""
        names = ('episode', 'step', 'goal', 'done', 'success', '_touched', '_progress', '_reward')
        state = {name: getattr(self, name).copy() for name in names}
        return {'seed': self.seed, 'physics': self.worlds.state.copy(), **state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned."""
        for name, value in state.items():
            if name == 'physics':
                self.worlds.state = value.copy()
            elif name == 'seed':
                self.seed = value
            else:
                setattr(self, name, value.copy())

    def _judge(self, due: np.ndarray) -> None:
        if not due.any():
            return
        verdict = self.task.judge(self.worlds, self.goal, self._progress, self._touched)
        self._reward += np.where(due, verdict.reward, 0.0)
        self.success |= due & verdict.success
        late = self.step >= self.task.decisions * self.task.horizon
        self.done |= due & (verdict.success | verdict.failed | late)
        self._progress = np.where(due, self.task.progress(self.worlds, self.goal), self._progress)
