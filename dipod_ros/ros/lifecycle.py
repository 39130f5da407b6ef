# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node that outlives requests which cannot be met, and knows why a transition failed.

rclpy raises for a transition that is not possible now, inside the service's callback: the node's
process would end. What a transition itself raises it swallows without a word.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import TypeVar

from lifecycle_msgs.srv import ChangeState
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from dipod_ros.errors import UserError

OK, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
_RCLError = rclpy_implementation.RCLError


class ManagedNode(LifecycleNode):
    """A lifecycle node with `error`: why the newest transition failed, '' when it did not."""

    error = ''

    def __init__(self, name: str) -> None:
        """Create the node; `~/change_state` answers False to what is not possible now."""
        super().__init__(name)
        service = self._service_change_state
        service.callback = functools.partial(self._change_state, service.callback)

    def after_transition(self) -> None:
        """Tell of the state and of `error`; called after every transition."""

    def _change_state(
        self, change: Callable, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        try:
            return change(request, response)
        except _RCLError:
            wanted = request.transition.label or request.transition.id
            state = self._state_machine.current_state[1]
            self.get_logger().warning(f'change_state: {wanted} is not possible while {state}')
            response.success = False
            return response


N = TypeVar('N', bound=ManagedNode)
Transition = Callable[[N, LifecycleState], TransitionCallbackReturn]


def transition(callback: Transition) -> Transition:
    """Keep in `error`, and log, what a transition of a ManagedNode raises.

    A UserError is a FAILURE, back to the state before; anything else an ERROR, after which
    `on_error` is called. That one is no transition of this kind: it must leave `error` as it is.
    """

    @functools.wraps(callback)
    def wrapper(self: N, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            result = callback(self, state)
            self.error = ''
        except UserError as error:
            self.error = str(error)
            self.get_logger().error(self.error)
            result = FAILURE
        except Exception as error:
            first_line = str(error).split('\n')[0]
            self.error = f'{callback.__name__} failed: {type(error).__name__}: {first_line}'
            self.get_logger().error(f'{callback.__name__} failed: {traceback.format_exc()}')
            result = TransitionCallbackReturn.ERROR
        self.after_transition()
        return result

    return wrapper
