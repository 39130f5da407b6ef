# SPDX-License-Identifier: Apache-2.0
"""A real server beside a simulated arm waits for whoever sets the scene, in real time."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
sys.path[:0] = [str(Path(__file__).resolve().parent)]

from harness import Robot, Server, make_context  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from node_process import NodeProcess  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402

from dipod_ros.learning.replay import ReplayAssembler  # noqa: E402
from dipod_ros.policy.checkpoint import read_manifest  # noqa: E402
from dipod_ros.resources import resource  # noqa: E402
from dipod_ros.ros import messages, qos  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(400)]
GOALS = ((0.50, 0.15, 0.30), (0.45, -0.15, 0.35))
ARM = load_robot('arm7')


class Judge(Robot):
    """Says at every joint state that nothing was earned, and now and then what else is asked of it.

    Episodes end where it is asked to say so: nobody looks at what the arm does.
    """

    def __init__(self, context):
        self.goal, self.episode, self.next = GOALS[0], 0, {}
        self.places, self.starts = [], []  # joint positions; how many records there were at a reset
        self._where = messages.JointIndex(ARM.joints)
        super().__init__(context, ARM.joints)
        self.create_subscription(JointState, 'joint_states', self._on_joints, qos.SENSOR)

    def _on_joints(self, msg):
        stamp_ns = messages.stamp_ns(msg.header.stamp)
        self.say_goal(stamp_ns, self.goal)
        said, self.next = self.next, {}
        self.say_outcome(stamp_ns, self.episode, **said)
        self.episode += bool(said.get('reset'))
        self._add(self.places, self._where.positions(msg))

    def end(self, **more):
        self.next = {'reward': 1.0, 'success': True, 'terminated': True} | more

    def reset(self):
        self.next = {'reset': True}

    def decides(self, count):
        """Wait for so many more records."""
        goal = len(self.records) + count
        self.wait(lambda: len(self.records) >= goal)

    def stands(self):
        """Wait until the arm has come to rest, and return where."""
        self.wait(lambda: len(self.places) > 10 and np.ptp(self.places[-10:], axis=0).max() < 1e-3)
        return self.places[-1]


@pytest.fixture
def judge(tmp_path):
    context, started = make_context(), []
    judge = Judge(context)
    arm7 = [resource('config/robots/arm7.yaml')]
    # What the simulator says of the episode is nobody's business: an arm has no outcome.
    remaps = ['outcome:=arm/outcome', 'goal:=arm/goal']
    given = {'task': 'none', 'real_time_factor': 0.5}
    started.append(NodeProcess(tmp_path, 'mujoco_sim', given, arm7, remaps))
    started.append(
        Server(
            tmp_path,
            ARM.limits,
            checkpoint='reach_flow',
            slow_age_share=1.0,
            hold_between_episodes=True,
            ramp_in_s=0.1,
        )
    )
    yield judge
    judge.close()
    for node in reversed(started):
        print(node.stop(), node.log)
    context.try_shutdown()


@pytest.mark.alone
def test_it_waits_between_episodes_and_every_one_of_them_is_learned_from(judge):
    judge.wait_status(state='active', waiting_for='')
    for episode in range(3):
        judge.goal = GOALS[episode % 2]
        judge.decides(5)
        judge.end()
        judge.wait_status(waiting_for='reset')
        ended = judge.records[-1] if judge.records[-1].terminated else None
        ended = ended or judge.wait(lambda: judge.records[-1].terminated and judge.records[-1])
        assert ended.episode == episode and not ended.interrupted and ended.reward == 1.0
        place, count = judge.stands(), len(judge.records)
        if episode == 1:
            rest_of_a_long_wait(judge)
        time.sleep(2.0 if episode == 0 else 0.5)  # for nothing that would come by itself
        judge.wait(lambda: judge.diagnostics['decisions'][0].message == 'waiting for reset')
        for name in ('decisions', 'streams', 'safety', 'policy'):
            assert judge.diagnostics[name][0].level == b'\0', judge.diagnostics[name][0].message
        assert len(judge.records) == count
        np.testing.assert_allclose(judge.places[-1], place, atol=5e-3)
        judge.reset()
        judge.wait_status(waiting_for='')
    judge.decides(3)
    assert judge.records[-1].episode == 3
    assert judge.records[-1].policy_sha == judge.status['active']['sha256']
    assemble = ReplayAssembler(read_manifest(resource('models/reach_flow')).spec)
    for record in judge.records:
        assemble.add(record)
    counts = assemble.counts
    assert counts['episodes'] == 3 and counts['incomplete'] == counts['lost'] == 0, counts
    assert [e.total for e in assemble._ready] == [1.0] * 3
    figures = judge.wait(lambda: judge.figures and judge.figures[-1])
    assert figures['limit_violations'] == 0, figures['last_violation']


def rest_of_a_long_wait(judge):
    """An e-stop and another policy: it waits on."""
    assert judge.call('estop').success
    judge.wait_status(estop=True, waiting_for='reset')
    assert judge.call('reset_estop').success
    judge.wait_status(estop=False, waiting_for='reset')
    assert judge.set_parameter('checkpoint', 'reach_student').successful
    judge.wait(lambda: judge.status['active']['name'] == 'reach_student')
    assert judge.status['waiting_for'] == 'reset'
    judge.wait(lambda: judge.diagnostics['safety'][0].level == b'\0')


@pytest.mark.alone
def test_activated_anew_it_begins_at_once_an_episode_of_its_own(judge):
    judge.wait_status(state='active')
    judge.decides(4)
    judge.end()
    judge.wait_status(waiting_for='reset')
    change(judge, Transition.TRANSITION_DEACTIVATE)
    judge.wait_status(state='inactive', waiting_for='')
    judge.end()  # nobody acts
    judge.wait(lambda: not judge.next)
    time.sleep(0.5)
    change(judge, Transition.TRANSITION_ACTIVATE)
    judge.wait_status(state='active', waiting_for='')
    judge.decides(3)
    judge.end()
    judge.wait_status(waiting_for='reset')
    judge.wait(lambda: judge.records[-1].terminated)
    assert sorted({r.episode for r in judge.records}) == [0, 1]
    episodes = [r.episode for r in judge.records]
    assert episodes == sorted(episodes)
    assert judge.set_parameter('hold_between_episodes', False).successful
    change(judge, Transition.TRANSITION_DEACTIVATE)
    change(judge, Transition.TRANSITION_ACTIVATE)
    judge.decides(3)
    judge.end()
    judge.decides(4)
    assert judge.status['waiting_for'] == ''


def change(judge, number):
    """Do what `ros2 lifecycle set` does."""
    request = ChangeState.Request(transition=Transition(id=number))
    assert judge.call('change_state', ChangeState, request).success


def test_lockstep_is_refused_with_what_to_change(tmp_path):
    server = Server(tmp_path, ARM.limits, lockstep=True, hold_between_episodes=True)
    assert server.exit_code() == 2
    assert 'set hold_between_episodes or lockstep to false' in server.log
