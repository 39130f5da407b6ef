# SPDX-License-Identifier: Apache-2.0
"""The small file that says what a policy to be sees."""

import re
from pathlib import Path

import pytest
from checkpoints import JOINTS, make_limits

from dipod_ros.errors import UserError
from dipod_ros.policy.image import ImageSettings
from dipod_ros.policy.spec_file import read_spec_file

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
task: pick
horizon: 8
streams:
- {name: q, source: joint_position, topic: joint_states}
- {name: command, source: command}
- {name: goal, source: point, topic: goal}
- {name: force, source: vector, size: 2, topic: force, max_age_s: 0.5}
- {name: eye, source: image, topic: front/image_raw, image: {width: 64}}
"""


def read(tmp_path, text, **more):
    path = tmp_path / 'grasp.yaml'
    path.write_text(text)
    return read_spec_file(path, 'toy_arm', make_limits(), 0.04, **more)


def test_what_need_not_be_said_is_filled_in(tmp_path):
    spec = read(tmp_path, GOOD)
    assert (spec.task, spec.robot, spec.joints, spec.horizon) == ('pick', 'toy_arm', JOINTS, 8)
    assert [s.size for s in spec.streams] == [3, 3, 3, 2, 32]
    assert spec.streams[3].max_age_s == 0.5
    assert spec.streams[4].image == ImageSettings(64, 96)
    assert read(tmp_path, GOOD, task='place').task == 'place'
    assert read(tmp_path, GOOD.replace('task: pick', '')).task == 'grasp'


def test_the_example_of_the_documentation_is_one(tmp_path):
    example = re.search(r'```yaml\n(.*?)```', (ROOT / 'docs/recording.md').read_text(), re.S)[1]
    assert len(read(tmp_path, example).streams) > 2


@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        ('horizon: 8', 'horizon: 0', '`horizon`.*must be within 1..1024, got 0'),
        ('horizon: 8', '', '`horizon`.*got None'),
        ('horizon: 8', 'horizon: 2.5', 'got 2.5'),
        ('horizon: 8', 'hoziron: 8', r"no setting \['hoziron'\]; there are"),
        ('name: goal, source: point', 'name: goal, source: pose', "source 'pose' is not one of"),
        ('name: goal', 'nam: goal', "no setting \\['nam'\\]"),
        ('{name: goal, ', '{', 'has no name'),
        ('size: 2, ', '', 'stream force: say how many numbers'),
        ('size: 2, ', 'size: none, ', 'none'),
        ('source: command}', 'source: command, size: 4}', 'size is 4, the robot has 3 joints'),
        ('source: point, topic: goal', 'source: point', 'needs a topic'),
        ('source: point, topic: goal', 'source: point, topic: 2goals', 'no name of a ROS topic'),
        ('size: 2, topic: force', 'size: .inf, topic: force', 'infinity'),
        ('source: point, topic: goal', 'source: point, topic: goal, size: 2', 'size 3, not 2'),
        ('width: 64', 'width: 4', 'image width must be within'),
        ('width: 64', 'widht: 4', 'the image of stream eye has no setting'),
        ('name: eye', 'name: q', 'distinct names'),
        ('streams:', 'streams: 3 #', 'not YAML'),
        (GOOD, 'horizon: 8\nstreams: []', '`streams` must be a list'),
        (GOOD, '- 1', 'must be a block'),
        (GOOD, 'horizon: 8\nstreams: [1]', 'a stream must be a block'),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, old, new, reason):
    assert old in GOOD
    with pytest.raises(UserError, match=reason) as error:
        read(tmp_path, GOOD.replace(old, new))
    assert 'grasp.yaml' in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UserError, match='cannot read .*nothing.yaml: No such file'):
        read_spec_file(tmp_path / 'nothing.yaml', 'toy_arm', make_limits(), 0.04)
