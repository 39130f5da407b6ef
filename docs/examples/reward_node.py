# SPDX-License-Identifier: Apache-2.0
"""Says what an arm's episodes earn: 1 when `tip` is at `goal` in time, else 0. To copy and change.

    python3 reward_node.py --ros-args -p seconds:=4.0
    ros2 service call /reward/begin std_srvs/srv/Trigger      # the scene is ready

Between episodes the e-stop of the policy server is latched: the arm stands, and whoever resets the
scene calls ~/begin when it is ready. Start this node before the policy server becomes active.
"""

import contextlib
import math
from array import array

import rclpy
from geometry_msgs.msg import PointStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from std_srvs.srv import Trigger

LABEL = 'stamp_s,episode,reward,success,terminated,truncated,reset'


class Reward(Node):
    """Episodes go waiting -> running -> ending -> stopping -> waiting."""

    def __init__(self):
        super().__init__('reward')
        declare = self.declare_parameter
        self.seconds = declare('seconds', 4.0).value  # an episode that takes longer has failed
        self.tolerance_m = declare('tolerance_m', 0.025).value
        self.chunk_s = declare('chunk_s', 0.2).value  # horizon x control_period_s of the policy
        self.settle_s = declare('settle_s', 1.0).value  # longer than the arm takes to stop
        self.every_s = declare('every_s', 0.04).value  # outcomes: well below outcome_timeout_s
        self.episode, self.phase, self.since_s, self.told_s = 0, 'waiting', 0.0, 0.0
        self.points, self.now_s = {}, None
        self.outcome = self.create_publisher(Float64MultiArray, 'outcome', 100)
        self.stop, self.go = (
            self.create_client(Trigger, f'policy_server/{name}')
            for name in ('estop', 'reset_estop')
        )
        self.create_service(Trigger, '~/begin', self.on_begin)
        listen = self.create_subscription
        listen(JointState, 'joint_states', self.on_joints, qos_profile_sensor_data)
        for name in ('tip', 'goal'):
            listen(
                PointStamped,
                name,
                lambda msg, name=name: self.points.update({name: msg.point}),
                qos_profile_sensor_data,
            )
        self.stop.wait_for_service()
        self.stop.call_async(Trigger.Request())  # nothing moves before the first ~/begin

    def on_begin(self, _request, response):
        """Let the arm move: the scene is ready."""
        response.success = self.phase == 'waiting' and self.now_s is not None
        response.message = f'episode {self.episode}' if response.success else self.phase
        if response.success:
            self.enter('running')
            self.go.call_async(Trigger.Request())
        return response

    def on_joints(self, msg):
        """Go by the stamps of the joint states: outcomes are dated by them, by no other clock."""
        self.now_s = msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9
        if 0.0 <= self.now_s - self.told_s < self.every_s:
            return
        self.told_s, lasted_s = self.now_s, self.now_s - self.since_s
        if self.phase == 'running':
            success = self.distance_m() < self.tolerance_m
            over = success or lasted_s > self.seconds
            self.tell(reward=float(success), success=success, terminated=over)
            if over:
                self.enter('ending')
        elif self.phase == 'ending':
            self.tell()
            # What the e-stop interrupts is not learned from: let the rewarded chunk end first.
            if lasted_s > 2 * self.chunk_s:
                self.stop.call_async(Trigger.Request())
                self.enter('stopping')
        elif self.phase == 'stopping' and lasted_s > self.settle_s:
            # `reset` makes the server begin from where the arm is: only while it stands still.
            self.tell(reset=True)
            self.episode += 1
            self.enter('waiting')

    def enter(self, phase):
        """Go on to the next phase."""
        self.phase, self.since_s = phase, self.now_s
        self.get_logger().info(f'episode {self.episode}: {phase}')

    def distance_m(self):
        """Return how far the tip is from the goal; infinite while one of them is unknown."""
        if len(self.points) < 2:
            return math.inf
        tip, goal = self.points['tip'], self.points['goal']
        return math.dist((tip.x, tip.y, tip.z), (goal.x, goal.y, goal.z))

    def tell(self, reward=0.0, success=False, terminated=False, truncated=False, reset=False):
        """Publish what was earned since the outcome before."""
        msg = Float64MultiArray()
        msg.layout.dim = [MultiArrayDimension(label=LABEL, size=7, stride=7)]
        values = (self.now_s, self.episode, reward, success, terminated, truncated, reset)
        msg.data = array('d', values)
        self.outcome.publish(msg)


if __name__ == '__main__':
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.spin(Reward())
