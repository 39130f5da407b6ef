# SPDX-License-Identifier: Apache-2.0
"""none: any robot at home, no goal and no end; for bring-up and tests."""

from __future__ import annotations

import numpy as np

from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.tasks.base import Task


class NoTask(Task):
    """An episode that nothing ends; works with every robot."""

    name = 'none'
    needs_tip = False

    @property
    def point_names(self) -> tuple[str, ...]:
        """The tip where the robot has one."""
        return ('tip',) if self.chain else ()

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start at home, always."""
        return self.world.rest_state(), np.zeros(3)

    def points(self, worlds: BatchWorlds, goal: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tip [N, 3] (m) where the robot has one."""
        return {'tip': self.chain.forward(worlds.joint_position)} if self.chain else {}
