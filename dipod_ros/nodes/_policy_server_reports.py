# SPDX-License-Identifier: Apache-2.0
"""Publishes what the policy server says about itself: ~/status and /diagnostics."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger
from std_msgs.msg import String

from dipod_ros.nodes import _policy_server_status as status
from dipod_ros.nodes._policy_server_output import is_streamed
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_parts import Parts
from dipod_ros.nodes._policy_server_shadow import identity, shadow_report
from dipod_ros.nodes._policy_server_streams import StreamReports
from dipod_ros.nodes._policy_server_swap import CheckpointRequests
from dipod_ros.ros import qos
from dipod_ros.ros.diagnostics import Diagnostics, Report
from dipod_ros.ros.lifecycle import ManagedNode
from dipod_ros.ros.scheduling import RealTimePriority
from dipod_ros.serving.loader import PolicyLoader
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.safety import SafetyFilter


class ServerReports:
    """Looks at the parts of the server whenever it has to say something."""

    def __init__(
        self,
        node: ManagedNode,
        params: PolicyServerParams,
        parts: Parts,
        requests: CheckpointRequests,
        loader: PolicyLoader,
        safety: SafetyFilter,
        noise: NoiseSource,
        streams: StreamReports,
        priority: RealTimePriority,
        actor: str,
    ) -> None:
        """Publish diagnostics once a second from now on; `publish` does the status."""
        self._node, self._params, self._parts = node, params, parts
        self._requests, self._loader, self._safety = requests, loader, safety
        self._noise, self._streams, self._priority = noise, streams, priority
        self._actor = actor
        self._lock = threading.Lock()
        self._publisher = node.create_publisher(String, '~/status', qos.LATCHED)
        self._diagnostics = self._make_diagnostics()

    def publish(self) -> None:
        """Publish the status."""
        # Several threads have news; the last one to publish must have seen all of it.
        with self._lock:
            self._publisher.publish(String(data=json.dumps(self.now())))

    def now(self) -> dict[str, Any]:
        """Return the status."""
        agent, p, engines = self._parts.agent, self._params, self._loader.engines
        requests = self._requests
        return {
            'state': self._parts.state,
            'active': None if agent is None else status.describe(agent.policy.manifest),
            'previous': status.previous(agent),
            **status.swap_status(requests.swap),
            **status.succession_status(requests.succession),
            'shadow': identity(requests.shadow, requests.candidate),
            'error': self._node.error or requests.error,
            'engine': engines.name,
            'engine_reason': engines.reason,
            'engine_version': '' if agent is None else agent.policy.engine.info().version,
            'threads': p.threads,
            'lockstep': p.lockstep,
            'interface': p.interface,
            'waiting_for': status.waiting_for(self._parts.loop),
            'seed': self._noise.seed,
            'actor': self._actor if agent is None else agent.name,
            'estop': self._safety.estop.latched,
            'estop_reason': self._safety.estop.reason,
        }

    def _make_diagnostics(self) -> Diagnostics:
        parts, requests = self._parts, self._requests
        diagnostics = Diagnostics(self._node, hardware_id=self._params.robot)
        diagnostics.add('policy', lambda: status.policy_report(self.now()))
        diagnostics.add('streams', self._stream_report)
        diagnostics.add(
            'decisions',
            lambda: status.decision_report(
                parts.loop, parts.threads is None or parts.threads.alive, self._priority.policy
            ),
        )
        if is_streamed(self._params):
            diagnostics.add('output', lambda: status.output_report(parts.loop, parts.output))
        diagnostics.add('shadow', lambda: shadow_report(requests.shadow, requests.candidate))
        diagnostics.add('safety', lambda: status.safety_report(self._safety, parts.loop))
        return diagnostics

    def _stream_report(self) -> Report:
        parts = self._parts
        topic = parts.output and parts.output.topic
        return self._streams.report(parts.loop, parts.agent, parts.buffer, topic)


def log_with(logger: RcutilsLogger) -> Callable[[bool, str], None]:
    """Return what tells problems, and that they are over, in the log of a node."""

    def tell(problem: bool, text: str) -> None:
        if problem:
            logger.warning(text)
        else:
            logger.info(text)

    return tell
