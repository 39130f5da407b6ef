# SPDX-License-Identifier: Apache-2.0
"""JointTrajectory messages as the bytes that travel, with the numbers written into a template.

A trajectory of a dozen points is two dozen Python objects, which the middleware's converter visits
one attribute at a time. Between two commands only numbers change. So the middleware serialises one
trajectory per number of points, and after that numbers go straight to where it put them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.ros.messages import NS_PER_S, TrajectoryWriter

# Bytes before the payload that alignment counts from ("Real-time Publish-Subscribe Protocol",
# OMG DDSI-RTPS 2.5, section 10: the encapsulation header).
_HEADER = 4
# Templates kept: one per number of points, which braking makes vary.
_MOST_TEMPLATES = 256
# Padding is whatever was in memory, now and then one of the very numbers that are looked for.
_ATTEMPTS = 5
_marks = itertools.count()  # never the same numbers twice: what was freed may come back as padding


class TrajectoryBytes:
    """`TrajectoryWriter` whose messages are bytes where this middleware allows.

    Publishers of rclpy take both. Whether a template is right is not assumed but tried, see
    `_Template.is_right`; where it is not, messages are built the ordinary way.
    """

    def __init__(self, joints: Sequence[str], period_s: float) -> None:
        """Take the joint names, in the order of the arrays to come, and the spacing of points."""
        self._writer = TrajectoryWriter(joints, period_s)
        self._size = len(joints)
        self._period_ns = round(period_s * NS_PER_S)
        self._templates: dict[int, _Template | None] = {}

    def message(
        self, ns: int, positions: np.ndarray, velocities: np.ndarray, offset_ns: int = 0
    ) -> bytes | JointTrajectory:
        """Return what `TrajectoryWriter.message` returns, serialised if possible."""
        count = len(positions)
        try:
            template = self._templates[count]
        except KeyError:
            template = self._make_template(count)
        if template is None:
            return self._writer.message(ns, positions, velocities, offset_ns)
        return template.fill(ns, positions, velocities, offset_ns)

    def _make_template(self, count: int) -> _Template | None:
        if len(self._templates) >= _MOST_TEMPLATES:
            return None
        template = None
        for _ in range(_ATTEMPTS if count else 0):
            with contextlib.suppress(ValueError):
                made = _Template(self._writer, count, self._size, self._period_ns)
                if made.is_right(self._writer):
                    template = made
                    break
        self._templates[count] = template
        return template


class _Template:
    """One serialised trajectory of K points, and where its numbers are."""

    def __init__(self, writer: TrajectoryWriter, count: int, size: int, period_ns: int) -> None:
        """Find the numbers by serialising some that occur once; raises ValueError when that fails.

        Args:
            writer: makes the message.
            count: points K.
            size: joints A.
            period_ns: spacing of the points.

        """
        self._period_ns = period_ns
        # Recognisable among counts and text: as integers 3 * 2^28 + i, as doubles i + 1/3.
        first = next(_marks) * 2**12 % 2**27
        marks = first + np.arange(2 * count * size).reshape(2, count, size) + 1 / 3
        times = 3 * 2**28 + first + np.arange(2 * (count + 1), dtype=np.int32).reshape(-1, 2)
        msg = writer.message(0, *marks)
        msg.header.stamp.sec, msg.header.stamp.nanosec = times[0].tolist()
        for point, (sec, nanosec) in zip(msg.points, times[1:].tolist(), strict=True):
            point.time_from_start.sec, point.time_from_start.nanosec = sec, nanosec
        data = serialize_message(msg)
        where = _find(np.frombuffer(data, np.int32, (len(data) - _HEADER) // 4, _HEADER), times)
        # The serialiser's guess of the length may be too long; the last time is the end.
        self._buffer = bytearray(data[: _HEADER + 4 * (int(where[-1, 1]) + 1)])
        length = len(self._buffer) - _HEADER
        self._doubles = np.frombuffer(self._buffer, np.float64, length // 8, _HEADER)
        self._ints = np.frombuffer(self._buffer, np.int32, length // 4, _HEADER)
        self._positions, self._velocities = _find(self._doubles, marks)
        self._stamp, self._sec, self._nanosec = where[0], where[1:, 0], where[1:, 1]
        self._steps_ns = np.arange(1, count + 1) * period_ns
        self._offset_ns: int | None = None  # that the times in the buffer were written for

    def fill(self, ns: int, positions: np.ndarray, velocities: np.ndarray, offset_ns: int) -> bytes:
        """Return the message as `TrajectoryWriter.message` describes it."""
        self._ints[self._stamp] = divmod(ns, NS_PER_S)
        if offset_ns != self._offset_ns:  # in lockstep it never changes
            sec, nanosec = np.divmod(self._steps_ns + offset_ns, NS_PER_S)
            self._ints[self._sec], self._ints[self._nanosec] = sec, nanosec
            self._offset_ns = offset_ns
        self._doubles[self._positions] = positions
        self._doubles[self._velocities] = velocities
        return bytes(self._buffer)

    def is_right(self, writer: TrajectoryWriter) -> bool:
        """Tell whether the middleware reads two different messages as they were meant."""
        shape = self._positions.shape
        values = np.random.default_rng(0).standard_normal((2, *shape))
        for ns, offset_ns in ((NS_PER_S + 7, -self._period_ns // 2), (5, 3 * NS_PER_S)):
            read = deserialize_message(self.fill(ns, *values, offset_ns), JointTrajectory)
            if read != writer.message(ns, *values, offset_ns):
                return False
            values = -values
        return True


def _find(haystack: np.ndarray, needles: np.ndarray) -> np.ndarray:
    """Return the index of each needle; raises ValueError unless each is there exactly once."""
    order = np.argsort(haystack, kind='stable')
    ordered = haystack[order]
    first = np.searchsorted(ordered, needles, 'left')
    if np.any(np.searchsorted(ordered, needles, 'right') - first != 1):
        raise ValueError('a number was not found')
    return order[first]
