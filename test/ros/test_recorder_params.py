# SPDX-License-Identifier: Apache-2.0
"""What the recorder's parameters describe, and those that make no sense."""

from dataclasses import replace

import pytest
from checkpoints import JOINTS, LIMITS, make_spec, save_checkpoint

pytest.importorskip('rclpy')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.nodes._recorder_params import LimitParams, RecorderParams, recorded_spec  # noqa: E402

SPEC = 'horizon: 4\nstreams:\n- {name: command, source: command}\n'


def params(tmp_path, **changes):
    path = tmp_path / 'pick.yaml'
    path.write_text(SPEC)
    limits = LimitParams(**{k: tuple(v) for k, v in LIMITS.items()})
    given = {'policy': str(path), 'robot': 'toy_arm', 'joints': JOINTS, 'limits': limits}
    return RecorderParams(**{**given, **changes})


def test_a_file_or_a_checkpoint_says_what_is_recorded(tmp_path):
    spec = recorded_spec(params(tmp_path))
    assert (spec.task, spec.robot, spec.horizon, spec.joints) == ('pick', 'toy_arm', 4, JOINTS)
    save_checkpoint(tmp_path / 'model')
    spec = recorded_spec(params(tmp_path, policy=str(tmp_path / 'model'), task='other'))
    assert spec.task == 'other' and spec.streams == make_spec().streams
    assert recorded_spec(params(tmp_path, task='other')).task == 'other'


def test_a_checkpoint_of_other_limits_is_recorded_within_those_of_the_robot(tmp_path):
    save_checkpoint(tmp_path / 'model')
    slow = LimitParams(**{k: tuple(v) for k, v in (LIMITS | {'velocity': [0.5] * 3}).items()})
    turned = JOINTS[::-1]
    spec = recorded_spec(
        params(tmp_path, policy=str(tmp_path / 'model'), limits=slow, joints=turned)
    )
    assert spec.joints == turned and spec.limits.velocity.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'policy': ''}, 'parameter policy is empty'),
        ({'policy': 'nowhere.yaml'}, 'cannot read nowhere.yaml'),
        ({'policy': 'nowhere'}, "no checkpoint 'nowhere'"),
        ({'policy': 'reach_student'}, 'policy reach_student: the checkpoint is for joints'),
        ({'control_period_s': 0.02, 'policy': 'model'}, 'runs at control_period_s 0.04'),
        ({'limits': LimitParams()}, 'gives no limits.position_lower'),
        ({'joints': ()}, 'gives no joints'),
    ],
)
def test_what_makes_no_sense_is_an_error_of_one_line(tmp_path, changes, reason):
    if changes.get('policy') == 'model':
        save_checkpoint(tmp_path / 'model')
        changes = changes | {'policy': str(tmp_path / 'model')}
    with pytest.raises(UserError, match=reason) as error:
        recorded_spec(params(tmp_path, **changes))
    assert '\n' not in str(error.value)


def test_commands_are_heard_where_the_controller_hears_them(tmp_path):
    p = params(tmp_path, controller='arm')
    assert p.topic_of_commands == ''
    assert replace(p, command_source='commands').topic_of_commands == 'arm/commands'
    assert replace(p, command_source='trajectory').topic_of_commands == 'arm/joint_trajectory'
    leader = replace(p, command_source='joint_state', command_topic='leader/joint_states')
    assert leader.topic_of_commands == 'leader/joint_states'
    for wrong, reason in (
        (replace(leader, command_topic=''), 'say where it is heard, command_topic'),
        (replace(leader, command_topic='leader joints'), "command_topic is 'leader joints'"),
        (replace(p, command_source='commands', controller='arm/'), "controller is 'arm/'"),
    ):
        with pytest.raises(UserError, match=reason):
            _ = wrong.topic_of_commands
