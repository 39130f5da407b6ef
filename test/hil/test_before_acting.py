# SPDX-License-Identifier: Apache-2.0
"""The check before first motion: what /diagnostics says of a server that is configured, not active.

It is read as docs/robot.md tells its reader to.
"""

import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import JOINTS, make_limits, make_policy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from harness import TIMEOUT_S, Robot, Server, make_context  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
START = np.array([0.1, 0.2, 0.3])
TOPIC = '/arm_controller/joint_trajectory'
ROBOT_MD = Path(__file__).resolve().parents[2] / 'docs/robot.md'


@pytest.fixture
def server(tmp_path):
    """Return a configured server in real time, and the robot that it is to serve."""
    context = make_context()
    robot = Robot(context, JOINTS)
    make_policy(0, step_rad=0.002).save(tmp_path / 'first')
    server = Server(
        tmp_path, make_limits(), checkpoint='first', autostart=False, sole_commander=True
    )
    robot.wait_status(state='unconfigured')
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert robot.call('change_state', ChangeState, request).success
    yield robot, server
    code = server.stop()
    robot.close()
    context.try_shutdown()
    print(server.log)
    assert code == 0


def filter_of_the_page():
    """Return the function of a message that `ros2 topic echo --filter` makes of robot.md's."""
    line = next(line for line in ROBOT_MD.read_text().splitlines() if 'echo /diagnostics' in line)
    words = shlex.split(line, comments=True)
    expression = words[words.index('--filter') + 1]
    return lambda m: eval(expression, {}, {'m': m})


def read(robot, expected, speak=lambda: None):
    """Speak at 50 Hz until what the page shows of the streams holds every text of `expected`."""
    shown, keep = [], filter_of_the_page()

    def hear(msg):
        if keep(msg):
            robot._add(shown, {s.name.split(': ')[1]: s for s in msg.status}['streams'])

    subscription = robot.create_subscription(DiagnosticArray, '/diagnostics', hear, 10)
    deadline = time.monotonic() + TIMEOUT_S
    while not (shown and all(text in shown[-1].message for text in expected)):
        assert time.monotonic() < deadline, [s.message for s in shown[-3:]]
        speak()
        time.sleep(0.02)  # the rate of the sensors, not a synchronisation
    robot.destroy_subscription(subscription)
    return shown[-1]


def test_what_would_hold_the_arm_is_told_before_it_may_move(server):
    robot, _ = server

    def speak(position=START, goal_late_s=0.0):
        stamp = time.time_ns()
        robot.say_joints(stamp, position)
        robot.say_goal(stamp - round(goal_late_s * 1e9))

    nothing = read(robot, ['nothing received on joint_states', 'nothing received on goal'])
    assert nothing.level == DiagnosticStatus.WARN
    ready = read(robot, ['every stream is there'], speak)
    assert ready.level == DiagnosticStatus.OK
    values = {v.key: v.value for v in ready.values}
    assert float(values['goal age_s']) < 0.2 and values[f'listeners on {TOPIC}'] == '1'
    assert values[f'other publishers on {TOPIC}'] == 'none'
    outside = read(robot, ['joint base at 9.000 is outside'], lambda: speak([9.0, 0.2, 0.3]))
    assert outside.level == DiagnosticStatus.WARN
    read(robot, ["goal: its stamps are behind the robot's clock"], lambda: speak(goal_late_s=2.0))
    other = robot.create_publisher(JointTrajectory, TOPIC, 1)
    read(robot, [f'/robot publishes on {TOPIC} too'], speak)
    robot.destroy_publisher(other)
    read(robot, ['every stream is there'], speak)
    read(robot, ['nothing new on joint_states for', 'nothing new on goal for'])


def test_nobody_who_listens_is_told_before_it_may_move(server):
    robot, _ = server
    for subscription in list(robot.subscriptions):
        if subscription.topic_name == TOPIC:
            robot.destroy_subscription(subscription)
    read(robot, [f'nobody listens on {TOPIC}: start the controller'])


def test_the_page_shows_no_other_node_and_names_what_is_to_be_seen():
    keep = filter_of_the_page()
    status = [DiagnosticStatus(name=n) for n in ('controller_manager: a', 'trainer: learning')]
    assert not keep(DiagnosticArray()) and not keep(DiagnosticArray(status=status))
    for name in ('policy_server: streams', 'left/policy_server: policy'):
        assert keep(DiagnosticArray(status=[*status, DiagnosticStatus(name=name)]))
    first_motion = ROBOT_MD.read_text().split('## 4. First motion')[1].split('## 5.')[0]
    assert 'not active; every stream is there' in first_motion
