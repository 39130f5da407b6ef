# SPDX-License-Identifier: Apache-2.0
"""The policy server node: observations in, commands within limits and replay records out.

Wiring only: parameters, lifecycle, services and topics around dipod_ros.serving. In real time
callbacks store and return; a thread decides and another one commits control points. In lockstep
the callback that completes an observation answers it.
"""

from __future__ import annotations

import gc
import time
import uuid
from dataclasses import replace

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from dipod_ros.errors import UserError
from dipod_ros.nodes._parameters import read_parameters
from dipod_ros.nodes._policy_server_commanders import STOP, Commanders
from dipod_ros.nodes._policy_server_episodes import EpisodeNews, may_hold
from dipod_ros.nodes._policy_server_estop import EStopInput
from dipod_ros.nodes._policy_server_io import RecordOutput, SensorInput
from dipod_ros.nodes._policy_server_loop import loop_config, own_streams
from dipod_ros.nodes._policy_server_output import check_output
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_parts import (
    Parts,
    make_loader,
    make_loop,
    make_output,
    make_safety,
    make_threads,
)
from dipod_ros.nodes._policy_server_reports import ServerReports, log_with
from dipod_ros.nodes._policy_server_streams import StreamReports
from dipod_ros.nodes._policy_server_swap import CheckpointRequests
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import Stream
from dipod_ros.ros.lifecycle import OK, ManagedNode, transition
from dipod_ros.ros.runtime import run_node
from dipod_ros.ros.scheduling import RealTimePriority, use_cores
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.loop import Loop
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer


class PolicyServer(ManagedNode):
    """Acts with a checkpoint; see docs/policy_server.md for topics, services and states."""

    def __init__(self) -> None:
        """Read the parameters; with `autostart`, go to active.

        Raises UserError when parameters are wrong or limits are missing, or when a start of its own
        accord fails.
        """
        super().__init__('policy_server')
        self.params = p = read_parameters(self, PolicyServerParams)
        limits = JointLimits.from_params(p.joints, vars(p.limits))
        check_output(p)
        self._loop_config = loop_config(p)
        self._safety = make_safety(p, limits)
        self._loader = make_loader(p, limits)
        self._notices = Notices(log_with(self.get_logger()))
        stops = p.on_other_commander == STOP
        self._commanders = Commanders(
            p.sole_commander, stops, self._notices, self.get_logger().info
        )
        unbound = use_cores(p.cpu_affinity)
        if unbound:
            self.get_logger().warning(unbound)
        self._priority = RealTimePriority(p.realtime_priority, self.get_logger().warning)
        self._noise = NoiseSource(p.noise, p.seed)
        self._actor = p.actor or self.get_fully_qualified_name()
        self._parts = Parts()
        self._episodes = EpisodeNews(self, p.lockstep, self._publish_status)
        self._records = RecordOutput(self)
        EStopInput(self, self._safety.estop, self._on_estop)
        self._requests = CheckpointRequests(
            self, self._loader, limits, p, self._noise, self._publish_status
        )
        streams = StreamReports(p, limits, self._notices, self._commanders)
        seen = self._parts, self._requests, self._loader, self._safety, self._noise, streams
        self._reports = ServerReports(self, p, *seen, self._priority, self._actor)
        self._publish_status()
        if p.autostart:
            self._start()

    def close(self) -> None:
        """Bring the arm to rest and end the threads."""
        if self._parts.state == 'active':
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
        parts = self._parts
        self._requests.open(lambda: parts.agent, self._listen)
        # Decisions are numbered from 0 again: by another name they are none that were seen before.
        name = f'{self._actor}-{uuid.uuid4().hex[:8]}'
        parts.agent = Agent(policy, self._noise, name, self._requests.swap)
        parts.buffer = ObservationBuffer(time.monotonic, self._safety.limits)
        parts.input = SensorInput(
            self, parts.buffer, p.joints, p.lockstep, self._on_sample, self._on_outcome
        )
        self._listen(policy.manifest.spec.streams)
        parts.output = make_output(self, p, self._safety.limits)
        parts.state = 'inactive'
        info, engines = policy.engine.info(), self._loader.engines
        self.get_logger().info(
            f'policy {policy.manifest.path.name} ({policy.manifest.sha256[:12]}, '
            f'{policy.manifest.spec.sampler}) on {info.name} {info.version} ({engines.reason})'
        )
        self._requests.resume()

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act."""
        parts = self._parts
        hold = may_hold(self.get_parameter('hold_between_episodes').value, self.params.lockstep)
        config = replace(self._loop_config, hold_between_episodes=hold)
        self._commanders.claim(parts.output.topic)
        result = super().on_activate(state)
        parts.loop = make_loop(self, self.params, parts, config, self._safety, self._notices)
        parts.threads = make_threads(
            self, parts, self._records, self._fail, self._look, self._priority
        )
        # Collecting the hundred thousands of objects of torch's import takes longer than a control
        # period; they live as long as the process anyway.
        gc.collect()
        gc.freeze()
        parts.threads.start()
        parts.state = 'active'
        where = 'in lockstep' if self.params.lockstep else 'in real time'
        self.get_logger().info(f'active: acting {where} on {parts.output.topic.name}')
        return result

    @transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring the arm to rest, then command nothing more."""
        self._halt()
        self._parts.state = 'inactive'
        result = super().on_deactivate(state)
        self._parts.output.topic.close()
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
        parts = self._parts
        if parts.threads is not None and not parts.threads.stop():
            self.get_logger().error('a thread of the server did not end in time')
        parts.threads = parts.loop = None
        self._notices.forget()
        if parts.buffer is not None:
            parts.buffer.trust()
        self._episodes.halted()

    def _release(self, state: str) -> None:
        self._halt()
        self._requests.close()
        self._parts.disconnect()
        self._parts.state = state

    def after_transition(self) -> None:
        """Publish where the server stands."""
        self._publish_status()

    # What the executor's thread does while acting.

    def _on_sample(self) -> None:
        threads = self._parts.threads
        if threads is not None:
            threads.news()

    def _on_outcome(self, outcome: Outcome) -> None:
        loop = self._parts.loop
        if loop is not None:
            loop.on_outcome(outcome)
            self._on_sample()
        else:
            self._episodes.nobody_acts(outcome)

    def _look(self, loop: Loop) -> None:
        self._requests.look(loop)
        self._episodes.look(loop)

    def _listen(self, streams: tuple[Stream, ...]) -> None:
        self._parts.input.listen((*streams, *own_streams(self.params)))

    def _on_estop(self) -> None:
        threads = self._parts.threads
        if threads is not None and self._safety.estop.latched:
            threads.hurry()
        self._publish_status()

    def _fail(self, reason: str) -> None:
        self.error = reason
        self._publish_status()

    def _publish_status(self) -> None:
        self._reports.publish()


def main(args: list[str] | None = None) -> int:
    """Run the policy server; the exit code is that of `run_node`."""
    return run_node(PolicyServer, args)


if __name__ == '__main__':
    raise SystemExit(main())
