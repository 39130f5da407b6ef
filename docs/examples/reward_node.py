# SPDX-License-Identifier: Apache-2.0
"""Says what an arm's episodes earn: 1 when `tip` is at `goal` in time, else 0. To copy and change.

    python3 reward_node.py --ros-args -p seconds:=4.0
    ros2 service call /reward/begin std_srvs/srv/Trigger      # the scene is ready

Between episodes a policy server with `hold_between_episodes` waits; whoever resets the scene calls
~/begin when it is ready. Before the first one the e-stop does the same: start this node before the
policy server becomes active.
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
    """Episodes are under way between ~/begin and success, or the end of their time."""

    def __init__(self):
        super().__init__('reward')
        declare = self.declare_parameter
        self.seconds = declare('seconds', 4.0).value  # an episode that takes longer has failed
        self.tolerance_m = declare('tolerance_m', 0.025).value
        self.every_s = declare('every_s', 0.04).value  # outcomes: well below outcome_timeout_s
        self.episode, self.running, self.since_s, self.told_s = -1, False, 0.0, 0.0
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
        """Begin an episode: the scene is ready."""
        response.success = not self.running and self.now_s is not None
        if response.success:
            if self.episode < 0:
                self.go.call_async(Trigger.Request())
            else:
                self.tell(reset=True)
            self.episode, self.running, self.since_s = self.episode + 1, True, self.now_s
            self.points.clear()  # the goal of the episode before
        state = 'is under way' if self.running else 'waits for joint states'
        response.message = f'episode {self.episode} {state}'
        return response

    def on_joints(self, msg):
        """Go by the stamps of the joint states: outcomes are dated by them, by no other clock."""
        self.now_s = msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9
        if not self.running or 0.0 <= self.now_s - self.told_s < self.every_s:
            return
        self.told_s = self.now_s
        success = self.distance_m() < self.tolerance_m
        over = success or self.now_s - self.since_s > self.seconds
        self.tell(reward=float(success), success=success, terminated=over)
        if over:
            self.running = False
            self.get_logger().info(f'episode {self.episode}: {"success" if success else "failed"}')

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
