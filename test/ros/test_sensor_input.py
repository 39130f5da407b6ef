# SPDX-License-Identifier: Apache-2.0
"""What is listened to: the streams of policies that may act, and cameras that keep nobody."""

import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')
cv2 = pytest.importorskip('cv2')

import numpy as np  # noqa: E402
from rclpy.node import Node  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.nodes._policy_server_io import SensorInput  # noqa: E402
from dipod_ros.policy.image import ImageSettings  # noqa: E402
from dipod_ros.policy.spec import Stream  # noqa: E402
from dipod_ros.ros.messages import JointStateWriter, time_msg  # noqa: E402
from dipod_ros.serving.observation import ObservationBuffer  # noqa: E402

pytestmark = pytest.mark.ros
JOINTS = Stream('position', 'joint_position', 2, 'joint_states')
GOAL = Stream('goal', 'point', 3, 'goal')
CAMERA = Stream('eye', 'image', 4, 'eye/compressed', image=ImageSettings(32, 32))
IMDECODE = cv2.imdecode


@pytest.fixture
def make(ros):
    node = Node('listener', context=ros, start_parameter_services=False)
    made = []

    def begin(lockstep=False):
        buffer, came = ObservationBuffer(time.monotonic), []
        made.append(
            SensorInput(node, buffer, ('a', 'b'), lockstep, lambda: came.append(1), lambda o: None)
        )
        return node, buffer, made[-1], came

    yield begin
    for each in made:
        each.close()
    node.destroy_node()


def topics(node):
    return {s.topic_name for s in node.subscriptions} - {'/outcome', '/parameter_events'}


def test_what_nobody_needs_any_more_is_not_listened_to(make):
    node, _, given, _ = make()
    given.listen([JOINTS, GOAL, CAMERA])
    assert topics(node) == {'/joint_states', '/goal', '/eye/compressed'}
    kept = next(s for s in node.subscriptions if s.topic_name == '/joint_states')
    given.listen([Stream('command', 'command', 2), JOINTS])
    assert topics(node) == {'/joint_states'} and kept in list(node.subscriptions)
    assert any(s.topic_name == '/outcome' for s in node.subscriptions)
    given.listen([JOINTS, CAMERA])
    assert topics(node) == {'/joint_states', '/eye/compressed'}


def test_nothing_is_given_up_for_what_cannot_be_heard(make):
    node, _, given, _ = make()
    given.listen([JOINTS, GOAL])
    with pytest.raises(UserError, match='cannot listen to no topic'):
        given.listen([JOINTS, SimpleNamespace(name='far', source='vector', topic='no topic')])
    assert topics(node) == {'/joint_states', '/goal'}


@pytest.mark.parametrize('lockstep', [False, True])
def test_in_real_time_a_compressed_picture_does_not_keep_the_executor(make, monkeypatch, lockstep):
    node, buffer, given, came = make(lockstep)
    given.listen([CAMERA])
    threads = []

    def decode(*args):
        threads.append(threading.current_thread())
        return IMDECODE(*args)

    monkeypatch.setattr(cv2, 'imdecode', decode)
    msg = CompressedImage(data=cv2.imencode('.jpg', np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    msg.header.stamp = time_msg(7)
    next(s for s in node.subscriptions if s.topic_name == '/eye/compressed').callback(msg)
    end_s = time.monotonic() + 30
    while buffer.sample('image', CAMERA.topic) is None:
        assert not lockstep and time.monotonic() < end_s
        time.sleep(0.001)
    assert buffer.sample('image', CAMERA.topic).stamp_ns == 7
    assert (threads == [threading.current_thread()]) is lockstep
    assert bool(came) is lockstep


def test_joints_of_two_drivers_that_name_a_part_each_are_told_what_makes_one_of_them(make):
    _, buffer, given, _ = make()
    for names in (('a',), ('b', 'c')):
        given._joint_state('joint_states', JointStateWriter(names).message(7, np.zeros(len(names))))
        reason = buffer.rejection('joint_position', 'joint_states')
        assert 'are not among' in reason and 'joint_state_publisher' in reason
    given._joint_state('joint_states', JointStateWriter(('gripper',)).message(7, np.zeros(1)))
    given._joint_state('joint_states', JointStateWriter(('b', 'a')).message(8, np.zeros(2)))
    assert not buffer.rejection('joint_position', 'joint_states')
