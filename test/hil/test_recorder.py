# SPDX-License-Identifier: Apache-2.0
"""The recorder beside a simulated arm that another policy moves, and what it says of bad inputs."""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from geometry_msgs.msg import PointStamped  # noqa: E402
from harness import Server, make_context  # noqa: E402
from node_process import NodeProcess  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402
from sim_harness import Simulator  # noqa: E402
from std_msgs.msg import Float64MultiArray, String  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from dipod_ros.cli.main import main  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.policy.limits import JointLimits  # noqa: E402
from dipod_ros.resources import resource  # noqa: E402
from dipod_ros.ros import messages, qos, runtime  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
TIMEOUT_S = 60.0
JOINTS = ('a', 'b')
LIMITS = JointLimits.from_params(
    JOINTS,
    {
        'position_lower': [-2.0, -2.0],
        'position_upper': [2.0, 2.0],
        'velocity': [1.5, 1.5],
        'acceleration': [8.0, 8.0],
    },
)
SPEC = """
task: swing
horizon: 5
streams:
- {name: q, source: joint_position, topic: joint_states}
- {name: command, source: command}
- {name: goal, source: point, topic: goal, max_age_s: 1.0}
"""


class Recorder(NodeProcess):
    """The recorder as a process; parameters by keyword, `limits__velocity` for nested ones."""

    def __init__(self, folder, params_files=(), **parameters):
        super().__init__(folder, 'recorder', parameters, params_files)


