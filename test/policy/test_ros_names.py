# SPDX-License-Identifier: Apache-2.0
"""What is taken for a topic here is what rclpy takes for one."""

import pytest

from dipod_ros.errors import UserError
from dipod_ros.policy.ros_names import MAX_LENGTH, require_topic

GOOD = ['goal', '/goal', '~/goal', 'arm_1/goal', '/a/b_2/_c', '{node}/x', 'arm_{ns}/x', 'a' * 200]
BAD = [
    '', 'goal point!', 'goal point', '2goal', 'arm/2goal', 'goal/', '/', '//goal', 'a//b', 'a/~/b',
    '~goal', 'a-b', 'grüße', 'goal\n', '{who}/x', '{node', 'a' * (MAX_LENGTH + 1),
]  # fmt: skip


def allowed(name):
    try:
        require_topic(name, 'it')
    except UserError as error:
        assert '\n' not in str(error)
        return False
    return True


@pytest.mark.parametrize('name', GOOD)
def test_a_name_of_a_topic_is_taken(name):
    assert allowed(name)


@pytest.mark.parametrize('name', BAD)
def test_anything_else_is_refused_in_one_line(name):
    assert not allowed(name)


@pytest.mark.ros
@pytest.mark.parametrize('name', GOOD + BAD)
def test_rclpy_agrees(name):
    from rclpy.exceptions import InvalidTopicNameException
    from rclpy.expand_topic_name import expand_topic_name
    from rclpy.validate_full_topic_name import validate_full_topic_name

    try:
        taken = validate_full_topic_name(expand_topic_name(name, 'node', '/ns'))
    except (InvalidTopicNameException, ValueError, RuntimeError):
        taken = False
    # A name without its namespace may be too long for them only with it.
    assert bool(taken) == allowed(name) or len(name) > MAX_LENGTH
