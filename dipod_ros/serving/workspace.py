# SPDX-License-Identifier: Apache-2.0
"""A box that the tool must not leave. numpy only; where the tool is, is injected.

The box is checked at control points, and at those of the stop from each of them. Between two of
them the tool moves along an arc: the margin is for that, and for how far the arm lags its command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dipod_ros.errors import UserError

# Slack (m) for round-off: of a stop that is computed again from another point of it, and of a tool
# that stands still.
TOLERANCE_M = 1e-9
STILL_M = 1e-12


class Tool(Protocol):
    """Forward kinematics of one point of the arm."""

    reach: np.ndarray  # [A] m/rad: the tool never moves further than this per unit of a joint

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return tool positions [N, 3] (m) for joint positions [N, A] (rad)."""


@dataclass(frozen=True, eq=False)
class Box:
    """Where the tool may be, in the frame of the model's world; m, float64 [3]."""

    lower: np.ndarray
    upper: np.ndarray
    margin_m: float = 0.0  # how far inside the box the commanded tool stays

    def __post_init__(self) -> None:
        for name in ('lower', 'upper'):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.shape != (3,) or not np.isfinite(values).all():
                raise UserError(f'workspace.{name} must be three numbers x, y, z, got {values}')
        if not (np.isfinite(self.margin_m) and self.margin_m >= 0):
            raise UserError(f'workspace.margin_m must not be negative, got {self.margin_m}')
        if not np.all(self.lower + self.margin_m < self.upper - self.margin_m):
            raise UserError(
                f'workspace.lower {self.lower.tolist()} is not below workspace.upper '
                f'{self.upper.tolist()} by more than twice workspace.margin_m {self.margin_m}'
            )

    def depth(self, positions: np.ndarray) -> np.ndarray:
        """Return [N] how deep (m) inside the margin positions [N, 3] are; negative is outside."""
        below = positions - self.lower
        above = self.upper - positions
        return np.minimum(below, above).min(axis=-1) - self.margin_m


class Workspace:
    """Tells how much of a motion keeps the tool inside its box, every stop on the way included."""

    def __init__(self, box: Box, tool: Tool, acceleration: np.ndarray) -> None:
        """Take the box, the tool and the acceleration limits [A] (rad/s^2) that stops use."""
        self.box = box
        self._tool = tool
        self._acceleration = acceleration

    def outside(self, position: np.ndarray) -> bool:
        """Tell whether the tool is outside at a joint position [A] (rad)."""
        return not self._depth(position[None])[0] >= -TOLERANCE_M

    def admissible(
        self,
        position: np.ndarray,
        points: np.ndarray,
        dt: float,
        stop: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> int:
        """Return how many of control points [H, A], which follow `position` [A], may be executed.

        They are the longest beginning from every point of which `stop(position, velocity)` [K, A]
        stays in the box. From outside, each step must lead back, and its stop must not lead away.
        """
        path = np.concatenate([position[None], points])
        velocity = (path[1:] - path[:-1]) / dt
        # How far the tool may get from a point until it stands: |v| sheds a dt per period, so the
        # joints cover no more than v^2 / (2 a). Most points need no look at their stop then.
        coasts = (velocity**2 / (2 * self._acceleration)) @ self._tool.reach
        begin = self._depth(position[None])[0]
        moved = np.abs(points - position) @ self._tool.reach
        if begin >= (moved + coasts).max(initial=0.0):
            return len(points)
        depths = self._depth(points)
        before = begin
        for k, depth in enumerate(depths):
            # Where it must not go further out: the wall, or where it is already.
            floor = min(before, 0.0)
            if not depth >= floor - STILL_M:
                return k
            if not depth - coasts[k] >= floor:
                deepest = self._depth(stop(points[k], velocity[k])).min()
                if not deepest >= floor - TOLERANCE_M:
                    return k
            before = depth
        return len(points)

    def _depth(self, positions: np.ndarray) -> np.ndarray:
        return self.box.depth(self._tool(positions))
