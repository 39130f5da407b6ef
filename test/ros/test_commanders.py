# SPDX-License-Identifier: Apache-2.0
"""Two that want to command in the same moment: they never both do."""

import threading

import pytest

rclpy = pytest.importorskip('rclpy')

from rclpy.lifecycle import LifecycleNode  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.nodes._policy_server_commanders import Commanders  # noqa: E402
from dipod_ros.nodes._policy_server_topic import CommandTopic  # noqa: E402
from dipod_ros.serving.notices import Notices  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]


@pytest.fixture
def nodes(ros):
    made = [LifecycleNode(name, context=ros) for name in ('left', 'left', 'right')]
    yield made
    for node in made:
        node.destroy_node()


def topic_of(node, name='arm/commands'):
    return CommandTopic(node, Float64MultiArray, name)


def test_two_that_become_active_in_the_same_moment_do_not_both(nodes):
    topics = [topic_of(node) for node in nodes[:2]]
    commanders = [Commanders(True, True, Notices(), print) for _ in topics]
    together, results = threading.Barrier(2), []

    def claim(one, topic):
        together.wait()
        try:
            one.claim(topic)
            results.append('')
        except UserError as error:
            results.append(str(error))

    threads = [
        threading.Thread(target=claim, args=pair) for pair in zip(commanders, topics, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [r for r in results if r]
    assert refused and all('another node of this name' in r for r in refused), results
    assert nodes[2].count_publishers('arm/commands') == len(topics) - len(refused)


def test_whoever_was_refused_leaves_nothing_and_may_try_again(nodes):
    left, right = topic_of(nodes[0]), topic_of(nodes[2])
    told = []
    Commanders(True, True, Notices(), told.append).claim(left)
    second = Commanders(True, True, Notices(), told.append)
    for _ in range(2):
        with pytest.raises(UserError, match='^/left publishes on /arm/commands too: end it'):
            second.claim(right)
    assert left.commanders() == [] and right.commanders() == ['/left']
    assert len(told) == 2 and all(t.startswith('waiting: /left') for t in told)
    left.close()
    second.claim(right)
    assert left.commanders() == ['/right'] and right.commanders() == []


def test_a_topic_whose_name_cannot_be_is_the_users_mistake(nodes):
    with pytest.raises(UserError, match='cannot command on'):
        topic_of(nodes[0], 'x' * 300)
