# SPDX-License-Identifier: Apache-2.0
"""A policy that looks through a camera, played by the test or simulated; the server is real."""

import sys
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import cv2  # noqa: E402
import torch  # noqa: E402
from checkpoints import JOINTS, TINY, make_limits  # noqa: E402
from eyes import SMALL, TOPIC, make_camera_policy  # noqa: E402
from harness import DT_NS, Robot, Server, make_context  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from sim_harness import Simulator  # noqa: E402

from dipod_ros.learning.task_spec import spec_for  # noqa: E402
from dipod_ros.learning.vision import see_with  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.image import golden_image  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402
from dipod_ros.policy.vision import build_encoders, encoder_weights, load_encoder  # noqa: E402
from dipod_ros.ros import messages  # noqa: E402
from dipod_ros.serving.noise import NoiseSource  # noqa: E402
from dipod_ros.sim.render import NoGL  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402
from dipod_ros.sim.vector_env import ChunkVectorEnv  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
START = np.array([0.1, 0.2, 0.3])
RGB = golden_image(SMALL, 1)


def image(stamp_ns, pixels=RGB, encoding='rgb8', **changes):
    msg = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    msg.header.stamp = messages.time_msg(stamp_ns)
    msg.step = pixels.shape[1] * pixels.shape[2]
    msg.data = array('B', pixels.tobytes())
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


def jpeg(stamp_ns, pixels=RGB):
    msg = CompressedImage(format='rgb8; png compressed bgr8')
    msg.header.stamp = messages.time_msg(stamp_ns)
    msg.data = array('B', cv2.imencode('.png', pixels[:, :, ::-1])[1].tobytes())
    return msg


class CameraRobot(Robot):
    """A robot with a camera: `show` gives the picture of an instant, or None."""

    def __init__(self, context, joints, kind=Image, topic=TOPIC):
        super().__init__(context, joints)
        self.camera = self.create_publisher(kind, topic, qos_profile_sensor_data)

    def connected(self):
        return (
            self._joint_states.get_subscription_count() > 0
            and self.camera.get_subscription_count() > 0
        )

    def live(self, periods, show):
        """Publish joints and pictures for some control periods of real time."""
        for _ in range(periods):
            now_ns = time.time_ns()
            msg = show(now_ns)
            if msg is not None:
                self.camera.publish(msg)
            self.say_joints(now_ns, START)
            time.sleep(DT_NS * 1e-9)

    def live_until(self, condition, show, timeout_s=30.0):
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, 'in vain'
            self.live(5, show)

    def streams(self):
        """Return the message and the values of the newest report on the streams."""
        status, values = self.diagnostics.get('streams', (None, {}))
        return ('' if status is None else status.message), values


@pytest.fixture
def policy():
    return make_camera_policy()


@pytest.fixture
def start(tmp_path, tmp_path_factory, policy):
    """Return a function that starts a server that sees, and its robot."""
    policy.save(tmp_path / 'seeing')
    context, ends = make_context(), []

    def begin(kind=Image, topic=TOPIC, **parameters):
        robot = CameraRobot(context, JOINTS, kind, topic)
        ends.append(robot.close)
        server = Server(tmp_path, make_limits(), checkpoint='seeing',
                        engine='torch', **parameters)  # fmt: skip
        ends.append(lambda: print(server.stop(), server.log))
        robot.wait_status(state='active')
        robot.wait_connected()
        return robot

    yield begin
    for end in reversed(ends):
        end()
    context.try_shutdown()


def features_of(policy, pixels):
    stream = policy.spec.streams[1]
    return load_encoder(stream, policy.encoder_weights).encode(pixels[None])[0]


def test_pictures_that_cannot_be_used_brake_the_arm_and_say_why(start, policy):
    robot = start()
    robot.live_until(lambda: len(robot.trajectories) > 3, image)
    # Another size and colour order of the same picture are the same picture.
    large = RGB.repeat(2, axis=0).repeat(2, axis=1)
    robot.live(25, lambda ns: image(ns, large[:, :, ::-1], 'bgr8'))
    robot.live_until(lambda: robot.streams()[0] == 'ok', lambda ns: image(ns, large))
    frozen = {}  # a driver that repeats its last message
    broken = {
        "encoding '16UC1'": lambda ns: image(ns, encoding='16UC1'),
        'truncated: 100 bytes': lambda ns: image(ns, data=array('B', bytes(100))),
        '60000x60000 pixels': lambda ns: image(ns, height=60_000, width=60_000, step=180_000),
        'nothing new on front/image_raw': lambda ns: None,
        'nothing new on front/image_raw for': lambda ns: image(frozen.setdefault('ns', ns)),
    }
    for reason, show in broken.items():
        robot.live_until(lambda reason=reason: reason in robot.streams()[0], show)
        seen = len(robot.trajectories)
        robot.live(10, show)
        assert len(robot.trajectories) == seen, reason  # holding: nothing new is decided
        robot.live_until(lambda seen=seen: len(robot.trajectories) > seen + 2, image)
        robot.live_until(lambda: robot.streams()[0] == 'ok', image)
    assert int(robot.streams()[1]['rejected samples']) >= 30
    robot.wait(lambda: robot.records)
    size = slice(3, 8)
    expected = features_of(policy, RGB)
    np.testing.assert_allclose(robot.records[0].observation[size], expected, atol=1e-4)


