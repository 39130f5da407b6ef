# SPDX-License-Identifier: Apache-2.0
"""The simulator node as a process, and somebody who commands it."""

import json

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped
from node_process import NodeProcess
from peer import Peer
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.resources import resource
from dipod_ros.ros import messages, qos


class World:
    """What one world said, newest last; `prefix` is its namespace with a slash, or nothing."""

    def __init__(self, prefix, joints, controller):
        self.prefix, self.controller = prefix, controller
        self.joints, self.outcomes, self.tips, self.goals = [], [], [], []
        self.images, self.infos = [], []
        self.index = messages.JointIndex(joints)
        self.writer = messages.TrajectoryWriter(joints, 0.04)

    def stamps(self):
        return [messages.stamp_ns(m.header.stamp) for m in self.joints]


class Commander(Peer):
    """Hears everything the simulator says and commands it."""

    services_of = 'mujoco_sim'

    def __init__(self, context, joints, worlds=1, controller='arm_controller'):
        super().__init__(context, 'commander')
        self.worlds = [
            World(f'world{i}/' if worlds > 1 else '', tuple(joints), controller)
            for i in range(worlds)
        ]
        self.clock, self.status, self.diagnostics = [], [], []
        for world in self.worlds:
            self._attach(world)
        listen = self.create_subscription
        listen(Clock, '/clock', lambda m: self._add(self.clock, messages.stamp_ns(m.clock)), 100)
        listen(
            String,
            'mujoco_sim/status',
            lambda m: self._add(self.status, json.loads(m.data)),
            qos.LATCHED,
        )
        listen(DiagnosticArray, '/diagnostics', lambda m: self._add(self.diagnostics, m), 10)
        self.begin()

    def wait_connected(self):
        publishers = [p for w in self.worlds for p in (w.trajectory, w.position)]
        self.wait_until(
            lambda: all(p.get_subscription_count() for p in publishers), 'the simulator'
        )

    def wait_stamp(self, ns, world=0):
        """Return the joint_states [A] with this stamp, as soon as there are."""
        w = self.worlds[world]
        self.wait(lambda: ns in w.stamps())
        return w.index.positions(w.joints[w.stamps().index(ns)])

    def wait_status(self, **expected):
        return self.wait(
            lambda: next(
                (s for s in self.status if all(s[k] == v for k, v in expected.items())), None
            )
        )

    def follow(self, ns, positions, velocities=None, world=0, **changes):
        """Send a trajectory stamped `ns`; `changes` replace fields of the message."""
        w = self.worlds[world]
        velocities = np.zeros_like(positions) if velocities is None else velocities
        msg = w.writer.message(ns, positions, velocities)
        for name, value in changes.items():
            setattr(msg, name, value)
        w.trajectory.publish(msg)

    def go_to(self, positions, ns=None, world=0):
        """Send position commands, with a stamp for lockstep."""
        self.worlds[world].position.publish(messages.commands_msg(positions, ns))

    def pause(self, data):
        return self.call('set_pause', SetBool, data=data)

    def _attach(self, w):
        listen = self.create_subscription
        name = f'{w.prefix}{w.controller}'
        w.trajectory = self.create_publisher(
            JointTrajectory, f'{name}/joint_trajectory', qos.COMMAND
        )
        w.position = self.create_publisher(Float64MultiArray, f'{name}/commands', qos.COMMAND)
        listen(JointState, f'{w.prefix}joint_states', lambda m: self._add(w.joints, m), 100)
        listen(
            Float64MultiArray,
            f'{w.prefix}outcome',
            lambda m: self._add(w.outcomes, messages.read_outcome(m)),
            qos.OUTCOME,
        )
        listen(PointStamped, f'{w.prefix}tip', lambda m: self._add(w.tips, m), 100)
        listen(PointStamped, f'{w.prefix}goal', lambda m: self._add(w.goals, m), 100)
        listen(Image, f'{w.prefix}front/image_raw', lambda m: self._add(w.images, m), qos.SENSOR)
        listen(
            CameraInfo, f'{w.prefix}front/camera_info', lambda m: self._add(w.infos, m), qos.SENSOR
        )


class Simulator(NodeProcess):
    """The simulator; parameters by keyword, `faults__x` for nested ones."""

    def __init__(self, folder, robot='arm7', params_files=(), **parameters):
        files = [resource(f'config/robots/{robot}.yaml')] if robot else []
        super().__init__(folder, 'mujoco_sim', parameters, [*files, *params_files])
