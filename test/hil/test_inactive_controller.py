# SPDX-License-Identifier: Apache-2.0
"""A real server whose simulated controller is switched off for a while never makes the arm jump."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from checkpoints import TINY  # noqa: E402
from harness import Robot, Server, make_context  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from sim_harness import Simulator  # noqa: E402

from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, Stream  # noqa: E402
from dipod_ros.ros import messages  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
ROBOT = load_robot('arm7')
LIMITS = ROBOT.limits
# The arm is on its way by then, and far from its limits. The server tries again later than this.
INACTIVE_S = (3.5, 6.5)
# Slower than real time: what is tested is what is decided when, in simulated time.
SLOW = 0.4
EFFORT = {
    'limits__effort': [87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0],
    'effort__kp': [150.0, 150.0, 150.0, 150.0, 40.0, 25.0, 12.0],
    'effort__kd': [15.0, 15.0, 15.0, 15.0, 3.0, 2.0, 1.0],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with a policy that turns every joint at about 0.4 rad/s."""
    folder = tmp_path_factory.mktemp('policies')
    torch.manual_seed(0)
    policy = FlowPolicy(
        PolicySpec(
            task='none',
            robot='arm7',
            joints=ROBOT.joints,
            limits=LIMITS,
            streams=(
                Stream('position', 'joint_position', ROBOT.size, 'joint_states'),
                Stream('command', 'command', ROBOT.size),
            ),
            horizon=5,
            control_period_s=0.04,
            network=TINY,
            sampler=SamplerSpec('midpoint', 2),
        )
    )
    policy.normalizer.action_mean.fill_(0.016)
    policy.normalizer.action_std.fill_(0.001)
    policy.save(folder / 'steady')
    return folder


@pytest.fixture
def stack(tmp_path, folder):
    """Return a function that starts both nodes and returns a listener."""
    context, stop, said = make_context(), [], []

    def start(interface, rate_hz):
        listener = Robot(context, ROBOT.joints)
        stop.append(listener.close)
        listener.states, listener.complaints = [], []
        listener.create_subscription(
            JointState, 'joint_states', lambda msg: listener._add(listener.states, msg), 100
        )
        given = {'interface': interface, 'command_rate_hz': rate_hz}
        more = EFFORT if interface == 'effort' else {}
        server = Server(
            folder, LIMITS, checkpoint='steady', ramp_in_s=1.0, following_rad=0.1, **given, **more
        )
        stop.append(server.stop)
        listener.wait_status(state='active')
        simulator = Simulator(
            tmp_path,
            task='none',
            real_time_factor=SLOW,
            faults__controller_inactive_s=list(INACTIVE_S),
            **given,
        )
        stop.append(simulator.stop)
        said.extend([server, simulator])
        return listener

    yield start
    for end in reversed(stop):
        end()
    for process in said:
        print(process.log)
    context.try_shutdown()


def position(listener):
    return listener._index.positions(listener.states[-1])


def time_s(listener):
    return messages.stamp_ns(listener.states[-1].header.stamp) * 1e-9 if listener.states else 0.0


def following(listener):
    return int(listener.diagnostics.get('safety', (None, {}))[1].get('following', 0))


@pytest.mark.alone
@pytest.mark.parametrize(
    ('interface', 'rate_hz'),
    [('trajectory', 0.0), ('position', 200.0), ('velocity', 200.0)],
)
def test_the_simulated_controller_finds_no_violation(stack, interface, rate_hz):
    listener = stack(interface, rate_hz)
    listener.wait(lambda: time_s(listener) > INACTIVE_S[0] + 0.2)
    held = position(listener)
    assert np.abs(held - ROBOT.home).max() > 0.2  # it was on its way
    listener.wait(lambda: following(listener) == 1)
    streams, _ = listener.wait(
        lambda: (
            'does not follow: joint' in listener.diagnostics['streams'][0].message
            and listener.diagnostics['streams']
        )
    )
    assert 'following_rad 0.1' in streams.message
    listener.wait(lambda: time_s(listener) > INACTIVE_S[1])
    np.testing.assert_allclose(position(listener), held, atol=0.02)
    # It goes on from there.
    listener.wait(lambda: np.abs(position(listener) - held).max() > 0.3)
    seen = len(listener.figures)
    listener.wait(lambda: len(listener.figures) > seen + 1)
    figures = listener.figures[-1]
    assert figures['limit_violations'] == 0, figures['last_violation']
    assert figures['ignored_commands'] > 0 and figures['rejected_commands'] == 0
    assert following(listener) == 1
    # What the arm did not execute, nobody learns from.
    fault = [r for r in listener.records if INACTIVE_S[0] < r.stamp_s < INACTIVE_S[1]]
    assert fault[-1].interrupted
    assert not all(r.interrupted for r in listener.records)


@pytest.mark.alone
def test_torques_stop_too_and_take_the_arm_up_where_it_is(stack):
    listener = stack('effort', 200.0)
    listener.wait(lambda: time_s(listener) > INACTIVE_S[0] + 0.2)
    held = position(listener)
    listener.wait(lambda: following(listener) >= 1)
    listener.wait(lambda: time_s(listener) > INACTIVE_S[1])
    # A try while the controller is off, or a soft joint, may cost another stop.
    listener.wait(lambda: np.abs(position(listener) - held).max() > 0.3)
    assert following(listener) <= 2
    speeds = [np.abs(listener._index.velocities(m)).max() for m in listener.states]
    assert max(speeds) < 1.5 * 0.4 / 0.5  # rad/s: nothing was flung
