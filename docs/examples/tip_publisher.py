# SPDX-License-Identifier: Apache-2.0
"""Publishes `tip` of a real arm from its joint states and the `kinematics` of its robot file.

    python3 tip_publisher.py --ros-args --params-file my_arm.yaml

For a robot without TF. The point is in the frame that the kinematics are in, the base of the chain.
"""

import contextlib

import rclpy
from geometry_msgs.msg import PointStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState

from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.ros.messages import JointIndex, point_msg, stamp_ns

FILE = {
    'joints': rclpy.Parameter.Type.STRING_ARRAY,
    'kinematics.axes': rclpy.Parameter.Type.DOUBLE_ARRAY,
    'kinematics.origins': rclpy.Parameter.Type.DOUBLE_ARRAY,
    'kinematics.tip': rclpy.Parameter.Type.DOUBLE_ARRAY,
}


class TipPublisher(Node):
    """One point per joint state, with its stamp."""

    def __init__(self):
        super().__init__('tip_publisher')
        joints, *numbers = (self.declare_parameter(name, kind).value for name, kind in FILE.items())
        if joints is None or None in numbers:
            raise SystemExit('the robot file has no kinematics: write it with `dipod robot-file`')
        self.arm = TipKinematics.from_params(joints, *numbers, 'tip')
        self.index = JointIndex(joints)
        self.tip = self.create_publisher(PointStamped, 'tip', 10)
        self.create_subscription(
            JointState, 'joint_states', self.on_joints, qos_profile_sensor_data
        )

    def on_joints(self, msg):
        """Publish where the tip is, unless the message is about other joints."""
        if set(self.index.joints) <= set(msg.name):
            tip = self.arm.forward(self.index.positions(msg))
            self.tip.publish(point_msg(stamp_ns(msg.header.stamp), tip))


if __name__ == '__main__':
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.spin(TipPublisher())
