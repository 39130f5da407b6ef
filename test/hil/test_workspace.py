# SPDX-License-Identifier: Apache-2.0
"""A policy that wants out of the workspace, on the simulated arm: the real tool stays inside."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
mujoco = pytest.importorskip('mujoco')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import TINY  # noqa: E402
from harness import Robot, Server, make_context  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from sim_harness import Simulator  # noqa: E402

from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, Stream  # noqa: E402
from dipod_ros.resources import resource  # noqa: E402
from dipod_ros.ros import qos  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
ROBOT, HORIZON = 'arm2', 10
# The hand begins at y = 0.35 m; this turns it through the wall at y = 0.45 m.
OUTWARDS = [0.02, -0.01]
BOX = {
    'model': 'sim/arm2.xml',
    'tool': 'hand',
    'lower': [-0.1, -0.45, 0.0],
    'upper': [0.6, 0.45, 0.3],
    'margin_m': 0.02,
}


def save_outwards(path, robot):
    """Write a policy that always asks for the same increments, but for a little noise."""
    spec = PolicySpec(
        task='none',
        robot=robot.name,
        joints=robot.joints,
        limits=robot.limits,
        streams=(
            Stream('position', 'joint_position', robot.size, 'joint_states'),
            Stream('command', 'command', robot.size),
        ),
        horizon=HORIZON,
        control_period_s=robot.control_period_s,
        network=TINY,
        sampler=SamplerSpec('midpoint', 2),
    )
    policy = FlowPolicy(spec)
    policy.normalizer.action_std.fill_(1e-4)
    mean = policy.normalizer.action_mean
    mean.copy_(mean.new_tensor(OUTWARDS * HORIZON).reshape(mean.shape))
    policy.requires_grad_(False).save(path)


def hand_positions(joint_positions):
    """Return where the simulated hand was [N, 3]: MuJoCo's own sites, one pose at a time."""
    model = mujoco.MjModel.from_xml_path(str(resource('sim/arm2.xml')))
    data = mujoco.MjData(model)
    out = []
    for shoulder, elbow in joint_positions:
        data.joint('shoulder').qpos[0], data.joint('elbow').qpos[0] = shoulder, elbow
        mujoco.mj_forward(model, data)
        out.append(data.site('hand').xpos.copy())
    return np.array(out)


@pytest.fixture
def start(tmp_path):
    """Return a function that starts both nodes and returns who listens to them."""
    robot, context, stop = load_robot(ROBOT), make_context(), []
    save_outwards(tmp_path / 'outwards', robot)

    def begin(lockstep, workspace):
        listener = Robot(context, robot.joints, robot.controller)
        stop.append(listener.close)
        listener.poses = []
        listener.create_subscription(
            JointState,
            'joint_states',
            lambda msg: listener._add(
                listener.poses, [msg.position[list(msg.name).index(j)] for j in robot.joints]
            ),
            qos.STATE,
        )
        server = Server(
            tmp_path,
            robot.limits,
            checkpoint='outwards',
            robot=robot.name,
            controller=robot.controller,
            control_period_s=robot.control_period_s,
            lockstep=lockstep,
            **({f'workspace__{k}': v for k, v in BOX.items()} if workspace else {}),
        )
        stop.append(server.stop)
        listener.wait_status(state='active')
        simulator = Simulator(
            tmp_path, ROBOT, task='none', lockstep=lockstep, lockstep_steps=HORIZON
        )
        stop.append(lambda: print(simulator.stop(), simulator.log, server.log))
        return listener

    yield begin
    for end in reversed(stop):
        end()
    context.try_shutdown()


def outside(poses):
    """Return how far (m) the hand was outside the box at most; negative is inside."""
    hands = hand_positions(poses)
    return float(max((BOX['lower'] - hands).max(), (hands - BOX['upper']).max()))


@pytest.mark.parametrize('lockstep', [True, False])
def test_the_real_tool_stops_inside_the_wall(start, lockstep):
    listener = start(lockstep, workspace=True)

    def count():
        return int(listener.diagnostics.get('safety', (None, {}))[1].get('workspace', 0))

    def stands():
        poses = listener.poses
        return len(poses) > 5 * HORIZON and np.ptp(poses[-9:], axis=0).max() < 1e-3

    listener.wait(lambda: count() >= 3 and stands())
    poses = np.array(listener.poses)
    assert outside(poses) <= 0.0
    # It went there, and stands; the wall is at 0.45 m.
    home, last = hand_positions([load_robot(ROBOT).home, poses[-1]])
    assert last[1] > home[1] + 0.03
    listener.wait(lambda: any(r.interrupted for r in listener.records))


def test_without_a_workspace_it_leaves(start):
    listener = start(True, workspace=False)
    listener.wait(lambda: len(listener.poses) > 20 * HORIZON)
    assert outside(listener.poses) > 0.01
