# SPDX-License-Identifier: Apache-2.0
"""The real server streams to the simulated arm on every interface, in real time, within limits."""

import signal
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
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from sim_harness import Simulator  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from dipod_ros.learning.task_spec import spec_for  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402
from dipod_ros.ros import messages  # noqa: E402
from dipod_ros.ros.jtc_rules import refusal  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402
from dipod_ros.sim.vector_env import ChunkVectorEnv  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
ROBOT = load_robot('arm7')
LIMITS = ROBOT.limits
RATE_HZ = 200.0
STEP_S = 1 / RATE_HZ
EFFORT = {
    'limits__effort': [87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0],
    'effort__kp': [600.0, 600.0, 600.0, 600.0, 150.0, 100.0, 50.0],
    'effort__kd': [60.0, 60.0, 60.0, 60.0, 12.0, 8.0, 4.0],
}

# Gains with which nothing swings, however busy the machine and late the torques.
GENTLE = EFFORT | {key: [v / 4 for v in EFFORT[key]] for key in ('effort__kp', 'effort__kd')}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with a policy that keeps the limit filter busy."""
    folder = tmp_path_factory.mktemp('policies')
    env = ChunkVectorEnv('reach', 1, 'arm7')
    torch.manual_seed(0)
    policy = FlowPolicy(spec_for(env, SamplerSpec('midpoint', 2), TINY))
    policy.normalizer.action_std.fill_(0.03)
    policy.save(folder / 'wild')
    policy.normalizer.action_std.fill_(0.02)
    policy.save(folder / 'calm')
    return folder


@pytest.fixture
def stack(tmp_path, folder):
    """Return a function that starts both nodes; it returns a listener and both processes."""
    context, stop, said = make_context(), [], []

    def start(interface, sim=(), **server):
        listener = Robot(context, ROBOT.joints)
        stop.append(listener.close)
        listener.states, listener.refusals = [], []
        listener.create_subscription(
            JointTrajectory,
            'arm_controller/joint_trajectory',
            # Without joint states there is no clock to judge by: the server may hear them first.
            lambda msg: (
                listener.states
                and listener._add(
                    listener.refusals,
                    refusal(msg, ROBOT.joints, messages.stamp_ns(listener.states[-1].header.stamp)),
                )
            ),
            100,
        )
        listener.create_subscription(
            JointState, 'joint_states', lambda msg: listener._add(listener.states, msg), 100
        )
        process = Server(
            folder,
            LIMITS,
            checkpoint='wild',
            interface=interface,
            reset_teleports=True,
            following_rad=0.1,
            **{'command_rate_hz': RATE_HZ, **server},
        )
        stop.append(process.stop)
        said.append(process)
        listener.wait_status(state='active')
        given = {'interface': interface, 'command_rate_hz': RATE_HZ, **dict(sim)}
        simulator = Simulator(tmp_path, task='reach', seed=5, **given)
        stop.append(simulator.stop)
        said.append(simulator)
        return listener, process, simulator

    yield start
    for end in reversed(stop):
        end()
    for process in said:
        print(process.log)
    context.try_shutdown()


def late(listener):
    """Tell whether the machine kept the server from sending in time."""
    before = listener.diagnostics.get('output')
    listener.wait(lambda: listener.diagnostics.get('output') is not before)
    return int(listener.diagnostics['output'][1]['missed ticks']) > 0


def sent(listener):
    return np.array([values for values, _ in listener.commands])


def newest_figures(listener):
    seen = len(listener.figures)
    listener.wait(lambda: len(listener.figures) > seen + 1)
    return listener.figures[-1]


def assert_differences_within_limits(path, first, second):
    """Bounds on the first and second differences, but where the stream begins anew."""
    speed = np.diff(path, axis=0) / STEP_S
    jumps = np.any(np.abs(speed) > 3 * first, axis=1)
    pieces = np.split(path, np.flatnonzero(jumps) + 1)
    for piece in pieces:
        speed = np.diff(piece, axis=0) / STEP_S
        assert np.all(np.abs(speed) <= first * (1 + 1e-6) + 1e-6)
        if second is not None and len(speed) > 1:
            change = np.diff(speed, axis=0) / STEP_S
            assert np.all(np.abs(change) <= second * (1 + 1e-4) + 1e-4)
    return int(jumps.sum())


@pytest.mark.alone
@pytest.mark.parametrize('interface', ['position', 'velocity', 'effort'])
def test_the_simulated_controllers_find_no_violation(stack, interface):
    for attempt in range(3):
        listener, server, simulator = stack(interface, **(EFFORT if interface == 'effort' else {}))
        # 25 chunks, and at least one episode that ends among them.
        listener.wait(lambda heard=listener.commands: len(heard) > 5 * RATE_HZ)
        figures = newest_figures(listener)
        # Torques close their loop through the server: a late one proves nothing about the laws.
        if not (interface == 'effort' and figures['limit_violations'] and late(listener)):
            break
        print(f'attempt {attempt}: late, and {figures["last_violation"]}')
        server.stop()
        simulator.stop()
        listener.close()
    assert figures['limit_violations'] == 0, figures
    assert figures['rejected_commands'] == 0, figures['last_rejection']
    assert figures['episodes'] >= 1
    assert figures['commands'] > 4 * RATE_HZ
    values = sent(listener)
    moved = np.ptp([s.position for s in listener.states], axis=0).max()
    assert moved > 0.2  # the arm goes where the policy wants it
    if interface == 'position':
        assert np.all(values >= LIMITS.lower) and np.all(values <= LIMITS.upper)
        begun_anew = assert_differences_within_limits(values, LIMITS.velocity, LIMITS.acceleration)
        assert begun_anew <= listener.figures[-1]['episodes']
    elif interface == 'velocity':
        assert np.all(np.abs(values) <= LIMITS.velocity + 1e-9)
        assert assert_differences_within_limits(values, LIMITS.acceleration, None) == 0
        assert np.abs(values).max() > 0.5
    else:
        assert np.all(np.abs(values) <= EFFORT['limits__effort'])
        assert figures['command_timeouts'] <= figures['episodes'] + 1  # between two episodes
    server.stop()
    if interface == 'velocity':
        last = len(listener.commands)
        assert last and not listener.commands[-1][0].any()  # it ends standing


@pytest.mark.parametrize('end', ['deactivate', 'SIGTERM'])
def test_an_arm_that_is_driven_by_torques_is_braked_and_let_go(stack, end):
    """Torques close their loop through joint states: they are read while the arm brakes."""
    listener, server, _ = stack('effort', **GENTLE)
    index = messages.JointIndex(ROBOT.joints)
    speed = lambda msg: np.abs(index.velocities(msg)).max()  # noqa: E731
    listener.wait(lambda: len(listener.commands) > RATE_HZ and listener.states)
    # Early in an episode: a world that is reset stands by itself.
    episodes = newest_figures(listener)['episodes']
    listener.wait(lambda: listener.figures[-1]['episodes'] > episodes)
    listener.wait(lambda: speed(listener.states[-1]) > 0.8)
    seen, sent_before = len(listener.states), len(listener.commands)
    if end == 'deactivate':
        change = Transition(id=Transition.TRANSITION_DEACTIVATE)
        assert listener.call('change_state', ChangeState, transition=change).success
    else:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
    listener.wait(lambda: not listener.commands[-1][0].any())
    after = [speed(msg) for msg in listener.states[seen:]]
    assert max(after) < 1.1 * LIMITS.velocity.max()
    assert len(listener.commands) > sent_before + 10
    assert sum(values.any() for values, _ in listener.commands[sent_before:]) > 10
    assert after[-1] < 0.1  # it was braked, not just let go
    if end == 'deactivate':
        heard = len(listener.commands)
        change = Transition(id=Transition.TRANSITION_ACTIVATE)
        assert listener.call('change_state', ChangeState, transition=change).success
        listener.wait(lambda: len(listener.commands) > heard + 100)


@pytest.mark.parametrize('interface', ['velocity', 'effort'])
def test_when_the_server_dies_the_controllers_time_out_and_the_arm_stops(stack, interface):
    listener, server, _ = stack(interface, **(EFFORT if interface == 'effort' else {}))
    index = messages.JointIndex(ROBOT.joints)
    speed = lambda: np.abs(index.velocities(listener.states[-1])).max()  # noqa: E731
    listener.wait(lambda: len(listener.commands) > 2 * RATE_HZ and listener.states)
    # Early in an episode: a world that is reset has no command left that could time out.
    episodes = newest_figures(listener)['episodes']
    listener.wait(lambda: listener.figures[-1]['episodes'] > episodes)
    listener.wait(lambda: speed() > 0.3)
    before = listener.figures[-1]['command_timeouts']
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    listener.wait(lambda: listener.figures[-1]['command_timeouts'] > before)
    listener.wait(lambda: speed() < 0.02)


@pytest.mark.alone
@pytest.mark.parametrize('delay', [0, 2])
def test_every_trajectory_is_one_that_joint_trajectory_controller_accepts(stack, delay):
    """Chunks, swaps, e-stops, episodes, a server that is ended, late sensors.

    At half speed: what a busy machine delivers too late is another matter.
    """
    sim = {
        'command_rate_hz': 0.0,
        'faults__delay_joint_states': delay,
        'real_time_factor': 0.5,
    }
    listener, server, _ = stack('trajectory', sim, command_rate_hz=0.0, replan_steps=3)
    listener.wait(lambda: len(listener.refusals) > 10)
    for checkpoint in ('calm', 'wild'):
        assert listener.set_parameter('checkpoint', checkpoint).successful
        listener.wait(lambda name=checkpoint: listener.status['active']['name'] == name)
        heard = len(listener.refusals)
        listener.wait(lambda n=heard: len(listener.refusals) > n + 5)
        listener.call('estop')
        listener.wait_status(estop=True)
        listener.call('reset_estop')
        listener.wait(lambda n=heard: len(listener.refusals) > n + 12)
    listener.wait(lambda: listener.figures[-1]['episodes'] >= 2)
    server.stop()
    figures = newest_figures(listener)
    assert [r for r in listener.refusals if r] == []
    assert figures['rejected_commands'] == 0, figures['last_rejection']
    assert figures['limit_violations'] == 0, figures['last_violation']


@pytest.mark.parametrize(
    ('parameters', 'says'),
    [
        ({'interface': 'effort', 'command_rate_hz': 200.0}, 'limits.effort'),
        ({'interface': 'effort', **EFFORT}, 'needs command_rate_hz'),
        ({'interface': 'velocity', 'lockstep': True}, 'real time'),
        ({'interface': 'position', 'command_rate_hz': 100.0, 'lockstep': True}, 'lockstep'),
        ({'interface': 'trajectory', 'command_rate_hz': 100.0}, 'trajectory'),
        ({'interface': 'position', 'command_rate_hz': 20.0}, '50 to 500'),
        (
            {
                'interface': 'effort',
                'command_rate_hz': 200.0,
                **EFFORT,
                'effort__gravity_compensation': True,
            },
            'needs mjcf',
        ),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(tmp_path, folder, parameters, says):
    server = Server(folder, LIMITS, checkpoint='wild', **parameters)
    assert server.process.wait(60.0) == 2
    assert says in server.log.splitlines()[-1]
