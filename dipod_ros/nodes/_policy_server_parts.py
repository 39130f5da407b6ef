# SPDX-License-Identifier: Apache-2.0
"""What the policy server consists of in each of its states, and how it comes to act."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.lifecycle import LifecycleNode

from dipod_ros.nodes._policy_server_inline import InlineDecisions
from dipod_ros.nodes._policy_server_io import CommandOutput, RecordOutput, SensorInput
from dipod_ros.nodes._policy_server_loop import JOINT_TOPIC
from dipod_ros.nodes._policy_server_output import StreamOutput, is_streamed
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_threads import ServerThreads
from dipod_ros.nodes._policy_server_workspace import make_workspace
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.model_dirs import folders_of
from dipod_ros.resources import share_dir
from dipod_ros.ros.scheduling import RealTimePriority
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.decisions import DecisionLog
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import PolicyLoader
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.loop import Loop, LoopConfig
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.speed import SpeedConfig


@dataclass
class Parts:
    """What there is by now: None where it is not there in this state."""

    state: str = 'unconfigured'
    # from configure to cleanup
    agent: Agent | None = None
    buffer: ObservationBuffer | None = None
    input: SensorInput | None = None
    output: CommandOutput | StreamOutput | None = None
    # from activate to deactivate
    loop: Loop | None = None
    threads: ServerThreads | InlineDecisions | None = None

    def disconnect(self) -> None:
        """Give up what `configure` made."""
        if self.input is not None:
            self.input.close()
        if self.output is not None:
            self.output.topic.close()
        self.agent = self.buffer = self.input = self.output = None


def make_safety(p: PolicyServerParams, limits: JointLimits) -> SafetyFilter:
    """Return what keeps the arm within limits; raises UserError for what it cannot be."""
    speed = SpeedConfig(p.ramp_in_s, p.slow_age_share, p.slow_speed_scale)
    workspace = make_workspace(p.workspace, limits)
    return SafetyFilter(limits, p.control_period_s, speed, workspace)


def make_loader(p: PolicyServerParams, limits: JointLimits) -> PolicyLoader:
    """Return what finds and builds checkpoints; raises UserError without engine or folders."""
    folders = [share_dir() / 'models', *folders_of(p.model_dirs)]
    engines = EngineFactory(p.engine, p.threads, p.precision, guided=p.seam == 'rtc')
    return PolicyLoader(limits, p.control_period_s, folders, engines)


def make_output(
    node: LifecycleNode, p: PolicyServerParams, limits: JointLimits
) -> CommandOutput | StreamOutput:
    """Return what publishes the commands that the parameters ask for."""
    if is_streamed(p):
        return StreamOutput(node, p, limits, JOINT_TOPIC)
    return CommandOutput(node, p.joints, p.controller, p.interface, p.control_period_s, p.lockstep)


def make_loop(
    node: LifecycleNode,
    p: PolicyServerParams,
    parts: Parts,
    config: LoopConfig,
    safety: SafetyFilter,
    notices: Notices,
) -> Loop:
    """Return the loop of one activation."""
    kind = LockstepLoop if p.lockstep else RealTimeLoop
    log = DecisionLog(time.monotonic, p.outcome_timeout_s)
    loop = kind(parts.agent, parts.buffer, safety, log, notices, config, time.monotonic)
    if isinstance(loop, RealTimeLoop):
        loop.grid.ros_time_ns = lambda: node.get_clock().now().nanoseconds
    return loop


def make_threads(
    node: LifecycleNode,
    parts: Parts,
    records: RecordOutput,
    fail: Callable[[str], None],
    look: Callable[[Loop], None],
    priority: RealTimePriority,
) -> ServerThreads | InlineDecisions:
    """Return what runs the loop: threads in real time, callbacks in lockstep."""
    outputs = parts.output, records, fail, look
    if isinstance(parts.loop, RealTimeLoop):
        return ServerThreads(parts.loop, *outputs, priority, parts.input.take)
    return InlineDecisions(node, parts.loop, *outputs)
