# SPDX-License-Identifier: Apache-2.0
"""Says what an arm's episodes earn: 1 when `tip` is at `goal` in time, else 0. To copy and change.

    python3 reward_node.py --ros-args --params-file my_arm.yaml -p seconds:=4.0
    ros2 service call /reward/begin std_srvs/srv/Trigger      # the scene is ready

Between episodes a policy server with `hold_between_episodes` waits; whoever resets the scene calls
~/begin when it is ready. Before the first one a pause does the same: start this node before the
policy server becomes active. The first ~/begin takes that pause back, and nothing else: a stop by
anybody else is for a person to release, and ~/begin says so.
"""

import contextlib
import json
import math
from array import array

import rclpy
from geometry_msgs.msg import PointStamped
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension, String
from std_srvs.srv import SetBool, Trigger

LABEL = 'stamp_s,episode,reward,success,terminated,truncated,reset'
CLOCK_SET_S = 0.5  # a stamp so far before the newest comes of a clock that was set
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
OURS = 'service ~/set_pause'  # how the policy server names our stop


class Reward(Node):
    """Episodes are under way between ~/begin and success, or the end of their time."""

    def __init__(self):
        super().__init__('reward')
        declare = self.declare_parameter
        self.seconds = declare('seconds', 4.0).value  # an episode that takes longer has failed
        self.tolerance_m = declare('tolerance_m', 0.025).value
        self.every_s = declare('every_s', 0.04).value  # outcomes: well below outcome_timeout_s
        # Of the arm, from its robot file; without them every joint state counts.
        self.joints = {joint for joint in declare('joints', ['']).value if joint}
        self.episode, self.running, self.since_s, self.told_s = -1, False, 0.0, 0.0
        self.points, self.now_s = {}, None
        self.stops = None  # who stopped the arm; None before we know
        self.paused = False  # whether we did
        self.outcome = self.create_publisher(Float64MultiArray, 'outcome', 100)
        self.pause = self.create_client(SetBool, 'policy_server/set_pause')
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
        listen(String, 'policy_server/status', self.on_status, LATCHED)

    def on_status(self, msg):
        """Keep who stopped the arm; before the first ~/begin we do."""
        reason = json.loads(msg.data)['estop_reason']
        before, self.stops = self.stops, reason.split(', ') if reason else []
        if before is None:
            self.paused = True
            self.pause.call_async(SetBool.Request(data=True))
        elif OURS in before and OURS not in self.stops:
            self.paused = False  # whoever released all stops wanted the arm to move

    def on_begin(self, _request, response):
        """Begin an episode: the scene is ready."""
        problem = self.problem()
        response.success, response.message = not problem, problem
        if problem:
            return response
        if self.paused:
            self.paused = False
            self.pause.call_async(SetBool.Request(data=False))
        self.tell(reset=True)
        self.episode, self.running, self.since_s = self.episode + 1, True, self.now_s
        self.points.clear()  # the goal of the episode before
        response.message = f'episode {self.episode} is under way'
        return response

    def problem(self):
        """Return why no episode can begin now, '' when one can."""
        if self.running:
            return f'episode {self.episode} is under way'
        if self.now_s is None or self.stops is None or (self.paused and OURS not in self.stops):
            return 'waits for joint states and for the policy server'
        others = [stop for stop in self.stops if stop != OURS]
        if others:
            return f'the arm is stopped ({", ".join(others)}): /policy_server/reset_estop first'
        return ''

    def on_joints(self, msg):
        """Go by the stamps of the joint states: outcomes are dated by them, by no other clock.

        Outcomes have to come in the order of their stamps, also where a gripper publishes its joint
        states here too and is a moment behind.
        """
        now_s = msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9
        late = self.now_s is not None and -CLOCK_SET_S < now_s - self.now_s < 0.0
        if late or not self.joints <= set(msg.name):
            return
        self.now_s = now_s
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