def test_a_remap_alone_chooses_compressed_pictures(start, policy):
    topic = '/wrist/color/image_raw/compressed'
    robot = start(CompressedImage, topic, remaps=[f'{TOPIC}:={topic}'])
    robot.live_until(lambda: robot.records, jpeg)
    np.testing.assert_allclose(
        robot.records[0].observation[3:8], features_of(policy, RGB), atol=1e-4
    )
    cut = jpeg(1)
    cut.data = cut.data[: len(cut.data) // 2]

    def truncated(ns):
        cut.header.stamp = messages.time_msg(ns)
        return cut

    robot.live_until(lambda: 'truncated: the PNG has no end' in robot.streams()[0], truncated)
    seen = len(robot.trajectories)
    robot.live_until(lambda: len(robot.trajectories) > seen + 2, jpeg)


@pytest.fixture
def world(tmp_path):
    """Return a function that starts the simulator with the camera task, and a server on it."""
    env = ChunkVectorEnv('reach_camera', 1, 'arm7', seed=5)
    try:
        env.pictures()
    except NoGL as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    policy = FlowPolicy(spec_for(env, SamplerSpec('midpoint', 2), TINY))
    encoders = build_encoders(policy.spec)
    others = ChunkVectorEnv('reach_camera', 16, 'arm7', seed=6)
    encoders['camera'].whiten(torch.from_numpy(others.pictures()['camera']))
    others.close()
    policy.encoder_weights = encoder_weights(encoders)
    policy.normalizer.action_std.fill_(0.02)
    policy.requires_grad_(False).save(tmp_path / 'wild')
    see_with(env, policy)
    context, ends = make_context(), []

    def begin(lockstep):
        robot = load_robot('arm7')
        listener = Robot(context, robot.joints)
        ends.append(listener.close)
        server = Server(
            tmp_path,
            robot.limits,
            checkpoint='wild',
            seed=3,
            lockstep=lockstep,
            reset_teleports=True,
        )
        ends.append(lambda: print(server.stop(), server.log))
        listener.wait_status(state='active')
        simulator = Simulator(tmp_path, task='reach_camera', seed=5, lockstep=lockstep)
        ends.append(lambda: print(simulator.stop(), simulator.log))
        return listener

    yield begin, env, policy
    for end in reversed(ends):
        end()
    context.try_shutdown()
    env.close()


def test_what_the_server_sees_in_lockstep_is_what_the_env_sees(world):
    begin, env, policy = world
    count = 30
    listener = begin(lockstep=True)
    listener.wait(lambda: len(listener.records) >= count)
    noise = NoiseSource('gaussian', 3)
    observation, _ = env.reset(seed=5)
    for number, record in enumerate(listener.records[:count]):
        z = noise.sample(number, policy.spec.noise_size)
        np.testing.assert_allclose(record.observation, observation[0], atol=5e-3)
        # Goes on from the server's own chunk: a rounded pixel must not add up.
        observation, _, terminated, _, info = env.step(record.chunk[None])
        np.testing.assert_array_equal(record.noise, z)
        np.testing.assert_allclose(record.executed, info['executed'][0], atol=1e-4)
        assert record.terminated == terminated[0] and not record.interrupted


def test_it_acts_in_real_time_on_the_simulated_camera(world):
    begin, _, _ = world
    listener = begin(lockstep=False)
    listener.wait(lambda: len([r for r in listener.records if not r.interrupted]) >= 20)
    seen = np.stack([r.observation[17:] for r in listener.records])
    assert np.isfinite(seen).all() and seen.std(axis=0).max() > 0.1  # the picture changes
    listener.wait(lambda: 'streams' in listener.diagnostics)
