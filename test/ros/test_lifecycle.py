# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node answers what is not possible now, and remembers why a transition failed."""

import pytest

rclpy = pytest.importorskip('rclpy')

from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.node import Node  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.ros import runtime  # noqa: E402
from dipod_ros.ros.lifecycle import OK, ManagedNode, transition  # noqa: E402

pytestmark = pytest.mark.ros
ACTIVATE, CONFIGURE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_CONFIGURE


class Case(ManagedNode):
    """Fails to be configured in the way that a test asks for."""

    fault = None

    def __init__(self):
        super().__init__('case')
        self.told = []

    def after_transition(self):
        self.told.append(self.error)

    @transition
    def on_configure(self, state):
        if self.fault is not None:
            raise self.fault
        return super().on_configure(state)

    def on_error(self, state):
        return OK


@pytest.fixture(params=['events', 'single'])
def case(request, monkeypatch):
    """Return a node and a function that calls its ~/change_state."""
    if request.param == 'single':
        monkeypatch.setattr(runtime, 'EventsExecutor', None)
    rclpy.init()
    node, peer = Case(), Node('peer')
    executor = runtime.make_executor()
    executor.add_node(node)
    executor.add_node(peer)
    client = peer.create_client(ChangeState, 'case/change_state')
    assert client.wait_for_service(60.0)

    def change(number=0, label=''):
        request = ChangeState.Request(transition=Transition(id=number, label=label))
        future = client.call_async(request)
        assert runtime.spin_until(executor, future.done, 60.0)
        return future.result().success

    yield node, change
    executor.shutdown()
    node.destroy_node()
    peer.destroy_node()
    rclpy.try_shutdown()


def test_a_transition_that_is_not_possible_now_is_answered_with_no(case):
    node, change = case
    assert not change(ACTIVATE)
    assert not change(label='activate')
    assert not change(number=200) and not change(label='jump')
    assert node.told == []  # none was begun
    assert change(CONFIGURE) and change(ACTIVATE)
    assert not change(ACTIVATE) and not change(CONFIGURE)
    assert change(label='deactivate')


def test_why_a_transition_failed_is_kept_until_one_succeeds(case):
    node, change = case
    for fault, error in (
        (UserError('limits are missing'), 'limits are missing'),
        (ValueError('one line\nand another'), 'on_configure failed: ValueError: one line'),
    ):
        node.fault = fault
        assert not change(CONFIGURE)
        assert node.error == error and node.told[-1] == error
    node.fault = None
    assert change(CONFIGURE)
    assert node.error == '' and node.told[-1] == ''
