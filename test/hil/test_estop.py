# SPDX-License-Identifier: Apache-2.0
"""The e-stop topic is heard from whatever publishes there, each press once."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import HORIZON, JOINTS, make_limits, save_checkpoint  # noqa: E402
from harness import DT_NS, TIMEOUT_S, Robot, Server, make_context  # noqa: E402
from rclpy.qos import QoSProfile, QoSReliabilityPolicy  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from dipod_ros.ros import qos  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CHUNK_NS = HORIZON * DT_NS
START = np.array([0.1, 0.2, 0.3])
BUTTONS = {
    'reliable': QoSProfile(depth=1),
    'best effort': QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT),
    'latched': qos.LATCHED,
}


@pytest.fixture
def robot():
    context = make_context()
    robot = Robot(context, JOINTS)
    yield robot
    robot.close()
    context.try_shutdown()


@pytest.fixture
def serve(robot, tmp_path):
    """Return a function that starts the server of the robot, in lockstep."""
    servers = []
    save_checkpoint(tmp_path / 'first', seed=0)

    def start():
        servers.append(Server(tmp_path, make_limits(), checkpoint='first', lockstep=True))
        robot.wait_status(state='active')
        robot.wait_connected()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        print(server.log)


def stops(server):
    return server.log.count('e-stop (topic estop)')


@pytest.mark.parametrize('kind', BUTTONS)
def test_a_press_is_heard_once_whatever_the_quality_of_service(robot, serve, kind):
    button = robot.create_publisher(Bool, 'estop', BUTTONS[kind])
    server = serve()
    robot.wait_until(lambda: button.get_subscription_count() > 0, 'the e-stop')
    moving = robot.answer(0, START, episode=-1, reset=True)
    deadline = time.monotonic() + TIMEOUT_S
    while not robot.status.get('estop'):  # best effort may lose one
        assert time.monotonic() < deadline, f'a {kind} publisher was not heard'
        button.publish(Bool(data=True))
        time.sleep(0.5)
    stop = robot.answer(CHUNK_NS, moving.positions[HORIZON - 1])
    assert stops(server) == 1
    assert robot.call('reset_estop').success
    robot.wait_status(estop=False)
    again = robot.answer(2 * CHUNK_NS, stop.positions[-1])
    assert np.max(np.ptp(again.positions, axis=0)) > 1e-3
    assert stops(server) == 1 and not robot.status['estop']
    assert 'incompatible' not in server.log  # nobody is told of a mismatch that is none


def test_a_latched_press_before_the_start_is_heard(robot, serve):
    button = robot.create_publisher(Bool, 'estop', qos.LATCHED)
    button.publish(Bool(data=True))
    server = serve()
    robot.wait_status(estop=True, estop_reason='topic estop')
    held = robot.answer(0, START, episode=-1, reset=True)
    np.testing.assert_allclose(np.ptp(held.positions, axis=0), 0.0, atol=1e-12)
    assert robot.call('reset_estop').success  # the person who released it goes first
    robot.wait_status(estop=False)
    assert stops(server) == 1


def test_a_pause_takes_back_itself_alone(robot, serve):
    serve()

    def pause(value):
        answer = robot.call('set_pause', SetBool, SetBool.Request(data=value))
        assert answer.success
        return answer.message

    assert 'was no pause; motion is allowed' in pause(False)
    pause(True)
    robot.wait_status(estop_reason='service ~/set_pause')
    assert robot.call('estop').success  # a person, while it stands
    assert 'still stopped (service ~/estop)' in pause(False)
    assert robot.wait_status(estop_reason='service ~/estop')['estop']
    pause(True)
    assert robot.call('reset_estop').success
    robot.wait_status(estop=False)
    pause(True)
    assert pause(False) == 'motion is allowed again'
    robot.wait_status(estop=False)
    moving = robot.answer(0, START, episode=-1, reset=True)
    assert np.max(np.ptp(moving.positions, axis=0)) > 1e-3


def test_a_latched_button_that_was_let_go_before_the_start_stops_nothing(robot, serve):
    button = robot.create_publisher(Bool, 'estop', qos.LATCHED)
    button.publish(Bool(data=True))
    button.publish(Bool(data=False))
    serve()
    robot.wait_until(lambda: button.get_subscription_count() == 3, 'the e-stop')
    moving = robot.answer(0, START, episode=-1, reset=True)
    assert np.max(np.ptp(moving.positions, axis=0)) > 1e-3 and not robot.status['estop']
