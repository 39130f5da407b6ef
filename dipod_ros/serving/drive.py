# SPDX-License-Identifier: Apache-2.0
"""What goes to the drives at each instant of a command stream: a setpoint through a law. No ROS."""

from __future__ import annotations

import numpy as np

from dipod_ros.serving.drive_laws import PositionLaw, VelocityLaw
from dipod_ros.serving.effort_law import EffortLaw
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.setpoints import SetpointStream


class Drive:
    """Takes a stream and its law to the end: until the loop is stopped and the arm stands."""

    def __init__(
        self, loop: RealTimeLoop, stream: SetpointStream, law: PositionLaw | VelocityLaw | EffortLaw
    ) -> None:
        """Take what plans, what plays the plans, and what makes commands of the setpoints."""
        self._loop, self._stream, self._law = loop, stream, law
        self.done = False  # nothing has to be sent any more
        self._yielded = False

    def command(self) -> np.ndarray | None:
        """Return what the drives are told [A] at the instant `due_s` of the stream, or None.

        Call it when that instant has come.
        """
        loop, law, setpoint = self._loop, self._law, self._stream.sample()
        closing = loop.stopped and (setpoint is None or setpoint.resting)
        if setpoint is None:
            values = law.idle()
        else:
            values = law.command(setpoint, loop.clock(), closing, self._yields())
        if law.astray:
            self._stream.begin_where_it_is()
        else:
            self.done = closing and law.settled
        return values

    def _yields(self) -> bool:
        """Tell whether the arm is left where it is, until the setpoint has come to it as well."""
        lasts = self._yielded and not self._stream.current
        self._yielded = self._loop.yielding or lasts
        return self._yielded

    def idle(self) -> np.ndarray | None:
        """Return what brings the drives to an end when there are no setpoints; None after that."""
        return self._law.idle()
