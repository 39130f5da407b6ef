# SPDX-License-Identifier: Apache-2.0
"""Tells of joint states that are steadily behind ROS time. No ROS.

ROS time is believed where it is near: on one machine, or synchronised ones, joint states that are
behind it are late. From a robot whose clock is behind ours they look the same, and every decision
is then about a moment too far ahead. Nothing but a person can tell the two apart.
"""

from __future__ import annotations

from collections import deque

from dipod_ros.serving.notices import Notices

# Looks (one per control period, or more) that have to agree: single messages come late anyway.
WINDOW = 64
# Synchronised clocks differ by less than this (s), and joint states should not be later.
NEAR_S = 0.02
# A notice is over below this part of where it began: it must not come and go.
OVER = 0.8


class ClockWatch:
    """Remembers by how much ROS time was ahead of joint states."""

    def __init__(self, notices: Notices, period_s: float) -> None:
        """Take whom to tell, and the control period (s): what a decision may be off by."""
        self._notices, self._most_s = notices, max(period_s, NEAR_S)
        self._leads: deque[float] = deque(maxlen=WINDOW)
        self._told = False

    def look(self, lead_s: float | None) -> None:
        """Take by how much ROS time leads the newest joint states (s), None where it is unknown."""
        if lead_s is None:
            self._leads.clear()
        else:
            self._leads.append(lead_s)
        steady_s = min(self._leads) if len(self._leads) == WINDOW else 0.0
        if self._told and steady_s <= OVER * self._most_s:
            self._told = False
            self._notices.clear('clock', 'joint states are near ROS time again')
        elif not self._told and steady_s > self._most_s:
            self._told = True
            self._notices.set(
                'clock',
                f'joint states are stamped {steady_s * 1e3:.0f} ms behind ROS time, all of them: '
                'synchronise the clocks (chrony), unless they do come that late; decisions are '
                'for a time that is ahead of them by as much',
            )
