# SPDX-License-Identifier: Apache-2.0
"""Who may stop the policy server, and who may let it go on: a topic and three services.

Whoever publishes a stop is heard, whatever quality of service it offers. A program that stops the
arm for a while must not release what a person has latched meanwhile: its stop is one of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from dipod_ros.ros import qos
from dipod_ros.serving.safety import EStop

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # its name in Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


PAUSE = 'service ~/set_pause'


class EStopInput:
    """Latches the e-stop on `estop`, `~/estop` and `~/set_pause`.

    `~/reset_estop` releases it whoever latched it, `~/set_pause` what it latched itself.
    """

    def __init__(self, node: LifecycleNode, estop: EStop, on_change: Callable[[], None]) -> None:
        """Listen, whatever state the node is in; `on_change` follows every change."""
        self._node = node
        self._estop = estop
        self._on_change = on_change
        # Several of these hear one publisher: a latch that is set again is as it was.
        quiet = SubscriptionEventCallbacks(incompatible_qos=lambda _: None)
        for profile in qos.ESTOP:
            # Where the others do not match, this one does: only its own silence is news.
            any_publisher = profile is qos.ESTOP_FROM_ANY
            node.create_subscription(
                Bool,
                'estop',
                self._on_topic,
                profile,
                event_callbacks=None if any_publisher else quiet,
            )
        node.create_service(Trigger, '~/estop', self._on_stop)
        node.create_service(Trigger, '~/reset_estop', self._on_reset)
        node.create_service(SetBool, '~/set_pause', self._on_pause)

    def _on_topic(self, msg: Bool) -> None:
        if msg.data:
            self._stop('topic estop')

    def _on_stop(self, _request, response: Trigger.Response) -> Trigger.Response:
        self._stop('service ~/estop')
        response.success, response.message = True, 'stopped; ~/reset_estop allows motion again'
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success = True
        if request.data:
            self._stop(PAUSE)
            response.message = 'stopped; ~/set_pause with false takes this stop back'
        elif self._estop.release(PAUSE):
            self._released()
            response.message = self._state()
        else:
            response.message = f'there was no pause; {self._state()}'
        return response

    def _on_reset(self, _request, response: Trigger.Response) -> Trigger.Response:
        was = self._estop.reset()
        response.success = True
        response.message = self._state() if was else 'the e-stop was not latched'
        if was:
            self._released()
        return response

    def _state(self) -> str:
        reason = self._estop.reason
        return f'the arm is still stopped ({reason})' if reason else 'motion is allowed again'

    def _released(self) -> None:
        self._node.get_logger().warning(self._state())
        self._on_change()

    def _stop(self, reason: str) -> None:
        before, news = self._estop.reason, self._estop.latch(reason)
        if self._estop.reason != before:
            self._on_change()
        if news:
            self._node.get_logger().error(
                f'e-stop ({reason}): braking; it stays until ~/reset_estop'
            )
