# SPDX-License-Identifier: Apache-2.0
"""One arm, one commander: what a policy server does where another node publishes commands too."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import HORIZON, JOINTS, make_limits, make_policy  # noqa: E402
from harness import DT_NS, Robot, Server, make_context  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CHUNK_NS = HORIZON * DT_NS
START = np.array([0.1, 0.2, 0.3])
TOPIC = '/arm_controller/joint_trajectory'
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


@pytest.fixture
def robot():
    context = make_context()
    robot = Robot(context, JOINTS)
    yield robot
    robot.close()
    context.try_shutdown()


@pytest.fixture
def serve(tmp_path):
    """Return a function that starts a policy server in lockstep, by a name."""
    servers = []
    make_policy(0, step_rad=0.002).save(tmp_path / 'first')

    def start(name='policy_server', **parameters):
        given = {'checkpoint': 'first', 'lockstep': True, 'sole_commander': True, **parameters}
        remaps = [] if name == 'policy_server' else [f'__node:={name}']
        servers.append(Server(tmp_path, make_limits(), remaps=remaps, **given))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        print(server.log)
        assert 'Traceback' not in server.log


def change(robot, server, transition):
    """Ask a server by name for a transition; return whether it was done."""
    robot.services_of = server
    request = ChangeState.Request(transition=Transition(id=transition))
    return robot.call('change_state', ChangeState, request).success


def test_a_second_server_ends_with_the_reason_and_the_first_goes_on(robot, serve):
    first = serve()
    robot.wait_status(state='active')
    robot.wait_connected()
    robot.answer(0, START, episode=-1, reset=True)
    for name, whose in (
        ('policy_server', '/policy_server (another node of this name)'),  # a forgotten terminal
        ('second', '/policy_server'),
    ):
        second = serve(name)
        assert second.exit_code() == 2
        assert f'{whose} publishes on {TOPIC} too: end it' in second.log.splitlines()[-1]
    assert robot.commanders() == 1
    answer = robot.answer(CHUNK_NS, START)
    assert len([t for t in robot.trajectories if t.stamp_ns == CHUNK_NS]) == 1
    assert answer.stamp_ns == CHUNK_NS and first.process.poll() is None


def test_a_server_that_stands_by_takes_over_when_the_other_is_deactivated(robot, serve):
    names = ('policy_server', 'standby')
    acting, standby = (serve(name, autostart=False) for name in names)
    robot.wait_status(state='unconfigured')
    for name in names:
        assert change(robot, name, Transition.TRANSITION_CONFIGURE)
    assert robot.commanders() == 0
    assert change(robot, 'policy_server', ACTIVATE)
    assert not change(robot, 'standby', ACTIVATE)
    assert f'/policy_server publishes on {TOPIC} too' in standby.log
    for before, after in (names, names[::-1]):
        assert change(robot, before, DEACTIVATE) and change(robot, after, ACTIVATE)
        robot.wait_until(lambda: robot.commanders() == 1, 'the one that took over')
    assert 'Traceback' not in acting.log


def test_a_publisher_that_comes_is_told_of_and_one_that_goes_is_forgotten(robot, serve):
    serve()
    robot.wait_status(state='active')
    other = robot.create_publisher(JointTrajectory, TOPIC, 1)
    robot.wait(lambda: f'/robot publishes on {TOPIC} too' in streams(robot).message)
    assert streams(robot).level == b'\1'
    robot.destroy_publisher(other)
    robot.wait(lambda: 'publishes' not in streams(robot).message)


@contextlib.contextmanager
def arm_that_follows(robot):
    """Say every 20 ms that the arm is where the last command put it."""
    over = threading.Event()

    def say():
        while not over.wait(0.02):
            stamp_ns = time.time_ns()
            robot.say_goal(stamp_ns)
            robot.say_joints(stamp_ns, robot.commands[-1][0] if robot.commands else START)

    thread = threading.Thread(target=say)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_for_more(robot, count=10):
    before = len(robot.commands)
    robot.wait(lambda: len(robot.commands) >= before + count)


@pytest.mark.parametrize('choice', ['stop', 'warn'])
def test_one_that_comes_stops_an_arm_that_acts_until_it_is_gone(robot, serve, choice):
    serve(lockstep=False, interface='position', on_other_commander=choice)
    robot.wait_status(state='active')
    robot.wait_connected()
    with arm_that_follows(robot):
        wait_for_more(robot)
        other = robot.create_publisher(Float64MultiArray, '/arm_controller/commands', 1)
        if choice == 'warn':
            robot.wait(lambda: 'the arm may jump' in streams(robot).message)
            looks = len(robot.commands) + 75  # three seconds of them
            robot.wait(lambda: len(robot.commands) >= looks)
            return
        robot.wait(lambda: 'the arm is stopped until then' in streams(robot).message)
        robot.wait(lambda: counted(robot) == 1)
        robot.wait_until(lambda: silent(robot), 'silence')
        robot.destroy_publisher(other)
        wait_for_more(robot)
        robot.wait(lambda: 'publishes' not in streams(robot).message)
    path = np.array([values for values, _ in robot.commands])
    speed = np.diff(path, axis=0) / (DT_NS * 1e-9)
    assert np.all(np.abs(speed) <= make_limits().velocity + 1e-6)
    assert counted(robot) == 1


def silent(robot, seconds=1.0):
    before = len(robot.commands)
    time.sleep(seconds)
    return len(robot.commands) == before


def counted(robot):
    return int(robot.diagnostics.get('safety', (None, {}))[1].get('other_commander', 0))


def test_a_publisher_that_is_about_to_go_is_waited_for(robot, serve):
    other = robot.create_publisher(JointTrajectory, TOPIC, 1)
    server = serve()
    robot.wait_until(lambda: 'waiting: /robot publishes' in server.log, 'the server')
    robot.destroy_publisher(other)
    robot.wait_status(state='active')


def test_one_that_is_known_to_stay_silent_may_be_allowed(robot, serve):
    robot.create_publisher(JointTrajectory, TOPIC, 1)
    serve(sole_commander=False)
    robot.wait_status(state='active')
    robot.wait(lambda: figure(robot, f'other publishers on {TOPIC}') == '/robot')
    assert streams(robot).level == b'\0'
    robot.answer(0, START, episode=-1, reset=True)


def streams(robot):
    """Return what /diagnostics said last of the server's streams."""
    robot.wait(lambda: 'streams' in robot.diagnostics)
    return robot.diagnostics['streams'][0]


def figure(robot, name):
    streams(robot)
    return robot.diagnostics['streams'][1].get(name)
