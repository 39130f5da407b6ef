# SPDX-License-Identifier: Apache-2.0
"""The policy server node: observations in, commands within limits and replay records out.

Wiring only: parameters, lifecycle, services and topics around dipod_ros.serving. In real time
callbacks store and return; a thread decides and another one commits control points. In lockstep
the callback that completes an observation answers it.
"""

from __future__ import annotations

import gc
import json
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String

from dipod_ros.errors import UserError
from dipod_ros.nodes import _policy_server_status as status
from dipod_ros.nodes._policy_server_commanders import Commanders
from dipod_ros.nodes._policy_server_episodes import EpisodeNews, may_hold
from dipod_ros.nodes._policy_server_estop import EStopInput
from dipod_ros.nodes._policy_server_inline import InlineDecisions
from dipod_ros.nodes._policy_server_io import CommandOutput, RecordOutput, SensorInput
from dipod_ros.nodes._policy_server_loop import JOINT_TOPIC, loop_config
from dipod_ros.nodes._policy_server_output import StreamOutput, check_output, is_streamed
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_shadow import identity, shadow_report
from dipod_ros.nodes._policy_server_streams import StreamReports
from dipod_ros.nodes._policy_server_swap import CheckpointRequests
from dipod_ros.nodes._policy_server_threads import ServerThreads
from dipod_ros.nodes._policy_server_workspace import make_workspace
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import Stream
from dipod_ros.resources import share_dir
from dipod_ros.ros import qos
from dipod_ros.ros.diagnostics import Diagnostics
from dipod_ros.ros.lifecycle import OK, ManagedNode, transition
from dipod_ros.ros.params import declare
from dipod_ros.ros.runtime import run_node
from dipod_ros.ros.scheduling import RealTimePriority, use_cores
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import PolicyLoader
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.loop import Loop
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.speed import SpeedConfig


