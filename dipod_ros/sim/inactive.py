# SPDX-License-Identifier: Apache-2.0
"""Owns when a simulated controller is inactive on purpose. No ROS.

An inactive controller is still there: it keeps its subscription and leaves every command alone. It
holds the arm where it is measured then, and goes on from where it is measured when it is active
again: what joint_trajectory_controller of ros2_control does after a state tolerance violation, and
any controller that was deactivated and activated.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from dipod_ros.errors import UserError


def check_spans(times_s: Sequence[float]) -> None:
    """Raise UserError unless `times_s` is [from, to, from, to, ...], each later than the last."""
    ordered = all(a < b for a, b in zip(times_s, times_s[1:], strict=False))
    usable = all(math.isfinite(t) and t >= 0 for t in times_s)
    if len(times_s) % 2 or not ordered or not usable:
        raise UserError(
            'faults.controller_inactive_s must be pairs of simulated times from, to, each later '
            f'than the one before, 0 or more; got {list(times_s)}'
        )


class Activity:
    """Tells, as simulated time goes on, when a controller stops and when it begins again."""

    def __init__(self, times_s: Sequence[float]) -> None:
        """Take spans [from, to, from, to, ...] of simulated time (s); none is always active."""
        check_spans(times_s)
        self._times_s = list(times_s)
        self._passed = 0

    @property
    def inactive(self) -> bool:
        """Whether commands are left alone now."""
        return self._passed % 2 == 1

    def changes(self, now_s: float) -> bool:
        """Go on to `now_s`; return whether the controller stopped or began again since."""
        # Times are sums of control periods: one that is due must not miss its step by round-off.
        passed = bisect.bisect_right(self._times_s, now_s + 1e-9)
        changed, self._passed = passed != self._passed, passed
        return changed
