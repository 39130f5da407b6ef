# SPDX-License-Identifier: Apache-2.0
"""The policy server's command stream: its own thread, its own rate, whatever inference does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Float64MultiArray

from dipod_ros.errors import UserError
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_topic import CommandTopic
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.ros_names import require_topic
from dipod_ros.ros import messages
from dipod_ros.ros.scheduling import sharpen_sleep
from dipod_ros.serving import setpoints
from dipod_ros.serving.drive import Drive
from dipod_ros.serving.drive_laws import Joints, PositionLaw, VelocityLaw, per_joint
from dipod_ros.serving.effort_law import EffortLaw
from dipod_ros.serving.latency import LatencyWindow
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.realtime import RealTimeLoop

# The longest sleep, so that an e-stop is not kept waiting where commands are far apart.
NAP_S = 0.005


def is_streamed(p: PolicyServerParams) -> bool:
    """Tell whether commands are samples of a stream, rather than one message per plan or period."""
    return p.interface in ('velocity', 'effort') or bool(p.command_rate_hz)


def check_output(p: PolicyServerParams) -> None:
    """Raise UserError when the parameters of the output do not go together."""
    require_topic(p.controller, 'controller')
    setpoints.check_rate(p.command_rate_hz, p.control_period_s)
    if p.interface in ('velocity', 'effort') and p.lockstep:
        raise UserError(
            f'interface {p.interface} is for real time: a world that waits for every answer takes '
            'a trajectory or a position'
        )
    if p.command_rate_hz and (p.lockstep or p.interface == 'trajectory'):
        what = 'lockstep' if p.lockstep else 'interface trajectory'
        raise UserError(
            f'command_rate_hz has no meaning with {what}: set it to 0, or use interface position, '
            'velocity or effort in real time'
        )
    if p.interface != 'effort':
        return
    if not p.command_rate_hz:
        raise UserError(
            'interface effort needs command_rate_hz: torques held for a control period are no '
            'control loop'
        )
    count = len(p.joints)
    if not p.limits.effort:
        raise UserError(
            'interface effort needs limits.effort in the robot file: a robot without torque limits '
            'does not start'
        )
    if len(p.limits.effort) != count or not all(0 < e < float('inf') for e in p.limits.effort):
        raise UserError(f'limits.effort must be {count} numbers above 0, one per joint')
    for name in ('kp', 'kd'):
        if not getattr(p.effort, name):
            raise UserError(f'interface effort needs effort.{name}, one per joint or one for all')
        per_joint(f'effort.{name}', getattr(p.effort, name), count)


def gravity_of(p: PolicyServerParams) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the gravity model that the parameters ask for."""
    if p.interface != 'effort' or not p.effort.gravity_compensation:
        return None
    from dipod_ros.resources import share_dir
    from dipod_ros.sim.gravity import GravityModel

    if not p.mjcf:
        raise UserError('effort.gravity_compensation needs mjcf, the model of the robot')
    path = Path(p.mjcf).expanduser()
    return GravityModel(path if path.is_absolute() else share_dir() / path, p.joints)


class StreamOutput:
    """Publishes the stream on <controller>/commands; replaces CommandOutput where `is_streamed`."""

    def __init__(
        self, node: LifecycleNode, p: PolicyServerParams, limits: JointLimits, topic: str
    ) -> None:
        """Name the topic to be opened when the node becomes active. `topic` has the joints."""
        self._p, self._limits, self._joint_topic = p, limits, topic
        self._gravity = gravity_of(p)
        self.topic = CommandTopic(node, Float64MultiArray, f'{p.controller}/commands')
        self.rate_hz = p.command_rate_hz or 1 / p.control_period_s
        self._msg = Float64MultiArray()
        self.sent = 0
        self.lateness = LatencyWindow()  # of publishing, after the instant that it is for
        self._stream: setpoints.SetpointStream | None = None

    @property
    def missed(self) -> int:
        """Instants without a command since activation."""
        return 0 if self._stream is None else self._stream.missed

    def run(
        self,
        loop: RealTimeLoop,
        buffer: ObservationBuffer,
        stop: threading.Event,
        hurry: threading.Event,
    ) -> None:
        """Play the plans of a loop until `stop` is set, or the loop is stopped and all stands."""
        sharpen_sleep()
        stream = self._stream = setpoints.SetpointStream(loop, self.rate_hz)
        drive = Drive(loop, stream, self._law(buffer, stream.step_s))
        try:
            self._play(loop.clock, stream, drive, stop, hurry)
        finally:
            # Whatever ended it: what a drive was told last stays in force.
            while (values := drive.idle()) is not None:
                self._publish(values)
                time.sleep(stream.step_s / loop.grid.rate)

    def _play(
        self,
        clock: Callable[[], float],
        stream: setpoints.SetpointStream,
        drive: Drive,
        stop: threading.Event,
        hurry: threading.Event,
    ) -> None:
        while not (stop.is_set() or drive.done):
            wait_s = stream.next_s() - clock()
            if hurry.is_set():
                hurry.clear()
                stream.look()
            elif wait_s > 0:
                time.sleep(min(wait_s, NAP_S))
            elif clock() < stream.due_s:
                stream.prepare()
            else:
                due_s = stream.due_s
                values = drive.command()
                if values is not None:
                    self._publish(values)
                    self.lateness.add(clock() - due_s)

    def _publish(self, values: np.ndarray) -> None:
        self._msg.data = messages.doubles(values)
        self.topic.publish(self._msg)
        self.sent += 1

    def figures(self) -> dict[str, Any]:
        """Return what /diagnostics tells about the stream."""
        return {
            'interface': self._p.interface,
            'rate Hz': self.rate_hz,
            'commands': self.sent,
            'missed ticks': self.missed,
            'late p50 us': self.lateness.percentile(50) * 1e6,
            'late p99 us': self.lateness.percentile(99) * 1e6,
        }

    def _law(
        self, buffer: ObservationBuffer, step_s: float
    ) -> PositionLaw | VelocityLaw | EffortLaw:
        p, count = self._p, len(self._p.joints)
        joints = Joints(buffer, self._joint_topic, p.joint_max_age_s)
        if p.interface == 'velocity':
            return VelocityLaw(self._limits, step_s, p.velocity_gain, joints)
        if p.interface == 'effort':
            return EffortLaw(
                np.asarray(p.limits.effort, dtype=np.float64),
                per_joint('effort.kp', p.effort.kp, count),
                per_joint('effort.kd', p.effort.kd, count),
                joints,
                step_s,
                self._gravity,
            )
        return PositionLaw()
