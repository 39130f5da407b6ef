# SPDX-License-Identifier: Apache-2.0
"""A robot played by the test, and the policy server as the process that it is in real life."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String, UInt8MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.policy.decision import decode
from dipod_ros.ros import messages, qos, runtime

TIMEOUT_S = 60.0  # far above anything but a machine that is swamped
DT_NS = 40_000_000


class Robot(Node):
    """Publishes what a robot publishes and keeps what it is told; spins on a thread of its own."""

    def __init__(self, context, joints, controller='arm_controller'):
        super().__init__('robot', context=context)
        self.joints = tuple(joints)
        self.news = threading.Condition()
        self.trajectories, self.commands, self.records = [], [], []
        self.statuses, self.diagnostics = [], {}
        self._writer = messages.JointStateWriter(self.joints)
        self._index = messages.JointIndex(self.joints)
        self._joint_states = self.create_publisher(JointState, 'joint_states', qos.STATE)
        self._goal = self.create_publisher(PointStamped, 'goal', qos.STATE)
        self._outcome = self.create_publisher(Float64MultiArray, 'outcome', qos.OUTCOME)
        self.estop = self.create_publisher(Bool, 'estop', 10)
        self.announce = self.create_publisher(String, 'trainer/checkpoint', qos.LATCHED)
        listen = self.create_subscription
        listen(JointTrajectory, f'{controller}/joint_trajectory', self._on_trajectory, 100)
        listen(Float64MultiArray, f'{controller}/commands', self._on_commands, 100)
        listen(UInt8MultiArray, 'replay', self._on_record, qos.REPLAY)
        listen(String, 'policy_server/status', self._on_status, qos.LATCHED)
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self):
        self._stopping.set()
        self._thread.join(5.0)
        self.destroy_node()

    # What the robot says

    def say_joints(self, stamp_ns, position, velocity=None):
        velocity = np.zeros(len(position)) if velocity is None else velocity
        self._joint_states.publish(self._writer.message(stamp_ns, position, velocity))

    def say_goal(self, stamp_ns, goal=(0.1, 0.2, 0.3)):
        self._goal.publish(messages.point_msg(stamp_ns, np.asarray(goal)))

    def say_outcome(self, stamp_ns, episode=0, **values):
        self._outcome.publish(messages.outcome_msg(messages.Outcome(stamp_ns, episode, **values)))

    def observe(self, stamp_ns, position, velocity=None, episode=0, **outcome):
        """Say everything that one instant of a lockstep world consists of."""
        self.say_outcome(stamp_ns, episode, **outcome)
        self.say_goal(stamp_ns)
        self.say_joints(stamp_ns, position, velocity)

    def answer(self, stamp_ns, position, **more):
        """Observe, and return the trajectory that comes back with the same stamp."""
        before = len(self.trajectories)
        self.observe(stamp_ns, position, **more)
        self.wait(lambda: any(t.stamp_ns == stamp_ns for t in self.trajectories[before:]))
        return next(t for t in self.trajectories[before:] if t.stamp_ns == stamp_ns)

    # What the robot hears

    def wait(self, condition, timeout_s=TIMEOUT_S):
        """Block until `condition()` holds; news of any kind makes it look again."""
        with self.news:
            assert self.news.wait_for(condition, timeout_s), f'waited {timeout_s} s in vain'

    @property
    def status(self):
        return self.statuses[-1] if self.statuses else {}

    def wait_status(self, **expected):
        self.wait(lambda: all(self.status.get(k) == v for k, v in expected.items()))
        return self.status

    def connected(self):
        """Tell whether the server's sensor topics and the command topics are matched."""
        return (
            self._joint_states.get_subscription_count() > 0
            and self._goal.get_subscription_count() > 0
            and self._outcome.get_subscription_count() > 0
            and any(
                self.count_publishers(f'arm_controller/{t}')
                for t in ('joint_trajectory', 'commands')
            )
            and self.count_publishers('replay') > 0
        )

    def wait_connected(self):
        deadline = time.monotonic() + TIMEOUT_S
        while not self.connected():  # discovery has no event in rclpy
            assert time.monotonic() < deadline, 'the server did not connect'
            time.sleep(0.02)

    # What the robot asks

    def call(self, service, kind=Trigger, request=None):
        client = self.create_client(kind, f'policy_server/{service}')
        assert client.wait_for_service(TIMEOUT_S), f'no service {service}'
        future = client.call_async(request or kind.Request())
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(TIMEOUT_S), f'no answer from {service}'
        self.destroy_client(client)
        return future.result()

    def set_parameter(self, name, value):
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call('set_parameters', SetParameters, request).results[0]

    def announce_checkpoint(self, manifest):
        text = json.dumps(
            {
                'path': str(manifest.path),
                'sha256': manifest.sha256,
                'version': manifest.version,
                'kind': manifest.kind,
            }
        )
        self.announce.publish(String(data=text))

    def _spin(self):
        executor = runtime.make_executor(self.context)
        executor.add_node(self)
        while not self._stopping.is_set() and self.context.ok():
            runtime.spin_slice(executor)
        executor.remove_node(self)
        executor.shutdown()

    def _on_trajectory(self, msg):
        self._add(self.trajectories, messages.read_trajectory(msg, self._index))

    def _on_commands(self, msg):
        self._add(self.commands, messages.read_commands(msg))

    def _on_record(self, msg):
        self._add(self.records, decode(messages.read_payload(msg)))

    def _on_status(self, msg):
        self._add(self.statuses, json.loads(msg.data))

    def _on_diagnostics(self, msg):
        with self.news:
            for status in msg.status:
                values = {v.key: v.value for v in status.values}
                self.diagnostics[status.name.split(': ')[-1]] = (status, values)
            self.news.notify_all()

    def _add(self, kept, item):
        with self.news:
            kept.append(item)
            self.news.notify_all()


class Server:
    """The policy server as a process; parameters by keyword, `limits__velocity` for nested ones."""

    def __init__(self, folder, limits, remaps=(), **parameters):
        self.log_path = Path(folder) / f'server-{time.monotonic_ns()}.log'
        given = {
            'seed': 1,
            'model_dirs': [str(folder)],
            'joints': list(limits.joints),
            'robot': 'toy_arm',
            'ramp_in_s': 0.0,  # a test that wants its first chunk to be slow says so
            **{f'limits.{k}': v for k, v in limits.to_params().items()},
            **{k.replace('__', '.'): v for k, v in parameters.items()},
        }
        command = [sys.executable, '-m', 'dipod_ros.nodes.policy_server', '--ros-args']
        for name, value in given.items():
            if value is not None:
                command += ['-p', f'{name}:={json.dumps(value)}']
        for remap in remaps:
            command += ['-r', remap]
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
        try:
            return self.process.wait(15.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def make_context():
    context = rclpy.Context()
    rclpy.init(context=context)
    return context
