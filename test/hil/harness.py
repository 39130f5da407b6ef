# SPDX-License-Identifier: Apache-2.0
"""A robot played by the test, and the policy server as the process that it is in real life."""

import contextlib
import json
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped
from node_process import TIMEOUT_S, NodeProcess
from peer import Peer, make_context
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String, UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory

from dipod_ros.errors import UserError
from dipod_ros.policy.decision import decode
from dipod_ros.resources import share_dir
from dipod_ros.ros import messages, qos
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import PolicyLoader

__all__ = ['DT_NS', 'TIMEOUT_S', 'Robot', 'Server', 'make_context']
DT_NS = 40_000_000


class Robot(Peer):
    """Publishes what a robot publishes and keeps what it and a simulator are told or say."""

    services_of = 'policy_server'

    def __init__(self, context, joints, controller='arm_controller'):
        super().__init__(context, 'robot')
        self.joints, self.controller = tuple(joints), controller
        self.trajectories, self.commands, self.records = [], [], []
        self.statuses, self.diagnostics = [], {}
        self.figures = []  # what a simulator says of itself, where there is one
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
        listen(String, 'mujoco_sim/status', self._on_figures, qos.LATCHED)
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.begin()

    # What the robot says

    def say_joints(self, stamp_ns, position, velocity=None):
        velocity = np.zeros(len(position)) if velocity is None else velocity
        self._joint_states.publish(self._writer.message(stamp_ns, position, velocity))

    def say_goal(self, stamp_ns, goal=(0.1, 0.2, 0.3)):
        self._goal.publish(messages.point_msg(stamp_ns, np.asarray(goal)))

    def say_outcome(self, stamp_ns, episode=0, **values):
        self._outcome.publish(messages.outcome_msg(messages.Outcome(stamp_ns, episode, **values)))

    def say_numbers(self, *numbers):
        """Publish seven numbers that call themselves an outcome."""
        msg = messages.outcome_msg(messages.Outcome(0, 0))
        msg.data = numbers
        self._outcome.publish(msg)

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
            and (self.status.get('state') != 'active' or self.commanders() > 0)
            and self.count_publishers('replay') > 0
        )

    def commanders(self):
        """Return how many publishers there are on the command topics."""
        topics = ('joint_trajectory', 'commands')
        return sum(self.count_publishers(f'{self.controller}/{t}') for t in topics)

    def wait_connected(self):
        self.wait_until(self.connected, 'the server')

    # What the robot asks

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

    def _on_trajectory(self, msg):
        self._add(self.trajectories, messages.read_trajectory(msg, self._index))

    def _on_commands(self, msg):
        self._add(self.commands, messages.read_commands(msg))

    def _on_record(self, msg):
        self._add(self.records, decode(messages.read_payload(msg)))

    def _on_status(self, msg):
        self._add(self.statuses, json.loads(msg.data))

    def _on_figures(self, msg):
        self._add(self.figures, json.loads(msg.data))

    def _on_diagnostics(self, msg):
        with self.news:
            for status in msg.status:
                values = {v.key: v.value for v in status.values}
                self.diagnostics[status.name.split(': ')[-1]] = (status, values)
            self.news.notify_all()


def keep_graphs(folder, limits, parameters):
    """Export what a server is about to act by, unless it is kept: that takes seconds.

    Here, where torch is imported already and has exported before: a node would begin with both.
    What is wrong with a checkpoint is left for the server to say.
    """
    if parameters.get('engine', 'auto') not in ('auto', 'onnx'):
        return
    engines = EngineFactory('onnx', guided=parameters.get('seam') == 'rtc')
    folders = [share_dir() / 'models', Path(folder)]
    period_s = parameters.get('control_period_s', DT_NS * 1e-9)
    with contextlib.suppress(UserError):
        loader = PolicyLoader(limits, period_s, folders, engines)
        loader.build(loader.validate(parameters.get('checkpoint') or ''))


class Server(NodeProcess):
    """The policy server; parameters by keyword, `limits__velocity` for nested ones.

    With `exports` it finds no graph on disk and makes its own.
    """

    def __init__(self, folder, limits, remaps=(), exports=False, **parameters):
        if not exports:
            keep_graphs(folder, limits, parameters)
        given = {
            'seed': 1,
            'model_dirs': [str(folder)],
            'joints': list(limits.joints),
            'robot': 'toy_arm',
            'ramp_in_s': 0.0,  # a test that wants its first chunk to be slow says so
            'sole_commander': False,  # which waits for discovery; a test of it says so
            'following_rad': 0.0,  # a test whose arm goes where it is told to says so
            **{f'limits__{k}': v for k, v in limits.to_params().items()},
            **parameters,
        }
        own = {'XDG_CACHE_HOME': str(folder)} if exports else {}
        super().__init__(folder, 'policy_server', given, remaps=remaps, environment=own)