class PolicyServer(ManagedNode):
    """Acts with a checkpoint; see docs/policy_server.md for topics, services and states."""

    def __init__(self) -> None:
        """Read the parameters; with `autostart`, go to active.

        Raises UserError when parameters are wrong or limits are missing, or when a start of its own
        accord fails.
        """
        super().__init__('policy_server')
        self.params = p = declare(self, PolicyServerParams)
        limits = JointLimits.from_params(p.joints, vars(p.limits))
        check_output(p)
        speed = SpeedConfig(p.ramp_in_s, p.slow_age_share, p.slow_speed_scale)
        workspace = make_workspace(p.workspace, limits)
        self._safety = SafetyFilter(limits, p.control_period_s, speed, workspace)
        self._loop_config = loop_config(p)
        folders = [share_dir() / 'models', *(Path(d).expanduser() for d in p.model_dirs)]
        self._loader = PolicyLoader(
            limits,
            p.control_period_s,
            folders,
            EngineFactory(p.engine, p.threads, p.precision, guided=p.seam == 'rtc'),
        )
        self._notices = Notices(self._tell)
        self._commanders = Commanders(p.sole_commander, self._notices, self.get_logger().info)
        self._streams = StreamReports(p, limits, self._notices, self._commanders)
        unbound = use_cores(p.cpu_affinity)
        if unbound:
            self.get_logger().warning(unbound)
        self._priority = RealTimePriority(p.realtime_priority, self.get_logger().warning)
        self._noise = NoiseSource(p.noise, p.seed)
        self._actor = p.actor or self.get_fully_qualified_name()
        self._state = 'unconfigured'
        self._status_lock = threading.Lock()
        self._agent: Agent | None = None
        self._buffer: ObservationBuffer | None = None
        self._input: SensorInput | None = None
        self._output: CommandOutput | StreamOutput | None = None
        self._loop: Loop | None = None
        self._threads: ServerThreads | InlineDecisions | None = None
        self._episodes = EpisodeNews(self, self._publish_status)
        self._status = self.create_publisher(String, '~/status', qos.LATCHED)
        self._records = RecordOutput(self)
        EStopInput(self, self._safety.estop, self._on_estop)
        self._requests = CheckpointRequests(
            self, self._loader, limits, p, self._noise, self._publish_status
        )
        self._diagnostics = self._make_diagnostics()
        self._publish_status()
        if p.autostart:
            self._start()

    def close(self) -> None:
        """Bring the arm to rest and end the threads."""
        if self._state == 'active':
            self.trigger_deactivate()
        self._requests.close()

    # Lifecycle

    def _start(self) -> None:
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() != OK:
                raise UserError(self.error)

    @transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load, build, warm up and check the policy; connect topics. Commands nothing."""
        try:
            self._configure()
        except Exception:
            self._release('unconfigured')  # what there is of it by now
            raise
        return super().on_configure(state)

    def _configure(self) -> None:
        p = self.params
        policy = self._loader.build(self._loader.validate(self.get_parameter('checkpoint').value))
        self._requests.open(lambda: self._agent, self._listen)
        # Decisions are numbered from 0 again: by another name they are none that were seen before.
        name = f'{self._actor}-{uuid.uuid4().hex[:8]}'
        self._agent = Agent(policy, self._noise, name, self._requests.swap)
        self._buffer = ObservationBuffer(time.monotonic)
        self._input = SensorInput(
            self, self._buffer, p.joints, p.lockstep, self._on_sample, self._on_outcome
        )
        self._listen(policy.manifest.spec.streams)
        self._output = (
            StreamOutput(self, p, self._safety.limits, JOINT_TOPIC)
            if is_streamed(p)
            else CommandOutput(
                self, p.joints, p.controller, p.interface, p.control_period_s, p.lockstep
            )
        )
        self._state = 'inactive'
        info, engines = policy.engine.info(), self._loader.engines
        self.get_logger().info(
            f'policy {policy.manifest.path.name} ({policy.manifest.sha256[:12]}, '
            f'{policy.manifest.spec.sampler}) on {info.name} {info.version} ({engines.reason})'
        )
        self._requests.resume()

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act."""
        p = self.params
        hold = may_hold(self.get_parameter('hold_between_episodes').value, p.lockstep)
        self._commanders.claim(self._output.topic)
        result = super().on_activate(state)
        kind = LockstepLoop if p.lockstep else RealTimeLoop
        log = DecisionLog(time.monotonic, p.outcome_timeout_s)
        self._loop = kind(
            self._agent,
            self._buffer,
            self._safety,
            log,
            self._notices,
            replace(self._loop_config, hold_between_episodes=hold),
            time.monotonic,
        )
        outputs = self._output, self._records, self._fail, self._look
        if isinstance(self._loop, RealTimeLoop):
            self._loop.grid.ros_time_ns = lambda: self.get_clock().now().nanoseconds
            self._threads = ServerThreads(self._loop, *outputs, self._priority, self._input.take)
        else:
            self._threads = InlineDecisions(self, self._loop, *outputs)
        # Collecting the hundred thousands of objects of torch's import takes longer than a control
        # period; they live as long as the process anyway.
        gc.collect()
        gc.freeze()
        self._threads.start()
        self._state = 'active'
        where = 'in lockstep' if p.lockstep else 'in real time'
        self.get_logger().info(f'active: acting {where} on {self._output.topic.name}')
        return result

    @transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring the arm to rest, then command nothing more."""
        self._halt()
        self._state = 'inactive'
        result = super().on_deactivate(state)
        self._output.topic.close()
        return result

    @transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the policy and disconnect."""
        self._release('unconfigured')
        return super().on_cleanup(state)

    @transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring the arm to rest and disconnect."""
        self._release('finalized')
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come to rest in the unconfigured state after a failed transition; `error` says why."""
        self._release('unconfigured')
        self.after_transition()
        return OK

    def _halt(self) -> None:
        if self._threads is not None and not self._threads.stop():
            self.get_logger().error('a thread of the server did not end in time')
        self._threads = self._loop = None
        if self._buffer is not None:
            self._buffer.trust()
        self._episodes.halted()

    def _release(self, state: str) -> None:
        self._halt()
        self._requests.close()
        if self._input is not None:
            self._input.close()
        if self._output is not None:
            self._output.topic.close()
        self._input = self._output = self._agent = None
        self._state = state

    def after_transition(self) -> None:
        """Publish where the server stands."""
        self._publish_status()

    # What the executor's thread does while acting.

    def _on_sample(self) -> None:
        if self._threads is not None:
            self._threads.news()

    def _on_outcome(self, outcome: Outcome) -> None:
        if self._loop is not None:
            self._loop.on_outcome(outcome)
            self._on_sample()
        else:
            self._episodes.nobody_acts(outcome)

    def _look(self, loop: Loop) -> None:
        self._requests.look(loop)
        self._episodes.look(loop)

    def _listen(self, streams: tuple[Stream, ...]) -> None:
        # The joint positions are needed to know where to start, whatever the policy looks at.
        count = len(self.params.joints)
        own = [Stream('joints', 'joint_position', count, JOINT_TOPIC)]
        if self.params.interface == 'effort':
            own.append(Stream('joint velocities', 'joint_velocity', count, JOINT_TOPIC))
        for stream in (*streams, *own):
            self._input.listen(stream)

    def _on_estop(self) -> None:
        if self._threads is not None and self._safety.estop.latched:
            self._threads.hurry()
        self._publish_status()

    # What it says about itself

    def _tell(self, problem: bool, text: str) -> None:
        if problem:
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    def _fail(self, reason: str) -> None:
        self.error = reason
        self._publish_status()

    def _publish_status(self) -> None:
        # Several threads have news; the last one to publish must have seen all of it.
        with self._status_lock:
            self._status.publish(String(data=json.dumps(self._status_now())))

    def _status_now(self) -> dict:
        agent, p, engines = self._agent, self.params, self._loader.engines
        return {
            'state': self._state,
            'active': None if agent is None else status.describe(agent.policy.manifest),
            'previous': status.previous(agent),
            **status.swap_status(self._requests.swap),
            **status.succession_status(self._requests.succession),
            'shadow': identity(self._requests.shadow, self._requests.candidate),
            'error': self.error or self._requests.error,
            'engine': engines.name,
            'engine_reason': engines.reason,
            'engine_version': '' if agent is None else agent.policy.engine.info().version,
            'threads': p.threads,
            'lockstep': p.lockstep,
            'interface': p.interface,
            'waiting_for': status.waiting_for(self._loop),
            'seed': self._noise.seed,
            'actor': self._actor if agent is None else agent.name,
            'estop': self._safety.estop.latched,
            'estop_reason': self._safety.estop.reason,
        }

    def _make_diagnostics(self) -> Diagnostics:
        diagnostics = Diagnostics(self, hardware_id=self.params.robot)
        diagnostics.add('policy', lambda: status.policy_report(self._status_now()))
        diagnostics.add(
            'streams',
            lambda: self._streams.report(
                self._loop, self._agent, self._buffer, self._output and self._output.topic
            ),
        )
        diagnostics.add(
            'decisions',
            lambda: status.decision_report(
                self._loop, self._threads is None or self._threads.alive, self._priority.policy
            ),
        )
        if is_streamed(self.params):
            diagnostics.add('output', lambda: status.output_report(self._loop, self._output))
        diagnostics.add(
            'shadow',
            lambda: shadow_report(self._requests.shadow, self._requests.candidate),
        )
        diagnostics.add('safety', lambda: status.safety_report(self._safety, self._loop))
        return diagnostics


def main(args: list[str] | None = None) -> int:
    """Run the policy server; the exit code is that of `run_node`."""
    return run_node(PolicyServer, args)


if __name__ == '__main__':
    raise SystemExit(main())
