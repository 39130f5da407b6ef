# SPDX-License-Identifier: Apache-2.0
"""Whether the command may begin where the arm is. numpy, no ROS.

A command outside the position limits is none, and one that begins inside while the arm is outside
is a jump: the drive would take the way in between at whatever speed it can. So an arm outside its
limits is left alone, and told about, until somebody has moved it.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.notices import Notices

# An arm that stands at a limit is measured a little beyond it, by noise and by what its drive is
# off. So far (rad) the command still begins at the limit, as far from the arm as any command is.
SLACK_RAD = 5e-3
# The notice is told again when a joint was moved so far since.
NEWS_RAD = 0.05


class StartPlace:
    """Judges measured positions at which the command would begin, and tells why it cannot."""

    def __init__(self, limits: JointLimits, notices: Notices) -> None:
        """Take the limits and whom to tell."""
        self._limits, self._notices = limits, notices
        self._told: np.ndarray | None = None  # where the arm was when it was told

    def allows(self, position: np.ndarray) -> bool:
        """Return whether the command may begin at a measured position [A] (rad)."""
        limits = self._limits
        beyond = np.maximum(position - limits.upper, limits.lower - position)
        outside = beyond > SLACK_RAD
        if not outside.any():
            self.leave()
            return True
        # Noise is no news: a text that changed would be told 25 times a second.
        told = self._told
        if told is None or np.any(np.abs(position - told)[outside] > NEWS_RAD):
            self._told = position.copy()
            self._notices.set('outside', self._text(position, outside))
        return False

    def leave(self) -> None:
        """Note that the command need not begin anywhere, or may: the problem is over."""
        self._told = None
        self._notices.clear('outside', 'the arm is inside its limits again')

    def _text(self, position: np.ndarray, outside: np.ndarray) -> str:
        limits = self._limits
        parts, names = [], set()
        for i in np.flatnonzero(outside):
            side = 'upper' if position[i] > limits.upper[i] else 'lower'
            limit = getattr(limits, side)[i]
            parts.append(f'joint {limits.joints[i]} at {position[i]:.3f} is outside {limit:.3f}')
            names.add(f'limits.position_{side}')
        widen = ' and '.join(sorted(names))
        return (
            f'{", ".join(parts)} rad: the arm is held; move it inside, or widen {widen} in the '
            'robot file'
        )
