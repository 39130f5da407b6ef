# SPDX-License-Identifier: Apache-2.0
"""The files of docs/examples do what the documentation says of them, beside real nodes.

The arm is a simulated one without a task of its own: it never resets itself, as no arm does.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
sys.path[:0] = [str(Path(__file__).resolve().parent)]

from geometry_msgs.msg import PointStamped  # noqa: E402
from harness import Robot, Server, make_context  # noqa: E402
from node_process import TIMEOUT_S, NodeProcess  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from dipod_ros.learning.replay import ReplayAssembler  # noqa: E402
from dipod_ros.policy.checkpoint import read_manifest  # noqa: E402
from dipod_ros.resources import resource  # noqa: E402
from dipod_ros.ros import messages, qos  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(400)]
EXAMPLES = Path(__file__).resolve().parents[2] / 'docs/examples'
GOALS = ((0.50, 0.15, 0.30), (0.45, -0.15, 0.35), (5.0, 0.0, 0.3))  # the last is out of reach


class Example(NodeProcess):
    """An example as its reader starts it: a file, not a module of the package."""

    def __init__(self, folder, name, *arguments):
        self.log_path = Path(folder) / f'{name}.log'
        with open(self.log_path, 'w') as log:
            self.process = subprocess.Popen(
                [sys.executable, str(EXAMPLES / name), '--ros-args', *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
            )


class Person(Robot):
    """Sets the scene: publishes a goal beside every joint state, and calls the reward node."""

    services_of = 'reward'

    def __init__(self, context, joints):
        self.goal = GOALS[0]
        super().__init__(context, joints)
        self.create_subscription(JointState, 'joint_states', self._on_joints, qos.SENSOR)

    def _on_joints(self, msg):
        self.say_goal(messages.stamp_ns(msg.header.stamp), self.goal)


@pytest.fixture
def arm(tmp_path):
    """Return a function that starts nodes beside the simulated arm and ends them afterwards."""
    context, started = make_context(), []
    person = Person(context, load_robot('arm7').joints)

    def start(*nodes):
        arm7 = [resource('config/robots/arm7.yaml')]
        # What the simulator says of the episode is nobody's business: an arm has no outcome.
        remaps = ['outcome:=arm/outcome', 'goal:=arm/goal']
        given = {'task': 'none', 'real_time_factor': 0.5}
        started.append(NodeProcess(tmp_path, 'mujoco_sim', given, arm7, remaps))
        started.extend(node() for node in nodes)
        return started

    yield person, start
    person.close()
    for node in reversed(started):
        print(node.stop(), node.log)
    context.try_shutdown()


@pytest.mark.alone
def test_the_reward_node_makes_episodes_that_are_learned_from(arm, tmp_path):
    person, start = arm
    limits = load_robot('arm7').limits
    start(
        # A joint state every 80 ms of a slow simulation is no reason to go slowly.
        lambda: Server(
            tmp_path,
            limits,
            checkpoint='reach_flow',
            slow_age_share=1.0,
            autostart=False,
            ramp_in_s=0.2,
            hold_between_episodes=True,
        ),
        lambda: Example(tmp_path, 'reward_node.py', '-p', 'seconds:=3.0'),
    )
    person.wait_status(state='unconfigured', estop=True)
    assemble = ReplayAssembler(read_manifest(resource('models/reach_flow')).spec)
    activate(person)
    episodes = []
    while len(episodes) < 3 or not any(e[-1].success for e in episodes):
        assert len(episodes) < 12
        person.goal = GOALS[len(episodes) % 3]
        seen = len(person.records)
        begin(person)
        person.wait(lambda seen=seen: any(r.terminated for r in person.records[seen:]))
        person.wait_status(waiting_for='reset')  # until somebody says that the scene is ready
        ended = next(k for k, r in enumerate(person.records[seen:]) if r.terminated)
        episodes.append(person.records[seen : seen + ended + 1])
    for k, records in enumerate(episodes):
        assert {r.episode for r in records if r.step == 0} == {k}
        assert records[-1].reward == records[-1].success
        assert not any(r.reward for r in records[:-1])
        assert not (k % 3 == 2 and records[-1].success)
    for record in person.records:
        assemble.add(record)
    rollout = assemble.take(1, 12, lambda sha: 0)
    assert rollout is not None, assemble.counts
    assert assemble.counts['incomplete'] == assemble.counts['lost'] == 0, assemble.counts
    assert {r.episode for r in person.records} == set(range(len(episodes)))
    assert rollout.success.any() and set(rollout.returns.tolist()) <= {0.0, 1.0}
    figures = person.wait(lambda: person.figures and person.figures[-1])
    assert figures['limit_violations'] == 0, figures['last_violation']


@pytest.mark.alone
def test_the_reward_node_releases_no_stop_but_its_own_and_ends_a_wait(arm, tmp_path):
    person, start = arm
    limits = load_robot('arm7').limits
    slow = {'slow_age_share': 1.0, 'hold_between_episodes': True, 'autostart': False}
    nodes = start(
        lambda: Server(tmp_path, limits, checkpoint='reach_flow', **slow),
        lambda: Example(tmp_path, 'reward_node.py', '-p', 'seconds:=1.0'),
    )
    person.wait_status(estop_reason='service ~/set_pause')
    stop(person)  # a person, who did not know that it stands already
    person.estop.publish(Bool(data=True))
    person.wait_status(estop_reason='service ~/set_pause, service ~/estop, topic estop')
    activate(person)
    refused = refusal(person, 'is stopped')
    assert '(service ~/estop, topic estop): /policy_server/reset_estop first' in refused
    assert person.status['estop'] and not person.records
    release(person)
    person.goal = GOALS[2]  # out of reach: the time runs out
    begin(person)
    person.wait_status(waiting_for='reset')
    seen = len(person.records)
    nodes[-1].stop()
    start_again = Example(tmp_path, 'reward_node.py', '-p', 'seconds:=1.0')
    nodes.append(start_again)
    person.wait_status(estop_reason='service ~/set_pause')
    begin(person)  # of the first episode that this process knows of
    person.wait(lambda: len(person.records) > seen)
    assert not person.status['estop']
    # A stop that was there before it is none of its own.
    person.wait_status(waiting_for='reset')
    start_again.stop()
    stop(person)
    nodes.append(Example(tmp_path, 'reward_node.py'))
    person.wait_status(estop_reason='service ~/estop, service ~/set_pause')
    assert '(service ~/estop): /policy_server/reset_estop first' in refusal(person, 'is stopped')
    assert person.status['estop']


def refusal(person, reason):
    """Call ~/begin until it is refused for a reason; return its message."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        answer = person.call('begin', Trigger)
        assert not answer.success and time.monotonic() < deadline
        if reason in answer.message:
            return answer.message
        time.sleep(0.1)


