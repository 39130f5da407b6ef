# SPDX-License-Identifier: Apache-2.0
"""Topics of one simulated world: what it publishes and what it is commanded. Used by mujoco_sim."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PointStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.nodes._mujoco_sim_params import MujocoSimParams
from dipod_ros.ros import jtc_rules, qos
from dipod_ros.ros.messages import (
    NS_PER_S,
    JointIndex,
    JointStateWriter,
    MessageError,
    Outcome,
    outcome_msg,
    point_msg,
    read_commands,
    read_trajectory,
    same_stamp,
    time_msg,
)
from dipod_ros.sim.controllers import ArmController, CommandError
from dipod_ros.sim.faults import SampleFaults
from dipod_ros.sim.inactive import Activity
from dipod_ros.sim.robot import RobotConfig
from dipod_ros.sim.stream_controllers import EffortStream, PositionStream, VelocityStream

# In real time, a command without a stamp that arrives this soon after a reset may have been made
# for the arm where it was: no real arm jumps home, so whoever commands cannot know. One that the
# arm can follow from where it is now was made for here.
DEAF_PERIODS = 2
LOG_EVERY_S = 5.0


def make_controller(
    params: MujocoSimParams, robot: RobotConfig
) -> ArmController | VelocityStream | EffortStream:
    """Return the controller that the parameters ask for."""
    step_s = robot.control_period_s / params.slices
    if params.interface == 'velocity':
        return VelocityStream(robot.limits, step_s, params.command_timeout_s)
    if params.interface == 'effort':
        return EffortStream(robot.limits, step_s, params.command_timeout_s, robot.effort)
    kind = PositionStream if params.command_rate_hz else ArmController
    return kind(robot.limits, step_s)


class WorldTopics:
    """One world's side of the wire, with its arm controller."""

    def __init__(
        self,
        node: Node,
        params: MujocoSimParams,
        robot: RobotConfig,
        prefix: str,
        chunk_steps: int,
        on_answer: Callable[[], None],
    ) -> None:
        self._node, self._prefix, self._on_answer = node, prefix, on_answer
        self._lockstep = params.lockstep
        self._may_end_moving = params.allow_nonzero_velocity_at_trajectory_end
        self._period_ns = round(robot.control_period_s * NS_PER_S)
        self._chunk_steps = chunk_steps
        self.controller = make_controller(params, robot)
        self.answered = False
        self.answer_steps = chunk_steps  # control periods that the newest answer is good for
        self.now_ns = 0
        self.effort = np.zeros(robot.size)
        self.commands = self.violations = self.rejected = self.ignored = 0
        self.last_violation = self.last_rejection = ''
        self._began_ns: int | None = None  # when the world was last reset while running
        self._index = JointIndex(robot.joints)
        self._joints = JointStateWriter(robot.joints)
        faults = params.fault_config()
        self._faults: SampleFaults[JointState] = SampleFaults(faults)
        self.activity = Activity(faults.inactive_s)
        self._sent: dict[str, tuple[Any, Any]] = {}  # newest message per topic, for a resend
        self._publishers: dict[str, Any] = {}
        name = f'{prefix}{robot.controller}'
        node.create_subscription(
            JointTrajectory, f'{name}/joint_trajectory', self._on_trajectory, qos.COMMAND
        )
        # A stream is judged by its differences: none of it may be missed.
        profile = qos.STREAM if params.command_rate_hz else qos.COMMAND
        node.create_subscription(Float64MultiArray, f'{name}/commands', self._on_commands, profile)

    def restart(self, position: np.ndarray, ns: int | None = None) -> None:
        """Hold `position` [A] (rad); `ns` is the time of a reset that commands may have missed."""
        self.controller.reset(position)
        self.effort = np.zeros_like(self.effort)
        self._began_ns = ns

    # Out

    def publish_outcome(self, outcome: Outcome) -> None:
        """Publish on `outcome`."""
        self._send('outcome', Float64MultiArray, qos.OUTCOME, outcome_msg(outcome))

    def publish_point(self, ns: int, name: str, point: np.ndarray) -> None:
        """Publish a point stream [3] (m) on the topic of its name."""
        self._send(name, PointStamped, qos.STATE, point_msg(ns, point))

    def publish_joints(self, ns: int, position: np.ndarray, velocity: np.ndarray) -> None:
        """Publish joint_states: rad, rad/s, and the actuators' torque in N m."""
        if isinstance(self.controller, VelocityStream | EffortStream):
            self._note(self.controller.measured(position, velocity))
        if self.activity.changes(ns / NS_PER_S):
            self._halt(position)
        msg = self._faults.pass_on(self._joints.message(ns, position, velocity, self.effort))
        if msg is not None:
            self._send('joint_states', JointState, qos.STATE, msg)

    def _halt(self, position: np.ndarray) -> None:
        self.controller.halt(position)
        now = 'inactive' if self.activity.inactive else 'active again'
        self._node.get_logger().warning(f'the controller is {now} (faults.controller_inactive_s)')

    def publish_image(self, ns: int, camera: str, rgb: np.ndarray, focal_px: float) -> None:
        """Publish <camera>/image_raw (rgb8) and <camera>/camera_info of an ideal pinhole."""
        image = Image()
        image.header.stamp = time_msg(ns)
        image.header.frame_id = camera
        image.height, image.width = rgb.shape[:2]
        image.encoding, image.step = 'rgb8', rgb.shape[1] * 3
        # An array goes through unchecked; bytes are checked one by one, a thousand times slower.
        image.data = array('B', rgb.tobytes())
        # In lockstep a lost picture would stall the world of whoever acts on it until the resend.
        profile = qos.STATE if self._lockstep else qos.SENSOR
        self._send(f'{camera}/image_raw', Image, profile, image)
        info = CameraInfo(header=image.header, height=image.height, width=image.width)
        f, cx, cy = focal_px, image.width / 2, image.height / 2
        info.distortion_model = 'plumb_bob'
        info.d = [0.0] * 5
        info.k = [f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        self._send(f'{camera}/camera_info', CameraInfo, qos.SENSOR, info)

    def resend(self) -> None:
        """Publish the newest message of every topic again, in the order of the first time."""
        for publisher, msg in list(self._sent.values()):
            publisher.publish(msg)

    def _send(self, topic: str, kind: type, profile: Any, msg: Any) -> None:
        publisher = self._publishers.get(topic)
        if publisher is None:
            publisher = self._node.create_publisher(kind, self._prefix + topic, profile)
            self._publishers[topic] = publisher
        self._sent.pop(topic, None)
        self._sent[topic] = (publisher, msg)
        publisher.publish(msg)

    # In

    def _on_trajectory(self, msg: JointTrajectory) -> None:
        try:
            # No points at all: older controllers take that as "cancel".
            reason = msg.points and jtc_rules.refusal(
                msg, self._index.joints, self.now_ns, self._may_end_moving
            )
            if reason:
                raise CommandError(reason)
            trajectory = read_trajectory(msg, self._index)
            # A stamp of 0 is "from now on".
            stamp_ns = trajectory.stamp_ns or None
            if self._is_stale(stamp_ns):
                return
            now_s = self.now_ns / NS_PER_S
            start_s = now_s if stamp_ns is None else stamp_ns / NS_PER_S
            violations = self.controller.follow(
                start_s + trajectory.times_s, trajectory.positions, trajectory.velocities, now_s
            )
        except (MessageError, CommandError) as error:
            self._reject(str(error))
            return
        self._accept(violations, self._chunk_steps)

    def _on_commands(self, msg: Float64MultiArray) -> None:
        try:
            positions, ns = read_commands(msg)
            size = len(self._index.joints)
            if positions.shape != (size,):
                raise CommandError(f'{positions.size} commands for {size} joints')
            if not np.all(np.isfinite(positions)):
                raise CommandError('commands hold numbers that are not finite')
        except (MessageError, CommandError) as error:
            self._reject(str(error))
            return
        if not self._is_stale(ns, fits=not self.controller.violations(positions)):
            self._accept(self.controller.command(positions, self.now_ns / NS_PER_S), 1)

    def _is_stale(self, ns: int | None, fits: bool = False) -> bool:
        """Tell, and count, whether a command was not made for the present world.

        An inactive controller takes none. In lockstep only the answer to the present observation
        counts, and only once. In real time anything goes that was not made before the world was
        reset; `fits` says that the arm can follow it from where it is.
        """
        if self.activity.inactive:
            stale = True
        elif self._lockstep:
            stale = self.answered or not (ns is None or same_stamp(ns, self.now_ns))
        elif self._began_ns is None:
            stale = False
        elif ns is None:
            just_reset = self.now_ns < self._began_ns + DEAF_PERIODS * self._period_ns
            stale = just_reset and not fits
        else:
            stale = ns < self._began_ns and not same_stamp(ns, self._began_ns)
        self.ignored += stale
        return stale

    def _accept(self, violations: list[str], steps: int) -> None:
        self.commands += 1
        self._note(violations)
        self.answered, self.answer_steps = True, steps
        self._on_answer()

    def _note(self, violations: list[str]) -> None:
        if violations:
            self.violations += 1
            self.last_violation = '; '.join(violations)
            self._node.get_logger().error(
                f'command violates limits: {self.last_violation}',
                throttle_duration_sec=LOG_EVERY_S,
            )

    def _reject(self, reason: str) -> None:
        self.rejected += 1
        self.last_rejection = reason
        self._node.get_logger().error(
            f'command rejected: {reason}', throttle_duration_sec=LOG_EVERY_S
        )
