# SPDX-License-Identifier: Apache-2.0
"""The policy server's topics: sensor messages into the buffer, commands and records out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from geometry_msgs.msg import PointStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.errors import UserError
from dipod_ros.nodes._policy_server_topic import CommandTopic
from dipod_ros.policy.decision import Decision, encode
from dipod_ros.policy.spec import Stream
from dipod_ros.ros import messages, qos, taking
from dipod_ros.ros.trajectory_bytes import TrajectoryBytes
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.loop import Command
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.realtime import RealTimeLoop

if TYPE_CHECKING:
    from dipod_ros.serving.picture_decoder import PictureDecoder

OUTCOME = Float64MultiArray, 'outcome'


class SensorInput:
    """Subscriptions that fill the observation buffer; callbacks store and return."""

    def __init__(
        self,
        node: Node,
        buffer: ObservationBuffer,
        joints: tuple[str, ...],
        lockstep: bool,
        on_sample: Callable[[], None],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        """Listen to outcomes, and to streams by `listen`.

        `on_sample` follows every stored sample, but for pictures in real time.
        """
        self._node = node
        self._buffer = buffer
        self._on_sample = on_sample
        self._on_outcome = on_outcome
        self._index = messages.JointIndex(joints)
        # In lockstep a lost sample stalls the world until it asks again.
        self._lockstep = lockstep
        self._qos = qos.STATE if lockstep else qos.SENSOR
        self._topics: dict[tuple[object, str], object] = {}
        self._velocity_topics: set[str] = set()
        self._decoder: PictureDecoder | None = None  # from the first camera in real time on
        self._subscribe(*OUTCOME, self._outcome, qos.OUTCOME)

    def listen(self, streams: Iterable[Stream]) -> None:
        """Subscribe to what streams need, once per topic, and to nothing else besides outcomes.

        Raises UserError when one of them cannot be; then nothing is given up.
        """
        wanted = {OUTCOME}
        for stream in streams:
            if stream.source == 'command':
                continue
            try:
                wanted.add(self._listen(stream))
            # Another type on the same topic, a name too long with its namespace, a missing OpenCV:
            # what is raised differs between distributions and middlewares.
            except Exception as error:
                reason = str(error).split('\n')[0]
                raise UserError(
                    f'stream {stream.name}: cannot listen to {stream.topic}: {reason}'
                ) from error
        for key in self._topics.keys() - wanted:
            self._node.destroy_subscription(self._topics.pop(key))

    def _listen(self, stream: Stream) -> tuple[object, str]:
        """Return the key of the subscription."""
        if stream.source == 'joint_velocity':
            self._velocity_topics.add(stream.topic)
        if stream.source == 'image':
            return self._listen_to_camera(stream.topic)
        kind, read = {
            'joint_position': (JointState, self._joint_state),
            'joint_velocity': (JointState, self._joint_state),
            'point': (PointStamped, self._point),
            'vector': (Float64MultiArray, self._vector),
        }[stream.source]
        topic = stream.topic
        return self._subscribe(kind, topic, lambda msg: read(topic, msg), self._qos)

    def _listen_to_camera(self, topic: str) -> tuple[object, str]:
        from dipod_ros.nodes import _policy_server_camera as camera

        key = camera, topic
        if key not in self._topics:
            if self._decoder is None and not self._lockstep:
                self._decoder = camera.PictureDecoder(self._buffer)
            self._topics[key] = camera.subscribe(
                self._node, topic, self._buffer, self._decoder, self._on_sample
            )
        return key

    def take(self) -> None:
        """Take what has arrived, where the executor's thread is kept busy by its caller."""
        for subscription in self._topics.values():
            taking.take(subscription)

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._topics.values():
            self._node.destroy_subscription(subscription)
        self._topics.clear()
        if self._decoder is not None:
            self._decoder.close()

    def _subscribe(self, kind: type, topic: str, callback: Callable, profile) -> tuple[object, str]:
        if (kind, topic) not in self._topics:
            self._topics[kind, topic] = self._node.create_subscription(
                kind, topic, callback, profile
            )
        return kind, topic

    def _joint_state(self, topic: str, msg: JointState) -> None:
        if not any(j in msg.name for j in self._index.joints):
            # Another part of the robot publishes here too; or the names in its file are wrong.
            reason = f'its messages name other joints: {sorted(msg.name)}'
            self._buffer.note('joint_position', topic, reason)
            return
        stamp = messages.stamp_ns(msg.header.stamp)
        # Positions last: their arrival completes the message for whoever waits for it.
        if topic in self._velocity_topics:
            self._store('joint_velocity', topic, self._index.velocities, msg, stamp)
        self._store('joint_position', topic, self._index.positions, msg, stamp)
        self._on_sample()

    def _store(self, source: str, topic: str, read: Callable, msg: JointState, stamp: int) -> None:
        try:
            self._buffer.put(source, topic, read(msg), stamp)
        except messages.MissingJointsError as error:
            self._buffer.reject(
                source,
                topic,
                f'{error}: one message has to hold them all; where several drivers publish parts, '
                'joint_state_publisher makes one of them (source_list)',
            )
        except messages.MessageError as error:
            self._buffer.reject(source, topic, str(error))

    def _point(self, topic: str, msg: PointStamped) -> None:
        stamp = messages.stamp_ns(msg.header.stamp)
        self._buffer.put('point', topic, messages.read_point(msg), stamp)
        self._on_sample()

    def _vector(self, topic: str, msg: Float64MultiArray) -> None:
        self._buffer.put('vector', topic, np.asarray(msg.data, dtype=np.float64), 0)
        self._on_sample()

    def _outcome(self, msg: Float64MultiArray) -> None:
        try:
            outcome = messages.read_outcome(msg)
        except messages.MessageError as error:
            self._node.get_logger().warning(f'outcome: {error}', throttle_duration_sec=10.0)
            return
        self._on_outcome(outcome)