def stop(person):
    person.services_of = 'policy_server'
    assert person.call('estop').success
    person.services_of = 'reward'


def release(person):
    person.services_of = 'policy_server'
    assert person.call('reset_estop').success
    person.services_of = 'reward'
    person.wait_status(estop=False)


def activate(person):
    """Configure and activate the server as `ros2 lifecycle set` does."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    person.services_of = 'policy_server'
    for number in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request(transition=Transition(id=number))
        assert person.call('change_state', ChangeState, request).success
    person.services_of = 'reward'


def begin(person):
    """Call ~/begin until the reward node has seen the arm and takes it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not person.call('begin', Trigger).success:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_tip_publisher_knows_where_the_tip_is(arm, tmp_path):
    person, start = arm
    said = {'tip': [], 'arm_tip': []}
    for topic, kept in said.items():
        person.create_subscription(
            PointStamped, topic, lambda m, kept=kept: person._add(kept, m), 100
        )
    arguments = ('--params-file', str(resource('config/robots/arm7.yaml')), '-r', 'tip:=arm_tip')
    start(lambda: Example(tmp_path, 'tip_publisher.py', *arguments))

    def pairs():
        tip, arm_tip = (
            {messages.stamp_ns(m.header.stamp): messages.read_point(m) for m in kept}
            for kept in said.values()
        )
        return [(tip[stamp], arm_tip[stamp]) for stamp in tip.keys() & arm_tip.keys()]

    for theirs, ours in person.wait(lambda: len(pairs()) > 5 and pairs()):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_tip_publisher_says_what_its_robot_file_lacks(tmp_path):
    file = tmp_path / 'arm.yaml'
    file.write_text('/**: {ros__parameters: {joints: [a, b]}}')
    command = [sys.executable, str(EXAMPLES / 'tip_publisher.py'), '--ros-args', '--params-file']
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert done.stderr == 'the robot file has no kinematics: write it with `dipod robot-file`\n'


def test_ask_stands_in_for_the_command_ros2(arm, tmp_path):
    _, start = arm
    limits = load_robot('arm7').limits
    start(lambda: Server(tmp_path, limits, checkpoint='reach_student', autostart=False))

    def ask(*words):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / 'ask.py'), *words], capture_output=True, text=True
        )
        return done.returncode, done.stdout.strip() or done.stderr.strip()

    assert ask('state', 'policy_server', 'configure') == (0, 'ok')
    assert ask('state', 'policy_server', 'activate') == (0, 'ok')
    assert ask('param', 'policy_server', 'checkpoint', 'reach_flow') == (0, 'ok')
    code, reason = ask('param', 'policy_server', 'checkpoint', 'nowhere')
    assert code == 1 and 'no checkpoint' in reason
    assert ask('call', 'mujoco_sim/set_pause', 'true') == (0, 'paused')
    assert ask('call', 'policy_server/estop')[0] == 0
    assert json.loads(ask('echo', 'policy_server/status')[1])['estop'] is True
    for words in (
        ('call',),
        ('param', 'policy_server'),
        ('param', 'policy_server', 'checkpoint'),
        ('state', 'policy_server'),
        ('state', 'policy_server', 'fly'),
    ):
        code, usage = ask(*words)
        assert code == 1 and 'ask.py call' in usage and 'Traceback' not in usage


def test_the_test_of_a_policy_passes_where_its_reader_runs_it(tmp_path):
    """It judges by itself: it fails where too few episodes succeed."""
    text = (EXAMPLES / 'test_my_policy.py').read_text()
    (tmp_path / 'test_as_it_is.py').write_text(text)
    more = text.replace('>= 0.8 * figures', '> 1.0 * figures').replace('= 200', '= 3')
    assert '> 1.0' in more and '= 3,' in more
    (tmp_path / 'test_more_is_asked.py').write_text(more)
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(EXAMPLES.parents[1])},
        capture_output=True,
        text=True,
    )
    assert '1 failed, 1 passed' in done.stdout, done.stdout + done.stderr