class Operator(Node):
    """Calls the recorder's services and hears its status; plays a toy arm when asked."""

    def __init__(self, context):
        super().__init__('operator', context=context)
        self.news = threading.Condition()
        self.statuses, self.servers = [], []
        listen = self.create_subscription
        listen(
            String,
            'recorder/status',
            lambda m: self._add(self.statuses, json.loads(m.data)),
            qos.LATCHED,
        )
        listen(
            String,
            'policy_server/status',
            lambda m: self._add(self.servers, json.loads(m.data)),
            qos.LATCHED,
        )
        self._joint_states = self.create_publisher(JointState, 'joint_states', qos.STATE)
        self._goal = self.create_publisher(PointStamped, 'goal', qos.STATE)
        self._commanders = {
            'commands': self.create_publisher(Float64MultiArray, 'hand/commands', qos.STREAM),
            'trajectory': self.create_publisher(
                JointTrajectory, 'hand/joint_trajectory', qos.STREAM
            ),
            'joint_state': self.create_publisher(JointState, 'leader/joint_states', qos.STATE),
        }
        self._camera = self.create_publisher(Image, 'front/image_raw', qos.STATE)
        self._trajectories = messages.TrajectoryWriter(JOINTS, 0.02)
        self._writer = messages.JointStateWriter(JOINTS)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._spin, daemon=True)]
        self._threads[0].start()
        self.swing, self.mute, self.commanding, self.filming = 0.0, False, '', False

    def play_arm(self):
        """Publish joint states of an arm at 50 Hz from now on, moving while `swing` is above 0."""
        self._threads.append(threading.Thread(target=self._play, daemon=True))
        self._threads[-1].start()

    def close(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(5.0)
        self.destroy_node()

    def call(self, service, kind=Trigger, **request):
        client = self.create_client(kind, service)
        assert client.wait_for_service(TIMEOUT_S), f'no service {service}'
        future, done = client.call_async(kind.Request(**request)), threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(TIMEOUT_S), f'no answer from {service}'
        self.destroy_client(client)
        return future.result()

    def start(self):
        return self.call('recorder/start')

    def stop(self, success=True):
        return self.call('recorder/stop', SetBool, data=success)

    def wait(self, condition, timeout_s=TIMEOUT_S):
        with self.news:
            assert self.news.wait_for(condition, timeout_s), f'waited in vain; {self.status}'

    @property
    def status(self):
        return self.statuses[-1] if self.statuses else {}

    def wait_status(self, **expected):
        self.wait(lambda: all(self.status.get(k) == v for k, v in expected.items()))

    def record(self, seconds, success=True):
        """Record for some seconds of recording, at rest at the end; return the answer to stop."""
        answer = self.start()
        assert answer.success, answer.message
        self.swing = 0.4
        self.wait(lambda: self.status['state'] == 'spoiled' or self.status['seconds'] >= seconds)
        self.swing = 0.0
        rest = self.status['seconds'] + 1.0
        self.wait(lambda: self.status['state'] == 'spoiled' or self.status['seconds'] >= rest)
        return self.stop(success)

    def _add(self, kept, item):
        with self.news:
            kept.append(item)
            self.news.notify_all()

    def _play(self):
        stamp, phase, speed = 5_000_000_000, 0.0, 0.0
        due = time.monotonic()
        while not self._stopping.is_set():
            # The speed of the phase changes slowly, as a hand's does.
            speed += np.clip((2.0 if self.swing else 0.0) - speed, -0.05, 0.05)
            phase += speed * 0.02
            position = np.array([0.4 * np.sin(phase), 0.3 * np.sin(0.7 * phase)])
            self._goal.publish(messages.point_msg(stamp, np.array([1.0, 2.0, 3.0])))
            if self.commanding:
                self._command(stamp, position + 0.1)
            if self.filming:
                self._camera.publish(_picture(stamp))
            if not self.mute:
                self._joint_states.publish(self._writer.message(stamp, position))
            stamp += 20_000_000
            due += 0.02
            time.sleep(max(0.0, due - time.monotonic()))

    def _command(self, stamp, position):
        msg = {
            'commands': lambda: messages.commands_msg(position),
            'trajectory': lambda: self._trajectories.message(0, position[None], np.zeros((1, 2))),
            'joint_state': lambda: self._writer.message(stamp, position),
        }[self.commanding]()
        self._commanders[self.commanding].publish(msg)

    def _spin(self):
        executor = runtime.make_executor(self.context)
        executor.add_node(self)
        while not self._stopping.is_set() and self.context.ok():
            runtime.spin_slice(executor)
        executor.remove_node(self)
        executor.shutdown()


def _picture(stamp_ns):
    # Its grey is the time since the arm began to play, in periods of 20 ms.
    grey = (stamp_ns // 20_000_000) % 200
    msg = Image(height=24, width=32, encoding='rgb8', step=96, data=bytes([grey]) * (96 * 24))
    msg.header.stamp = messages.time_msg(stamp_ns)
    return msg


@pytest.fixture
def operator():
    context = make_context()
    operator = Operator(context)
    yield operator
    operator.close()
    context.try_shutdown()


@pytest.fixture
def recorder(tmp_path):
    """Return a function that starts a recorder of the toy arm."""
    running = []
    (tmp_path / 'swing.yaml').write_text(SPEC)

    def start(**changes):
        given = {
            'policy': str(tmp_path / 'swing.yaml'),
            'output': str(tmp_path / 'demos.safetensors'),
            'robot': 'toy',
            'joint_max_age_s': 1.0,  # a busy machine loses messages
            'joints': list(JOINTS),
            **{f'limits.{k}': v for k, v in LIMITS.to_params().items()},
            **changes,
        }
        given = {k: v for k, v in given.items() if v is not None}
        running.append(Recorder(tmp_path, **given))
        return running[-1]

    yield start
    for process in running:
        process.stop()
        print(process.log)


def check_feasible(data):
    """Assert that every chunk, from the command before it on, is within the limits."""
    limits, dt = data.spec.limits, data.spec.control_period_s
    assert (np.abs(data.actions) <= limits.velocity * dt + 1e-6).all()
    change = np.abs(np.diff(data.actions, axis=1))
    assert (change <= limits.acceleration * dt**2 + 1e-6).all()


def test_from_a_moving_arm_to_a_policy_that_the_server_takes(operator, tmp_path):
    """A shipped student moves the arm; what it does is recorded, cloned, and acts."""
    arm7 = resource('config/robots/arm7.yaml')
    out = tmp_path / 'reach.safetensors'
    sim = Simulator(tmp_path, task='reach', seed=3)
    limits = None
    ends = [sim.stop]
    try:
        from dipod_ros.sim.robot import load_robot

        limits = load_robot('arm7').limits
        teacher = Server(
            tmp_path, limits, robot='arm7', checkpoint='reach_student', reset_teleports=True
        )
        ends.append(teacher.stop)
        recorder = Recorder(
            tmp_path,
            [arm7],
            policy='reach_student',
            output=str(out),
            tracking_lag_s=0.03,
            joint_max_age_s=1.0,  # a busy machine loses messages
            stamp_tolerance_s=0.0,  # while the world is paused its clock falls behind
        )
        ends.append(recorder.stop)
        operator.wait_status(state='ready', episodes=0)
        operator.wait(lambda: operator.servers and operator.servers[-1]['state'] == 'active')
        # One that the world ends: a new episode begins where the recorder is told that it does.
        operator.call('mujoco_sim/set_pause', SetBool, data=True)
        assert operator.call('mujoco_sim/reset').success
        assert operator.start().success
        operator.call('mujoco_sim/set_pause', SetBool, data=False)
        operator.wait(lambda: operator.status['state'] != 'recording')
        first = operator.status['last']
        assert first['kept'], (first, recorder.log)
        assert operator.status['episodes'] == 1
        # One more, of a world that begins anew while it is recorded.
        operator.call('mujoco_sim/set_pause', SetBool, data=True)
        assert operator.call('mujoco_sim/reset').success
        assert operator.start().success
        operator.call('mujoco_sim/set_pause', SetBool, data=False)
        operator.wait(lambda: operator.status['episodes'] == 2)
        assert not operator.stop().success  # it has ended already
        assert recorder.stop() == 0
        operator.call('mujoco_sim/set_pause', SetBool, data=True)
        assert main(['pretrain', str(out), '--out', str(tmp_path / 'clone'), '--steps', '5']) == 0
        operator.call('mujoco_sim/set_pause', SetBool, data=False)
        request = [Parameter('checkpoint', value='clone').to_parameter_msg()]
        answer = operator.call('policy_server/set_parameters', SetParameters, parameters=request)
        assert answer.results[0].successful, answer.results[0].reason
        operator.wait(lambda: operator.servers[-1]['active']['name'] == 'clone')
    finally:
        for end in reversed(ends):
            end()
    data = Demonstrations.load(out)
    assert len(data.success) == 2 and data.spec.robot == 'arm7' and data.spec.task == 'reach'
    assert data.observations.shape[1] == 20 and data.actions.shape[1:] == (5, 7)
    check_feasible(data)
    position, command = data.observations[:, :7], data.observations[:, 7:14]
    assert 1e-4 < np.abs(command - position).max() < 0.3
    assert np.abs(data.actions).max() > 1e-3


def test_episodes_are_kept_discarded_and_added_to(operator, recorder, tmp_path):
    out = tmp_path / 'demos.safetensors'
    operator.play_arm()
    process = recorder()
    operator.wait_status(state='ready')
    answer = operator.stop()
    assert not answer.success and 'nothing is being recorded' in answer.message
    assert 'no episode' in operator.call('recorder/discard').message
    answer = operator.record(2.0)
    assert answer.success and answer.message.startswith('episode 0: '), answer.message
    assert operator.start().success
    again = operator.start()
    assert not again.success and 'recording already' in again.message
    assert operator.call('recorder/discard').message == 'dropped what was being recorded'
    assert operator.record(1.0, success=False).success
    assert operator.record(1.0).success
    assert operator.call('recorder/discard').success
    data = Demonstrations.load(out)
    assert data.success.tolist() == [True, False]
    check_feasible(data)
    rows = data.observations[data.episodes == 0]
    assert 40 < len(rows) < 120  # 2 s and what the messages took, without the second of rest
    np.testing.assert_array_equal(rows[:, 4:], np.tile([1, 2, 3], (len(rows), 1)))
    assert np.abs(data.actions[data.episodes == 0][-1]).max() < 1e-6  # it ends at rest
    # Ctrl-C in the middle of an episode keeps what was finished.
    assert operator.start().success
    assert process.stop() == 0
    assert 'is dropped' in process.log
    assert len(Demonstrations.load(out).success) == 2
    recorder()
    operator.wait_status(state='ready', episodes=2, session_episodes=0)
    assert operator.record(1.0).success
    assert Demonstrations.load(out).success.tolist() == [True, False, True]


def test_a_disk_that_is_gone_at_the_end_is_one_line_with_what_is_lost(operator, recorder, tmp_path):
    operator.play_arm()
    disk = tmp_path / 'disk'
    disk.mkdir()
    process = recorder(output=str(disk / 'demos.safetensors'))
    operator.wait_status(state='ready')
    disk.rmdir()
    disk.write_text('no folder any more')
    answer = operator.record(1.0)
    assert not answer.success and 'written with the next ~/stop or when' in answer.message
    assert process.stop() == 2
    last = process.log.strip().splitlines()[-1]
    assert last.startswith('recorder: cannot write') and last.endswith('not written is lost')
    assert 'Traceback' not in process.log


def test_what_falls_silent_spoils_the_episode_and_says_so(operator, recorder, tmp_path):
    operator.play_arm()
    recorder()
    operator.wait_status(state='ready')
    assert operator.start().success
    operator.swing = 0.4
    operator.wait(lambda: operator.status['seconds'] > 0.5)
    operator.mute = True
    operator.wait_status(state='spoiled')
    assert 'no joint_states for' in operator.status['problems'][0]
    operator.mute = False
    answer = operator.stop()
    assert not answer.success and 'no joint_states for' in answer.message
    operator.wait_status(state='ready', episodes=0)
    assert operator.status['last']['kept'] is False
    assert not (tmp_path / 'demos.safetensors').exists()
    # The next one is a new one.
    assert operator.record(1.0).success


@pytest.mark.parametrize(
    ('source', 'topic'),
    [
        ('commands', 'hand/commands'),
        ('trajectory', 'hand/joint_trajectory'),
        ('joint_state', 'leader/joint_states'),
    ],
)
def test_commands_are_recorded_where_they_are_the_source(
    operator, recorder, tmp_path, source, topic
):
    operator.play_arm()
    leader = {'command_topic': topic} if source == 'joint_state' else {}
    # Without stamps it is their arrival that counts, and a busy machine is late: more is clipped.
    recorder(command_source=source, controller='hand', clip_rad=0.3, **leader)
    # Before that it may wait for the arm, which is found a moment later than the recorder.
    operator.wait(lambda: f'nothing received on {topic}' in str(operator.status))
    answer = operator.start()
    assert not answer.success and f'nothing received on {topic}' in answer.message
    operator.commanding = source
    operator.wait_status(state='ready')
    assert operator.record(2.0).success
    data = Demonstrations.load(tmp_path / 'demos.safetensors')
    apart = data.observations[:, 2:4] - data.observations[:, :2]
    np.testing.assert_allclose(apart.mean(axis=0), 0.1, atol=0.05)


def test_pictures_are_recorded_as_the_policy_will_see_them(operator, recorder, tmp_path):
    pytest.importorskip('cv2')
    seeing = tmp_path / 'seeing.yaml'
    eye = '- {name: eye, source: image, topic: front/image_raw, image: {width: 16, height: 16}}\n'
    seeing.write_text(SPEC + eye)
    operator.play_arm()
    recorder(policy=str(seeing), stride=2)
    operator.wait(lambda: 'nothing received on front/image_raw' in str(operator.status))
    operator.filming = True
    operator.wait_status(state='ready')
    assert operator.record(1.5).success
    data = Demonstrations.load(tmp_path / 'demos.safetensors')
    shown = data.images['eye']
    assert shown.shape == (len(data.actions), 16, 16, 3)
    assert (shown == shown[:, :1, :1, :1]).all()
    # A decision every 80 ms, a picture every 20 ms: as new as it was then, give or take one.
    steps = np.diff(shown[:, 0, 0, 0].astype(int)) % 200
    assert steps.mean() == pytest.approx(4, abs=0.3)


def test_a_motion_beyond_the_limits_is_refused(operator, recorder):
    operator.play_arm()
    slow = {**LIMITS.to_params(), 'velocity': [0.3, 1.5]}
    recorder(**{f'limits.{k}': v for k, v in slow.items()})
    operator.wait_status(state='ready')
    answer = operator.record(1.5)
    assert not answer.success
    assert 'no policy within the limits can repeat it: a moves at' in answer.message
    assert any(s['too_fast'].startswith('a moves at') for s in operator.statuses)


def test_other_joints_are_told_of(operator, recorder):
    operator.play_arm()
    recorder(joints=['x', 'y'])
    operator.wait(lambda: 'name other joints' in str(operator.status.get('problems')))
    answer = operator.start()
    assert not answer.success and "name other joints: ['a', 'b']" in answer.message


@pytest.mark.parametrize(
    ('wrong', 'reason'),
    [
        ({'output': '/proc/demos.safetensors'}, 'cannot write /proc/demos.safetensors'),
        ({'command_source': 'guess'}, 'command_source must be one of'),
        ({'output': 'other'}, 'has another task: other, not swing'),
    ],
    ids=str,
)
def test_a_start_that_makes_no_sense_ends_with_one_line(recorder, tmp_path, wrong, reason):
    if wrong.get('output') == 'other':
        from dataclasses import replace

        from dipod_ros.policy.spec_file import read_spec_file

        spec = read_spec_file(tmp_path / 'swing.yaml', 'toy', LIMITS, 0.04)
        path = tmp_path / 'other'
        rows = np.zeros((3, spec.observation_size)), np.zeros((3, 5, 2)), np.zeros(3, int)
        Demonstrations(replace(spec, task='other'), *rows, np.array([True]), 0).save(path)
        wrong = {'output': str(path)}
    process = recorder(**wrong)
    assert process.process.wait(TIMEOUT_S) == 2
    assert reason in process.log.strip().splitlines()[-1]
    assert 'Traceback' not in process.log
