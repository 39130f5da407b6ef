# SPDX-License-Identifier: Apache-2.0
"""An arm behind a simulated controller, which judges what it is told; both can fail."""

import numpy as np
from worlds import DT, START, World

from dipod_ros.sim.controllers import ArmController

STEPS = 8  # of the arm, per control period


class ControlledArm(World):
    """The arm trails its controller's setpoint by a first-order lag."""

    def __init__(self, bench, lag_s=0.0):
        super().__init__(bench)
        self.controller, self.found = ArmController(bench.limits, DT), []
        self.controller.reset(START)
        self.lag_s = lag_s
        self.active = True  # the controller takes commands
        self.powered = True  # the arm goes where the controller tells it to
        self.path = []
        self._played_s = None

    def switch(self, active):
        """Switch the controller off or on: it goes on from where the arm is."""
        self.active = active
        self.controller.halt(self.position)

    @property
    def controller_s(self):
        """The controller's time."""
        return self.loop.grid.now_ns() * 1e-9

    def decide(self):
        self._watched(super().decide)

    def control(self):
        self._watched(super().control)

    def _watched(self, act):
        plans, setpoints = len(self.plans), len(self.setpoints)
        act()
        grid, now_s = self.loop.grid, self.controller_s
        self._play(now_s)
        if not self.active:
            return
        if self.loop.config.interface == 'position':
            for setpoint in self.setpoints[setpoints:]:
                self.found += self.controller.command(setpoint, now_s)
        elif len(self.plans) > plans:
            positions, velocities, tick = self.plans[-1].knots_with_trail(DT)
            begin_s = now_s + (grid.tick_ns(tick) - grid.now_ns()) * 1e-9
            times_s = begin_s + DT * np.arange(len(positions))
            self.found += self.controller.follow(times_s, positions, velocities, now_s)

    def _play(self, now_s):
        before_s, self._played_s = self._played_s, now_s
        if before_s is None or now_s <= before_s:
            return
        step_s = (now_s - before_s) / STEPS
        for setpoint in self.controller.setpoints(before_s, step_s, STEPS):
            part = 1.0 if self.lag_s == 0 else 1 - np.exp(-step_s / self.lag_s)
            if self.powered:
                self.position = self.position + part * (setpoint - self.position)
        self.path.append(self.position)
