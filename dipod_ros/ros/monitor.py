# SPDX-License-Identifier: Apache-2.0
"""Watches a running stack from its topics: success, versions, swaps, latency, violations."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray, String, UInt8MultiArray
from std_srvs.srv import Trigger

from dipod_ros.policy.decision import DecisionError, decode
from dipod_ros.ros import qos
from dipod_ros.ros.messages import read_payload


@dataclass
class Snapshot:
    """What the stack has done so far; rates are over the whole watch, success over a window."""

    episodes: int = 0
    success: float = float('nan')  # of the last `window` episodes
    decisions: int = 0
    control_ticks: int = 0
    ticks_per_s: float = 0.0
    latency_ms_p50: float = float('nan')
    latency_ms_p99: float = float('nan')
    interrupted: int = 0
    server: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    simulator: dict[str, Any] = field(default_factory=dict)

    @property
    def active(self) -> dict[str, Any]:
        """What the server says of the policy that acts: sha256, version, kind, path."""
        return self.server.get('active') or {}


class Monitor(Node):
    """Subscribes to replay and to the status topics of server, trainer and simulator."""

    def __init__(self, window: int = 128) -> None:
        """Keep the success of the last `window` episodes and the last 5000 latencies."""
        super().__init__('monitor')
        self._success: deque[bool] = deque(maxlen=window)
        self._latency_s: deque[float] = deque(maxlen=5000)
        self._first: float | None = None
        self._latest = 0.0
        self._by_policy: dict[str, list[int]] = {}
        self.snapshot = Snapshot()
        self.metrics: list[dict[str, float]] = []
        self.create_subscription(UInt8MultiArray, 'replay', self._on_replay, qos.REPLAY)
        self.create_subscription(Float64MultiArray, 'trainer/metrics', self._on_metrics, qos.STATE)
        for name in ('policy_server', 'trainer', 'mujoco_sim'):
            self.create_subscription(
                String,
                f'{name}/status',
                lambda msg, key=name: self._on_status(key, msg),
                qos.LATCHED,
            )
        self._finish = self.create_client(Trigger, 'trainer/finish')

    def finish_learning(self) -> bool:
        """Ask the trainer to end and distil; returns whether it is there to be asked."""
        if not self._finish.service_is_ready():
            return False
        self._finish.call_async(Trigger.Request())
        return True

    def episodes_of(self, policy_sha: str) -> tuple[int, int]:
        """Return (episodes, successes) that ended under this policy."""
        episodes, successes = self._by_policy.get(policy_sha, (0, 0))
        return episodes, successes

    def refresh(self) -> Snapshot:
        """Bring the figures of the snapshot up to date and return it."""
        s = self.snapshot
        if self._success:
            s.success = float(np.mean(self._success))
        if self._latency_s:
            latency = np.fromiter(self._latency_s, dtype=float) * 1e3
            s.latency_ms_p50, s.latency_ms_p99 = np.percentile(latency, (50, 99)).tolist()
        if self._first is not None and self._latest > self._first:
            s.ticks_per_s = s.control_ticks / (self._latest - self._first)
        return s

    def _on_replay(self, msg: UInt8MultiArray) -> None:
        try:
            decision = decode(read_payload(msg))
        except DecisionError as error:
            self.get_logger().warning(f'replay: {error}', throttle_duration_sec=10.0)
            return
        self._latest = time.monotonic()
        if self._first is None:
            self._first = self._latest
        else:
            self.snapshot.control_ticks += len(decision.chunk)
        self.snapshot.decisions += 1
        self.snapshot.interrupted += decision.interrupted
        self._latency_s.append(decision.latency_s)
        if decision.terminated:
            self.snapshot.episodes += 1
            self._success.append(decision.success)
            count = self._by_policy.setdefault(decision.policy_sha, [0, 0])
            count[0] += 1
            count[1] += decision.success

    def _on_metrics(self, msg: Float64MultiArray) -> None:
        names = msg.layout.dim[0].label.split(',') if msg.layout.dim else []
        self.metrics.append(dict(zip(names, msg.data, strict=False)))

    def _on_status(self, key: str, msg: String) -> None:
        try:
            status = json.loads(msg.data)
        except ValueError:
            return
        field_name = {'policy_server': 'server', 'mujoco_sim': 'simulator'}.get(key, key)
        setattr(self.snapshot, field_name, status)
