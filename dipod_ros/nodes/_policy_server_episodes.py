# SPDX-License-Identifier: Apache-2.0
"""What the policy server tells of episodes: that the next one waits, and outcomes nobody took."""

from __future__ import annotations

from collections.abc import Callable

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from dipod_ros.errors import UserError
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.loop import Loop

# A simulator says how episodes end all the time, whether anybody acts or not.
REPEAT_S = 10.0


def may_hold(hold: bool, lockstep: bool) -> bool:
    """Return `hold_between_episodes`; raises UserError where it cannot be."""
    if hold and lockstep:
        raise UserError(
            'hold_between_episodes is for real time: a lockstep world is waited for at every step; '
            'set hold_between_episodes or lockstep to false'
        )
    return hold


class EpisodeNews:
    """Tells once each that the next episode waits, and that it begins."""

    def __init__(self, node: Node, lockstep: bool, on_change: Callable[[], None]) -> None:
        """Take whose log it is told in, and what publishes the status.

        From here on the node refuses a `hold_between_episodes` that cannot be, when it is set.
        """
        self._node, self._lockstep, self._on_change = node, lockstep, on_change
        self._waiting_for = ''
        node.add_on_set_parameters_callback(self._check)

    def look(self, loop: Loop) -> None:
        """Look at the loop; on the thread that decides, after its commands are out."""
        waiting_for = loop.waiting_for
        if waiting_for == self._waiting_for:
            return
        self._waiting_for = waiting_for
        text = (
            f'the episode is over: waiting for {waiting_for}' if waiting_for else 'reset: going on'
        )
        self._node.get_logger().info(text)
        self._on_change()

    def halted(self) -> None:
        """Note that nobody acts any more."""
        self._waiting_for = ''

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == 'hold_between_episodes':
                try:
                    may_hold(bool(parameter.value), self._lockstep)
                except UserError as error:
                    return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def nobody_acts(self, outcome: Outcome) -> None:
        """Tell of an outcome that ends or begins an episode while the server is not active."""
        if outcome.reset or outcome.terminated or outcome.truncated:
            self._node.get_logger().info(
                'an outcome that ends or begins an episode came while the server is not active: '
                'it changes nothing',
                throttle_duration_sec=REPEAT_S,
            )
