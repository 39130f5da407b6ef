# SPDX-License-Identifier: Apache-2.0
"""Who may ask the policy server for another checkpoint: the parameter, and the trainer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from std_msgs.msg import String

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.policy.spec import Stream
from dipod_ros.ros import qos
from dipod_ros.serving.loader import LoadedPolicy, PolicyLoader
from dipod_ros.serving.swap import FAILED, IDLE, HotSwap


class CheckpointRequests:
    """Checks requests at once, and has those that pass built while the old policy goes on."""

    def __init__(
        self, node: LifecycleNode, loader: PolicyLoader, on_change: Callable[[], None]
    ) -> None:
        """Follow the parameters `checkpoint` and `follow_trainer` and the trainer's topic."""
        self._node = node
        self._loader = loader
        self._on_change = on_change
        self._announced: tuple[str, str] | None = None  # path and sha256, the newest
        self._acting: Callable[[], Manifest] | None = None
        self._listen: Callable[[tuple[Stream, ...]], None] | None = None
        self.swap: HotSwap[LoadedPolicy] | None = None
        self.refusal = ''  # why the newest request was refused, '' when it was not
        topic = node.get_parameter('trainer_topic').value
        node.create_subscription(String, topic, self._on_announcement, qos.LATCHED)
        node.add_on_set_parameters_callback(self._check)
        # Humble has no callback after the fact: there the check is the last moment to act.
        self._has_post_set = hasattr(node, 'add_post_set_parameters_callback')
        if self._has_post_set:
            node.add_post_set_parameters_callback(self._apply)

    def open(
        self, acting: Callable[[], Manifest], listen: Callable[[tuple[Stream, ...]], None]
    ) -> None:
        """Accept requests: `acting` tells what acts, `listen` connects a policy's streams."""
        self._acting, self._listen = acting, listen
        self.swap = HotSwap(self._loader.build, time.monotonic, self._on_swap)

    def close(self) -> None:
        """Accept no more requests."""
        if self.swap is not None:
            self.swap.close()
        self.swap = None
        self.refusal = ''

    def follow_trainer(self) -> None:
        """Ask for what the trainer announced last, if it is to be followed."""
        if self._announced is not None and self._node.get_parameter('follow_trainer').value:
            self._request(*self._announced, 'trainer')

    @property
    def error(self) -> str:
        """Why the newest request came to nothing, '' when it did not."""
        return self.refusal or (self.swap.error if self.swap is not None else '')

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse a checkpoint that cannot act on this robot; the old value and policy stay."""
        for parameter in parameters:
            if parameter.name == 'checkpoint':
                try:
                    self._loader.validate(parameter.value)
                except UserError as error:
                    return SetParametersResult(successful=False, reason=str(error))
        if not self._has_post_set:
            self._apply(parameters)
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name == 'checkpoint':
                self._request(parameter.value, '', 'parameter')
            elif parameter.name == 'follow_trainer' and parameter.value and self._announced:
                self._request(*self._announced, 'trainer')

    def _on_announcement(self, msg: String) -> None:
        try:
            announced = json.loads(msg.data)
            self._announced = str(announced['path']), str(announced['sha256'])
        except (ValueError, KeyError, TypeError):
            self._node.get_logger().warning(
                f'not the announcement of a checkpoint: {msg.data[:80]!r}',
                throttle_duration_sec=10.0,
            )
            return
        self.follow_trainer()

    def _request(self, path: str, sha256: str, source: str) -> None:
        if self.swap is None:
            return  # configure loads what the parameter names
        try:
            manifest = self._loader.validate(path, sha256)
        except UserError as error:
            self.refusal = f'{source}: {error}'
            self._node.get_logger().error(f'not swapped: {self.refusal}')
            self._on_change()
            return
        self.refusal = ''
        wanted = self.swap.requested or self._acting()
        if manifest.sha256 == wanted.sha256 and manifest.path == wanted.path:
            self._on_change()
            return
        self._listen(manifest.spec.streams)
        self.swap.request(manifest, source)

    def _on_swap(self) -> None:
        swap = self.swap
        if swap is not None and swap.history:
            last = swap.history[-1]
            if swap.state == FAILED:
                self._node.get_logger().error(
                    f'not swapped: {last.reason}; the old policy keeps acting'
                )
            elif swap.state == IDLE and last.result == 'active':
                self._node.get_logger().info(f'swapped to {last.path} ({last.sha256[:12]})')
        self._on_change()
