# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint is asked for: parameters, the trainer's topic, and four services."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from dipod_ros.errors import UserError
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_shadow import ShadowOutput
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.ros_names import require_topic
from dipod_ros.policy.spec import Stream
from dipod_ros.ros import qos
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.alarm import AlarmConfig, SwapAlarm
from dipod_ros.serving.loader import LoadedPolicy, PolicyLoader
from dipod_ros.serving.loop import Decided, Loop
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.promotion import Candidate, PromotionConfig, Rejected
from dipod_ros.serving.shadow import Shadow
from dipod_ros.serving.succession import Succession
from dipod_ros.serving.swap import FAILED, IDLE, HotSwap

# A parameter that names a checkpoint; empty only where that means none.
NAMES = {'checkpoint': False, 'shadow_checkpoint': True}
Answer = tuple[bool, str]


class CheckpointRequests:
    """Checks requests at once, and has those that pass built while the old policy goes on."""

    def __init__(
        self,
        node: LifecycleNode,
        loader: PolicyLoader,
        limits: JointLimits,
        params: PolicyServerParams,
        noise: NoiseSource,
        on_change: Callable[[], None],
    ) -> None:
        """Follow parameters and the trainer's topic, and create the services.

        Raises UserError when a parameter about promotion or alarms is wrong.
        """
        self._node, self._loader, self._limits = node, loader, limits
        self._params, self._noise = params, noise
        self._on_change = on_change
        p = params
        self._promotion = PromotionConfig(
            p.promotion_decisions,
            p.promotion_rms_rad,
            p.promotion_clamp_share,
            p.promotion_latency_s,
        )
        self._alarm_config = AlarmConfig(p.alarm_window, p.alarm_clamp_rad, p.alarm_clamp_share)
        self._announced: tuple[str, str] | None = None  # path and sha256, the newest
        self._rejected = Rejected()
        self._shadow_output = ShadowOutput(node)
        self.swap: HotSwap[LoadedPolicy] | None = None
        self.shadow: Shadow | None = None
        self.succession: Succession | None = None  # while configured
        topic = node.get_parameter('trainer_topic').value
        require_topic(topic, 'trainer_topic')
        node.create_subscription(String, topic, self._on_announcement, qos.LATCHED)
        node.add_on_set_parameters_callback(self._check)
        # Humble has no callback after the fact: there the check is the last moment to act.
        self._has_post_set = hasattr(node, 'add_post_set_parameters_callback')
        if self._has_post_set:
            node.add_post_set_parameters_callback(self._apply)
        self._serve('reload', lambda s: s.reload(self._parameter('checkpoint')))
        self._serve('rollback', lambda s: s.rollback(self._parameter('follow_trainer')))
        self._serve('approve', lambda s: s.approve())
        self._serve('reject', lambda s: s.reject())

    def open(
        self, agent: Callable[[], Agent], listen: Callable[[tuple[Stream, ...]], None]
    ) -> None:
        """Accept requests: `agent` returns who acts, `listen` connects a policy's streams."""
        self._looked: Decided | None = None
        # The first policy is no swap, whatever acted before a cleanup.
        self._alarm = SwapAlarm(self._alarm_config)
        self.swap = HotSwap(self._loader.build, time.monotonic, self._on_swap)
        self.shadow = Shadow(
            self._loader.build,
            self._limits,
            self._params.control_period_s,
            self._noise,
            self._params.alarm_clamp_rad,
            time.monotonic,
            self._on_shadow,
            wait=self._params.lockstep,
        )
        self.succession = Succession(
            self._loader,
            self.swap,
            self.shadow,
            agent,
            listen,
            self._promotion,
            self._rejected,
            self._node.get_logger().error,
            self._on_change,
        )

    def close(self) -> None:
        """Accept no more requests."""
        for part in (self.shadow, self.swap):
            if part is not None:
                part.close()
        self.swap = self.shadow = self.succession = None

    def resume(self) -> None:
        """Ask for what waited for the server to be configured."""
        if self._parameter('shadow_checkpoint'):
            self.succession.watch(self._parameter('shadow_checkpoint'))
        self._follow_trainer()

    def look(self, loop: Loop) -> None:
        """Look at what was decided now that its command is out; on the thread that decides."""
        loop.agent.settle()
        decided = loop.decided
        if decided is None or decided is self._looked:
            return
        self._looked = decided
        reason = self._alarm.observe(decided)
        if reason:
            self.succession.on_alarm(decided.sampled.policy, reason)
        self.shadow.show(decided)

    @property
    def candidate(self) -> Candidate | None:
        """The trainer's checkpoint that waits to act."""
        return None if self.succession is None else self.succession.candidate

    @property
    def error(self) -> str:
        """Why the newest request came to nothing, '' when it did not."""
        return '' if self.succession is None else self.succession.refusal or self.swap.error

    def _parameter(self, name: str):
        return self._node.get_parameter(name).value

    def _serve(self, name: str, act: Callable[[Succession], Answer]) -> None:
        def answer(_request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if self.succession is None:
                response.success = False
                response.message = f'the server is not configured: ~/{name} has nothing to act on'
            else:
                response.success, response.message = act(self.succession)
            self._node.get_logger().info(f'~/{name}: {response.message}')
            return response

        self._node.create_service(Trigger, f'~/{name}', answer)

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """Refuse a checkpoint that cannot act on this robot; the old value and policy stay."""
        for parameter in parameters:
            may_be_empty = NAMES.get(parameter.name)
            if may_be_empty is None or (may_be_empty and not parameter.value):
                continue
            try:
                self._loader.validate(parameter.value)
            except UserError as error:
                return SetParametersResult(successful=False, reason=str(error))
        if not self._has_post_set:
            self._apply(parameters)
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter]) -> None:
        succession = self.succession
        if succession is None:
            return  # configure reads the parameters
        for parameter in parameters:
            if parameter.name == 'checkpoint':
                succession.ask(parameter.value)
            elif parameter.name == 'shadow_checkpoint':
                succession.watch(parameter.value)
            elif parameter.name == 'follow_trainer':
                succession.follow(parameter.value)
                if parameter.value:
                    self._consider()

    def _on_announcement(self, msg: String) -> None:
        try:
            announced = json.loads(msg.data)
            self._announced = str(announced['path']), str(announced['sha256'])
        except (ValueError, KeyError, TypeError, RecursionError):
            self._node.get_logger().warning(
                f'not the announcement of a checkpoint: {msg.data[:80]!r}',
                throttle_duration_sec=10.0,
            )
            return
        self._follow_trainer()

    def _follow_trainer(self) -> None:
        if self._parameter('follow_trainer'):
            self._consider()

    def _consider(self) -> None:
        if self.succession is not None and self._announced is not None:
            self.succession.consider(*self._announced, self._parameter('promotion'))

    def _on_shadow(self) -> None:
        shadow, succession = self.shadow, self.succession
        if succession is not None:
            self._shadow_output.send(shadow, succession.candidate)
            succession.on_shadow()

    def _on_swap(self) -> None:
        swap = self.swap
        if swap is not None and swap.history:
            last = swap.history[-1]
            if swap.state == FAILED:
                self._node.get_logger().error(
                    f'not swapped: {last.reason}; the old policy keeps acting'
                )
            elif swap.state == IDLE and last.result == 'active':
                self.succession.on_taken()
                self._node.get_logger().info(
                    f'swapped to {last.path} ({last.sha256[:12]}, {last.source})'
                )
        self._on_change()
