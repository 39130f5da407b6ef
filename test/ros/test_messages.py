# SPDX-License-Identifier: Apache-2.0
"""Messages survive the way to arrays and back, and bad ones are named."""

import numpy as np
import pytest

pytest.importorskip('rclpy')

from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray, UInt8MultiArray  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from dipod_ros.ros import messages as m  # noqa: E402

JOINTS = ('shoulder', 'elbow', 'wrist')


def over_the_wire(msg):
    """Return the message as a subscriber gets it."""
    return deserialize_message(serialize_message(msg), type(msg))


def test_stamps_keep_their_nanoseconds():
    for ns in (0, 1, 40_000_000, 1_999_999_999, 1_764_000_000_123_456_789):
        assert m.stamp_ns(m.time_msg(ns)) == ns


def test_float_seconds_of_today_still_name_the_same_instant():
    ns = 1_764_000_000_123_456_789
    assert m.same_stamp(m.seconds_to_ns(ns / m.NS_PER_S), ns)
    assert not m.same_stamp(ns, ns + 1_000_000)


def test_joint_state_is_read_by_name_whatever_the_order_and_company():
    sent = m.JointStateWriter(('wrist', 'finger', 'shoulder', 'elbow')).message(
        5, np.array([3.0, 9.0, 1.0, 2.0]), np.array([0.3, 0.9, 0.1, 0.2])
    )
    msg = over_the_wire(sent)
    index = m.JointIndex(JOINTS)
    np.testing.assert_array_equal(index.positions(msg), [1, 2, 3])
    np.testing.assert_array_equal(index.velocities(msg), [0.1, 0.2, 0.3])


def test_joint_index_notices_when_the_sender_changes_its_order():
    index = m.JointIndex(JOINTS)
    first = JointState(name=list(JOINTS), position=[1.0, 2.0, 3.0])
    second = JointState(name=['wrist', 'shoulder', 'elbow'], position=[3.0, 1.0, 2.0])
    np.testing.assert_array_equal(index.positions(first), [1, 2, 3])
    np.testing.assert_array_equal(index.positions(second), [1, 2, 3])


def test_missing_joint_and_missing_velocity_are_named():
    index = m.JointIndex(JOINTS)
    with pytest.raises(m.MessageError, match='elbow'):
        index.positions(JointState(name=['shoulder', 'wrist'], position=[1.0, 2.0]))
    with pytest.raises(m.MessageError, match='0 velocity values for 3 joints'):
        index.velocities(JointState(name=list(JOINTS), position=[1.0, 2.0, 3.0]))


def test_trajectory_survives_the_wire_and_a_permutation():
    positions = np.arange(6.0).reshape(2, 3)
    velocities = -positions
    msg = over_the_wire(m.TrajectoryWriter(JOINTS, 0.04).message(7, positions, velocities))
    read = m.read_trajectory(msg, m.JointIndex(JOINTS[::-1]))
    assert read.stamp_ns == 7
    np.testing.assert_allclose(read.times_s, [0.04, 0.08])
    np.testing.assert_array_equal(read.positions, positions[:, ::-1])
    np.testing.assert_array_equal(read.velocities, velocities[:, ::-1])


def test_trajectory_points_are_exact_multiples_of_the_period():
    msg = m.TrajectoryWriter(('a',), 0.04).message(0, np.zeros((30, 1)), np.zeros((30, 1)))
    ns = [p.time_from_start.sec * m.NS_PER_S + p.time_from_start.nanosec for p in msg.points]
    assert ns == [40_000_000 * (k + 1) for k in range(30)]


def test_empty_trajectory_is_legal_and_means_cancel():
    read = m.read_trajectory(JointTrajectory(joint_names=list(JOINTS)), m.JointIndex(JOINTS))
    assert len(read.times_s) == 0


def spoil_names(msg):
    msg.joint_names = ['shoulder', 'elbow', 'thumb']


def spoil_velocity(msg):
    msg.points[1].velocities = []


def spoil_time(msg):
    msg.points[1].time_from_start = msg.points[0].time_from_start


def spoil_number(msg):
    msg.points[0].positions[0] = float('nan')


def spoil_size(msg):
    msg.points[0].positions = [1.0]


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (spoil_names, 'wrist'),
        (spoil_velocity, 'some do not'),
        (spoil_time, 'must increase'),
        (spoil_number, 'not finite'),
        (spoil_size, '1 position values for 3 joints'),
    ],
)
def test_bad_trajectories_are_refused_with_the_reason(spoil, reason):
    msg = m.TrajectoryWriter(JOINTS, 0.04).message(0, np.zeros((2, 3)), np.zeros((2, 3)))
    spoil(msg)
    with pytest.raises(m.MessageError, match=reason):
        m.read_trajectory(msg, m.JointIndex(JOINTS))


def test_commands_carry_the_stamp_in_lockstep_only():
    positions, ns = m.read_commands(over_the_wire(m.commands_msg(np.array([1.0, 2.0]), 123)))
    np.testing.assert_array_equal(positions, [1, 2])
    assert ns == 123
    assert m.read_commands(m.commands_msg(np.array([1.0])))[1] is None


def test_outcome_round_trip():
    outcome = m.Outcome(
        stamp_ns=1_240_000_000, episode=3, reward=-0.5, success=True, terminated=True, reset=True
    )
    assert m.read_outcome(over_the_wire(m.outcome_msg(outcome))) == outcome


def test_other_multiarrays_are_not_taken_for_an_outcome():
    with pytest.raises(m.MessageError, match='not an outcome'):
        m.read_outcome(Float64MultiArray(data=[0.0] * 7))


@pytest.mark.parametrize(
    ('field', 'value', 'reason'),
    [
        (0, 1e300, 'stamp_s 1e\\+300'),
        (0, 2.0**31, 'not 0 to 2'),
        (0, -1.0, 'stamp_s -1'),
        (1, 1e300, 'episode 1e\\+300'),
        (1, 0.5, 'a whole number'),
        (2, float('inf'), 'not finite'),
    ],
)
def test_an_outcome_that_cannot_be_is_refused_with_the_reason(field, value, reason):
    msg = m.outcome_msg(m.Outcome(stamp_ns=0, episode=-1))
    msg.data[field] = value
    with pytest.raises(m.MessageError, match=reason):
        m.read_outcome(over_the_wire(msg))


def test_point_round_trip():
    point = np.array([0.1, -0.2, 0.3])
    np.testing.assert_array_equal(m.read_point(over_the_wire(m.point_msg(1, point))), point)


def test_payload_round_trip():
    payload = bytes(range(256))
    msg = over_the_wire(m.payload_msg(payload))
    assert isinstance(msg, UInt8MultiArray)
    assert m.read_payload(msg) == payload


def test_a_joint_that_is_named_twice_has_no_position():
    index = m.JointIndex(['a', 'b'])
    with pytest.raises(m.MessageError, match=r"\['a'\] are named twice"):
        index.positions(JointState(name=['a', 'b', 'a'], position=[0.1, 0.2, 2.0]))
    others = JointState(name=['a', 'c', 'b', 'c'], position=[0.1, 9.0, 0.2, 9.0])
    np.testing.assert_array_equal(index.positions(others), [0.1, 0.2])
