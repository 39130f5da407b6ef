# SPDX-License-Identifier: Apache-2.0
"""Refuses samples whose stamps cannot be of now, by the robot's clock. No ROS.

A sample that claims another time is old, or its sender has another clock; either way nobody knows
what it shows. The clock is that of the joint states: when theirs is set, the new one counts as soon
as it has been kept for a moment. One odd message, or a late burst of them, sets no clock. Once the
ticks are counted by it, joint states without a stamp cannot be compared with any command.

A message that another one overtook shows what was so before; it must not pass for the present.
"""

from __future__ import annotations

from collections.abc import Callable

from dipod_ros.serving.stamp_clock import NS_PER_S

# So long must joint states keep to another clock before it is believed: many of them, but shorter
# than their maximum age, so that a clock that is set stops nobody for long.
CONFIRM_S = 0.1
# So long after a newer message an older one is late; after that its sender's clock was set back.
LATE_S = 0.05


class StampGuard:
    """Judges the stamp of each sample as it comes."""

    def __init__(
        self,
        tolerance_s: float,
        joint_topic: str,
        robot_ns: Callable[[float], int | None],
        on_robot_time: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what the robot's clock is.

        Args:
            tolerance_s: how far off it a stamp may be; 0 accepts all stamps.
            joint_topic: whose clock it is.
            robot_ns: returns its time at a steady time, None while it is not known.
            on_robot_time: whether joint states need stamps, because somebody counts by them.

        """
        self._tolerance_s = tolerance_s
        self._joint_topic = joint_topic
        self._robot_ns, self._on_robot_time = robot_ns, on_robot_time
        # By stream: stamp and receipt (steady clock) of the first sample of a clock that was set.
        self._claims: dict[tuple[str, str], tuple[int, float]] = {}
        # The same of the newest sample that was not refused.
        self._newest: dict[tuple[str, str], tuple[int, float]] = {}

    def judge(self, source: str, topic: str, stamp_ns: int, received_s: float) -> str:
        """Return why a sample is refused, '' when it is not."""
        if not stamp_ns and topic == self._joint_topic and self._on_robot_time():
            return 'its messages carry no stamp any more; those before did'
        robot_ns = self._robot_ns(received_s) if self._tolerance_s and stamp_ns else None
        off_s = 0.0 if robot_ns is None else (stamp_ns - robot_ns) / NS_PER_S
        key = source, topic
        near = abs(off_s) <= self._tolerance_s
        if near:
            self._claims.pop(key, None)
        if near or (topic == self._joint_topic and self._kept(key, stamp_ns, received_s)):
            late = self._overtaken(key, stamp_ns, received_s)
            return 'its messages are not in the order of their stamps' if late else ''
        side = 'ahead of' if off_s > 0 else 'behind'
        # How far exactly stays out of the text, so that a lasting problem is one problem.
        return (
            f"its stamps are {side} the robot's clock, that of {self._joint_topic}, by more than "
            f'{self._tolerance_s:g} s'
        )

    def _overtaken(self, key: tuple[str, str], stamp_ns: int, received_s: float) -> bool:
        """Tell whether a newer sample of the same stream came just before."""
        newest_ns, since_s = self._newest.get(key, (0, 0.0))
        if not self._tolerance_s or not stamp_ns or stamp_ns == newest_ns:
            return False
        if stamp_ns < newest_ns and received_s - since_s < LATE_S:
            return True
        self._newest[key] = stamp_ns, received_s
        return False

    def _kept(self, key: tuple[str, str], stamp_ns: int, received_s: float) -> bool:
        """Tell whether a stream has kept to its new clock for long enough."""
        claim = self._claims.get(key)
        if claim is not None:
            since_s = received_s - claim[1]
            if abs((stamp_ns - claim[0]) / NS_PER_S - since_s) <= self._tolerance_s:
                return since_s >= CONFIRM_S
        self._claims[key] = stamp_ns, received_s
        return False
