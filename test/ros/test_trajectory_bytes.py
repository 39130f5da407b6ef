# SPDX-License-Identifier: Apache-2.0
"""Trajectories written as bytes are, to whoever reads them, those built as messages."""

import numpy as np
import pytest

pytest.importorskip('rclpy')

from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from dipod_ros.ros import trajectory_bytes as tb  # noqa: E402
from dipod_ros.ros.messages import TrajectoryWriter  # noqa: E402


def arrays(count, size, seed=0):
    """Return positions and velocities [K, A]."""
    return np.random.default_rng(seed).standard_normal((2, count, size))


@pytest.mark.parametrize('joints', [('a',), ('shoulder', 'elbow', 'w'), tuple('abcdefg')])
@pytest.mark.parametrize('count', [1, 2, 5, 12, 50])
def test_bytes_read_as_the_message_that_they_replace(joints, count):
    writer, reference = tb.TrajectoryBytes(joints, 0.04), TrajectoryWriter(joints, 0.04)
    cases = [(1, 0), (1_764_000_000_123_456_789, 0), (2_000_000_007, -13_000_000), (3, 5 * 10**9)]
    for seed, (ns, offset_ns) in enumerate(cases):
        values = arrays(count, len(joints), seed)
        data = writer.message(ns, *values, offset_ns)
        assert isinstance(data, bytes)
        read = deserialize_message(data, JointTrajectory)
        assert read == reference.message(ns, *values, offset_ns)


def test_numbers_of_points_take_turns_without_leaving_traces():
    writer, reference = tb.TrajectoryBytes('abc', 0.02), TrajectoryWriter('abc', 0.02)
    for turn, count in enumerate((3, 8, 3, 1, 8)):
        values = arrays(count, 3, turn)
        read = deserialize_message(writer.message(turn, *values, -turn), JointTrajectory)
        assert read == reference.message(turn, *values, -turn)


def test_what_was_returned_does_not_change_with_the_next_message():
    writer = tb.TrajectoryBytes('ab', 0.02)
    first = writer.message(1, *arrays(4, 2))
    copy = bytes(bytearray(first))
    writer.message(2, *arrays(4, 2, seed=1))
    assert first == copy


def test_no_points_are_a_message_too():
    msg = tb.TrajectoryBytes('ab', 0.02).message(1, np.zeros((0, 2)), np.zeros((0, 2)))
    assert isinstance(msg, JointTrajectory) and not msg.points


@pytest.mark.parametrize('habit', ['other numbers', 'a number twice'])
def test_a_middleware_with_other_habits_gets_ordinary_messages(monkeypatch, habit):
    def strange(msg):
        data = serialize_message(msg)
        return data[:4] + bytes(len(data) - 4) if habit == 'other numbers' else data + data[4:]

    monkeypatch.setattr(tb, 'serialize_message', strange)
    values = arrays(3, 2)
    msg = tb.TrajectoryBytes('ab', 0.02).message(9, *values)
    assert msg == TrajectoryWriter('ab', 0.02).message(9, *values)


def test_a_template_that_reads_differently_is_not_used(monkeypatch):
    monkeypatch.setattr(tb, 'deserialize_message', lambda data, kind: kind())
    assert isinstance(tb.TrajectoryBytes('ab', 0.02).message(9, *arrays(3, 2)), JointTrajectory)
