# SPDX-License-Identifier: Apache-2.0
"""What the recorder keeps of commands, and which it believes; a real node, spun by nobody."""

import json

import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy  # noqa: E402
from checkpoints import JOINTS, LIMITS  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from dipod_ros.nodes.recorder import Recorder  # noqa: E402
from dipod_ros.ros import messages  # noqa: E402

pytestmark = pytest.mark.ros
START_NS = 1000 * 10**9
DT_NS = 20_000_000


class Arm:
    """An arm that is commanded to where it is, each time that it says where that is."""

    def __init__(self, node):
        self.node, self.k = node, 0
        self.writer = messages.JointStateWriter(JOINTS)

    @property
    def now_ns(self):
        return START_NS + self.k * DT_NS

    def command(self, stamp_ns=None):
        self.node._commands._take(
            self.node._commands._commands, messages.commands_msg(np.zeros(3), stamp_ns)
        )

    def run(self, count):
        for _ in range(count):
            self.k += 1
            self.node._input._joint_state(
                'joint_states', self.writer.message(self.now_ns, np.zeros(3), np.zeros(3))
            )
            self.command(self.now_ns)


@pytest.fixture
def make_arm(tmp_path):
    (tmp_path / 'pick.yaml').write_text(
        'horizon: 4\nstreams:\n- {name: position, source: joint_position, topic: joint_states}\n'
    )
    given = {
        'policy': str(tmp_path / 'pick.yaml'),
        'output': str(tmp_path / 'demos.safetensors'),
        'command_source': 'commands',
        'max_episode_s': 1.0,
        'robot': 'toy_arm',
        'joints': list(JOINTS),
        **{f'limits.{k}': list(v) for k, v in LIMITS.items()},
    }
    nodes = []

    def make(**more):
        arguments = ['--ros-args']
        for name, value in (given | more).items():
            arguments += ['-p', f'{name}:={json.dumps(value)}']
        rclpy.init(args=arguments)
        nodes.append(Recorder())
        return Arm(nodes[-1])

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()


def test_a_recording_that_is_no_good_and_nobody_stops_keeps_nothing(make_arm):
    arm = make_arm(stamp_tolerance_s=0.0)  # these messages come faster than time goes by
    arm.run(5)
    assert arm.node._on_start(Trigger.Request(), Trigger.Response()).success
    arm.run(40)
    assert len(arm.node._commands.curve) >= 40  # what an episode needs
    arm.run(500)
    assert 'max_episode_s' in arm.node._recording.fault
    assert len(arm.node._commands.curve) < 5
    assert arm.node._status_now()['seconds'] >= 1.0


@pytest.mark.parametrize(('off_s', 'side'), [(3600.0, 'ahead of'), (-3600.0, 'behind')])
def test_a_command_of_another_time_is_refused_by_name_and_hides_no_other(make_arm, off_s, side):
    arm = make_arm()
    arm.command(START_NS)
    assert 'the joint states are not there yet' in arm.node._commands.problem
    arm.run(3)
    assert not arm.node._commands.problem
    arm.command(arm.now_ns + round(off_s * 1e9))
    assert f"their stamps are {side} the robot's clock" in arm.node._commands.problem
    assert any(side in problem for problem in arm.node._problems())
    before = arm.node._commands.curve._times[-1]
    arm.run(1)
    assert arm.node._commands.curve._times[-1] == before + DT_NS
    assert not arm.node._commands.problem


def test_commands_beside_silent_joint_states_are_kept_for_a_second(make_arm, monkeypatch):
    arm = make_arm()
    now_ns = START_NS
    monkeypatch.setattr(arm.node._commands, '_now_ns', lambda: now_ns)
    for _ in range(1000):  # before the first joint state
        now_ns += DT_NS
        arm.command()
    assert 50 <= len(arm.node._commands.curve) <= 52
    arm.k = 1000
    arm.run(3)
    assert arm.node._on_start(Trigger.Request(), Trigger.Response()).success
    now_ns = arm.now_ns
    for _ in range(100):
        now_ns += DT_NS
        arm.command()
    assert len(arm.node._commands.curve) >= 100  # a recording keeps them
    arm.node._recording.spoil('joint states are silent')
    for _ in range(100):
        now_ns += DT_NS
        arm.command()
    assert 50 <= len(arm.node._commands.curve) <= 52
