# SPDX-License-Identifier: Apache-2.0
"""Who may stop the policy server, and who may let it go on: a topic and two services.

Whoever publishes a stop is heard, whatever quality of service it offers.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from dipod_ros.ros import qos
from dipod_ros.serving.safety import EStop

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # its name in Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


class EStopInput:
    """Latches the e-stop on `estop` and `~/estop`; only `~/reset_estop` releases it."""

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

    def _on_topic(self, msg: Bool) -> None:
        if msg.data:
            self._stop('topic estop')

    def _on_stop(self, _request, response: Trigger.Response) -> Trigger.Response:
        self._stop('service ~/estop')
        response.success, response.message = True, 'stopped; ~/reset_estop allows motion again'
        return response

    def _on_reset(self, _request, response: Trigger.Response) -> Trigger.Response:
        was = self._estop.reset()
        response.success = True
        response.message = 'motion is allowed again' if was else 'the e-stop was not latched'
        if was:
            self._node.get_logger().warning(response.message)
            self._on_change()
        return response

    def _stop(self, reason: str) -> None:
        before, news = self._estop.reason, self._estop.latch(reason)
        if self._estop.reason != before:
            self._on_change()
        if news:
            self._node.get_logger().error(
                f'e-stop ({reason}): braking; it stays until ~/reset_estop'
            )
