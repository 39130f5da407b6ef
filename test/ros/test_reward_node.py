# SPDX-License-Identifier: Apache-2.0
"""The example of a reward node dates its outcomes by the arm, whoever else has joints."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

import rclpy  # noqa: E402
from geometry_msgs.msg import Point  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from dipod_ros.ros.messages import JointStateWriter, read_outcome  # noqa: E402
from dipod_ros.serving.notices import Notices  # noqa: E402
from dipod_ros.serving.outcome_order import OutcomeOrder  # noqa: E402

pytestmark = pytest.mark.ros
PATH = Path(__file__).resolve().parents[2] / 'docs/examples/reward_node.py'
MS = 1_000_000
START_NS = 1000 * 10**9
ARM, GRIPPER = JointStateWriter(('a', 'b')), JointStateWriter(('finger',))


@pytest.fixture
def make_node():
    """Return a function that starts the example in this process, and keeps what it says."""
    spec = importlib.util.spec_from_file_location('reward_node', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nodes = []

    def make(*arguments):
        rclpy.init(args=['--ros-args', *arguments])
        node = module.Reward()
        nodes.append(node)
        node.said = []
        node.outcome.publish = lambda msg: node.said.append(read_outcome(msg))
        node.episode, node.running, node.since_s = 0, True, START_NS * 1e-9
        return node

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()


def hear(node, writer, after_ms):
    joints = [0.0] * (1 if writer is GRIPPER else 2)
    node.on_joints(writer.message(START_NS + after_ms * MS, joints))


def taken(outcomes):
    """Return those that a policy server takes."""
    order = OutcomeOrder(Notices())
    kept = []
    for outcome in outcomes:
        if not order.overtaken(outcome):
            order.take(outcome)
            kept.append(outcome)
    return kept


@pytest.mark.parametrize('joints', ['', 'a, b'])
def test_a_gripper_that_publishes_a_moment_behind_loses_no_end(make_node, joints):
    node = make_node(*(['-p', f'joints:=[{joints}]'] if joints else []))
    node.points = {'tip': Point(x=1.0), 'goal': Point()}
    for k in range(20):
        hear(node, ARM, 10 * k)
        if k == 12:
            node.points['tip'] = Point()  # the success falls on a message of the gripper
        hear(node, GRIPPER, 10 * k - 5)
    assert len(node.said) > 3
    assert taken(node.said) == node.said
    assert node.said[-1].success and node.said[-1].terminated and node.said[-1].reward == 1.0


def test_a_gripper_with_another_clock_dates_nothing(make_node):
    node = make_node('-p', 'joints:=[a, b]')
    for k in range(20):
        hear(node, ARM, 10 * k)
        hear(node, GRIPPER, 10 * k + 900)
    assert len(node.said) > 3
    assert all(o.stamp_ns <= START_NS + 190 * MS for o in node.said)


def test_a_clock_that_is_set_back_is_followed(make_node):
    node = make_node()
    hear(node, ARM, 0)
    for k in range(3):
        hear(node, ARM, -60_000 + 100 * k)
    assert [o.stamp_ns - START_NS for o in node.said] == [
        after * MS for after in (0, -60_000, -59_900, -59_800)
    ]


def test_begin_takes_back_the_pause_of_the_node_and_nothing_else(make_node):
    node, asked = make_node(), []
    node.running = False
    node.pause.call_async = lambda request: asked.append(request.data)
    hear(node, ARM, 0)

    def status(reason):
        node.on_status(String(data=json.dumps({'estop_reason': reason})))

    def begin():
        return node.on_begin(None, Trigger.Response())

    status('service ~/estop')  # a person's, before this node
    assert asked == [True] and 'waits' in begin().message
    for reason in ('service ~/estop, service ~/set_pause', 'service ~/set_pause, topic estop'):
        status(reason)
        assert not begin().success and asked == [True]
    status('service ~/set_pause')
    assert begin().success and asked == [True, False]
    node.running = False
    status('')
    assert begin().success and asked == [True, False]


def test_whoever_released_all_stops_released_the_pause_too(make_node):
    node, asked = make_node(), []
    node.running = False
    node.pause.call_async = lambda request: asked.append(request.data)
    hear(node, ARM, 0)
    for reason in ('', 'service ~/set_pause', ''):
        node.on_status(String(data=json.dumps({'estop_reason': reason})))
    assert node.on_begin(None, Trigger.Response()).success and asked == [True]
