# SPDX-License-Identifier: Apache-2.0
"""The simulator node as a process, and somebody who commands it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.resources import resource
from dipod_ros.ros import messages, qos, runtime

TIMEOUT_S = 30.0


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


class Commander(Node):
    """Hears everything the simulator says and commands it; spins on a thread of its own."""

    def __init__(self, context, joints, worlds=1, controller='arm_controller'):
        super().__init__('commander', context=context)
        self.news = threading.Condition()
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
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self):
        self._stopping.set()
        self._thread.join(5.0)
        self.destroy_node()

    def wait(self, condition, timeout_s=TIMEOUT_S):
        """Block until `condition()` is true and return it; news makes it look again."""
        with self.news:
            assert self.news.wait_for(condition, timeout_s), f'waited {timeout_s} s in vain'
            return condition()

    def wait_connected(self):
        deadline = time.monotonic() + TIMEOUT_S
        while not all(  # discovery has no event in rclpy
            p.get_subscription_count() for w in self.worlds for p in (w.trajectory, w.position)
        ):
            assert time.monotonic() < deadline, 'the simulator did not connect'
            time.sleep(0.02)

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

    def call(self, service, kind=Trigger, **request):
        client = self.create_client(kind, f'mujoco_sim/{service}')
        assert client.wait_for_service(TIMEOUT_S), f'no service {service}'
        future, done = client.call_async(kind.Request(**request)), threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(TIMEOUT_S), f'no answer from {service}'
        self.destroy_client(client)
        return future.result()

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

    def _add(self, kept, item):
        with self.news:
            kept.append(item)
            self.news.notify_all()

    def _spin(self):
        executor = runtime.make_executor(self.context)
        executor.add_node(self)
        while not self._stopping.is_set() and self.context.ok():
            runtime.spin_slice(executor)
        executor.remove_node(self)
        executor.shutdown()


class Simulator:
    """The node as a process; parameters by keyword, `faults__x` for nested ones."""

    def __init__(self, folder, robot='arm7', params_files=(), **parameters):
        self.log_path = Path(folder) / f'sim-{time.monotonic_ns()}.log'
        command = [sys.executable, '-m', 'dipod_ros.nodes.mujoco_sim', '--ros-args']
        if robot:
            command += ['--params-file', str(resource(f'config/robots/{robot}.yaml'))]
        for path in params_files:
            command += ['--params-file', str(path)]
        for name, value in parameters.items():
            command += ['-p', f'{name.replace("__", ".")}:={json.dumps(value)}']
        with open(self.log_path, 'w') as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {'RCUTILS_COLORIZED_OUTPUT': '0'},
            )

    @property
    def log(self):
        return self.log_path.read_text()

    def stop(self, number=signal.SIGINT):
        """Ask the process to end and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.exit_code()

    def exit_code(self):
        """Wait for the process to end by itself."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
