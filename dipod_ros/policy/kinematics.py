# SPDX-License-Identifier: Apache-2.0
"""Where the tip of an arm is, by its joint positions and the numbers in its robot file. numpy."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError


@dataclass(frozen=True, eq=False)
class TipKinematics:
    """The screw axes of a chain of hinges with all joints at 0, in the order of the joints.

    Product of exponentials (Lynch and Park, "Modern Robotics", 2017, Eq. 4.14): the tip is turned
    about the axis of the last joint, then about that of the one before, up to the first.
    """

    axes: np.ndarray  # [A, 3] unit vectors
    origins: np.ndarray  # [A, 3] m, any point on each axis
    tip: np.ndarray  # [3] m
    topic: str  # of the stream that is the tip, in the frame of the numbers above

    @classmethod
    def from_params(
        cls,
        joints: Sequence[str],
        axes: Sequence[float],
        origins: Sequence[float],
        tip: Sequence[float],
        topic: str,
    ) -> TipKinematics | None:
        """Build from flat lists, three numbers per joint; None when all of them are empty.

        Raises UserError when some are missing or cannot be what they should.
        """
        given = {'axes': axes, 'origins': origins, 'tip': tip}
        if not any(len(v) for v in given.values()):
            return None
        arrays = {}
        for name, values in given.items():
            count = 3 if name == 'tip' else 3 * len(joints)
            array = np.asarray(values, dtype=np.float64)
            if array.shape != (count,) or not np.isfinite(array).all():
                raise UserError(
                    f'kinematics.{name} needs {count} finite numbers, got {len(values)}: give '
                    'axes and origins with three per joint and tip with three, or none of them'
                )
            arrays[name] = array if name == 'tip' else array.reshape(-1, 3)
        length = np.linalg.norm(arrays['axes'], axis=1, keepdims=True)
        if np.any(length < 1e-6):
            raise UserError('kinematics.axes: an axis has no direction; give unit vectors')
        return cls(arrays['axes'] / length, arrays['origins'], arrays['tip'], topic)

    def forward(self, q: np.ndarray) -> np.ndarray:
        """Return the tip's position [3] (m) for joint positions q [A] (rad)."""
        # In plain numbers: numpy takes ten times as long for three of them.
        x, y, z = self._tip
        for (ax, ay, az), (ox, oy, oz), angle in zip(
            self._reversed_axes, self._reversed_origins, q[::-1].tolist(), strict=True
        ):
            x, y, z = x - ox, y - oy, z - oz
            cos, sin = math.cos(angle), math.sin(angle)
            along = (ax * x + ay * y + az * z) * (1.0 - cos)
            # Rodrigues' formula
            x, y, z = (
                ox + x * cos + (ay * z - az * y) * sin + ax * along,
                oy + y * cos + (az * x - ax * z) * sin + ay * along,
                oz + z * cos + (ax * y - ay * x) * sin + az * along,
            )
        return np.array((x, y, z))

    @functools.cached_property
    def _tip(self) -> list[float]:
        return self.tip.tolist()

    @functools.cached_property
    def _reversed_axes(self) -> list[list[float]]:
        return self.axes[::-1].tolist()

    @functools.cached_property
    def _reversed_origins(self) -> list[list[float]]:
        return self.origins[::-1].tolist()