class CommandOutput:
    """Publishes commands in one of the two forms that ros2_control's controllers listen to."""

    def __init__(
        self,
        node: LifecycleNode,
        joints: tuple[str, ...],
        controller: str,
        interface: str,
        control_period_s: float,
        lockstep: bool,
    ) -> None:
        """Name the topic; it is to be opened when the node becomes active."""
        self._dt = control_period_s
        self._lockstep = lockstep
        self._trajectory = interface == 'trajectory'
        if self._trajectory:
            self._writer = TrajectoryBytes(joints, control_period_s)
            kind, topic = JointTrajectory, f'{controller}/joint_trajectory'
        else:
            kind, topic = Float64MultiArray, f'{controller}/commands'
        self.topic = CommandTopic(node, kind, topic)
        self.sent = 0

    def send(self, command: Command, loop: object) -> None:
        """Publish a command of `loop`."""
        if not self._trajectory:
            stamp = command.stamp_ns if self._lockstep else None
            msg = messages.commands_msg(command.setpoint, stamp)
        elif self._lockstep:
            msg = self._writer.message(command.stamp_ns, *command.plan.knots(self._dt))
        else:
            msg = self._timed(command, loop)
        self.topic.publish(msg)
        self.sent += 1

    def _timed(self, command: Command, loop: RealTimeLoop) -> bytes | JointTrajectory:
        """Give the points their times on the robot's clock, on one grid across chunks."""
        period_ns = round(self._dt * messages.NS_PER_S)
        plan = command.plan
        grid = loop.grid
        if not (grid.on_robot_time and command.stamp_ns):
            # A robot without a clock: execution begins when the message arrives.
            offset_ns = max(grid.tick_ns(plan.start) - grid.now_ns(), -period_ns // 2)
            said = (values[plan.unsaid :] for values in plan.knots(self._dt))
            return self._writer.message(0, *said, offset_ns + plan.unsaid * period_ns)
        # The knots before the plan are those of the segment that is under way: with them the
        # controller goes on exactly where it is instead of cutting the corner from there.
        positions, velocities, tick = plan.knots_with_trail(self._dt)
        offset_ns = grid.tick_ns(tick) - command.stamp_ns - period_ns
        past = max(0, -(offset_ns // period_ns) - 1)  # knots before the stamp cannot be expressed
        return self._writer.message(
            command.stamp_ns, positions[past:], velocities[past:], offset_ns + past * period_ns
        )


class RecordOutput:
    """Publishes finished decisions on `replay`."""

    def __init__(self, node: LifecycleNode) -> None:
        """Create the publisher."""
        self._publisher = node.create_publisher(UInt8MultiArray, 'replay', qos.REPLAY)

    def send(self, records: list[Decision]) -> None:
        """Publish records in order."""
        for record in records:
            self._publisher.publish(messages.payload_msg(encode(record)))
