# SPDX-License-Identifier: Apache-2.0
"""Server and simulator as processes do to an arm exactly what the vectorised env does to it."""

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
from sim_harness import Simulator  # noqa: E402

from dipod_ros.learning.task_spec import spec_for  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402
from dipod_ros.serving.noise import NoiseSource  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402
from dipod_ros.sim.vector_env import ChunkVectorEnv  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
TASK, ROBOT, SIM_SEED, NOISE_SEED = 'reach', 'arm7', 5, 3


@pytest.fixture(scope='module')
def policy():
    """Return a wild policy: it keeps the limit filter busy."""
    env = ChunkVectorEnv(TASK, 1, ROBOT)
    torch.manual_seed(0)
    policy = FlowPolicy(spec_for(env, SamplerSpec('midpoint', 2), TINY))
    policy.normalizer.action_std.fill_(0.05)
    return policy.requires_grad_(False)


@pytest.fixture
def stack(tmp_path, tmp_path_factory, policy):
    """Return a function that starts both nodes and returns a listener."""
    policy.save(tmp_path / 'wild')
    context, stop = make_context(), []

    def start(lockstep, interface, sim=(), **more):
        robot = load_robot(ROBOT)
        listener = Robot(context, robot.joints)
        stop.append(listener.close)
        server = Server(
            tmp_path,
            robot.limits,
            checkpoint='wild',
            seed=NOISE_SEED,
            lockstep=lockstep,
            interface=interface,
            reset_teleports=True,
            following_rad=0.1,
            **more,
        )
        stop.append(server.stop)
        listener.wait_status(state='active')
        given = {'task': TASK, 'seed': SIM_SEED, 'lockstep': lockstep, **dict(sim)}
        simulator = Simulator(tmp_path, ROBOT, **given)
        stop.append(lambda: print(simulator.stop(), simulator.log, server.log))
        return listener

    yield start
    for end in reversed(stop):
        end()
    context.try_shutdown()


@pytest.mark.alone
@pytest.mark.parametrize(
    'more',
    [
        {'seam': 'rtc', 'replan_steps': 2},
        {'seam': 'rtc', 'forecast': False},
        {'seam': 'ensemble', 'replan_steps': 1},
    ],
    ids=str,
)
def test_in_real_time_every_seam_keeps_the_limits(stack, policy, more, tmp_path):
    """The simulator judges; a swap takes over in the same way.

    Time goes slowly, because trajectories that a busy machine delivers late are another matter; but
    not so slowly that the joint states, a control period apart, count as stale.
    """
    listener = stack(False, 'trajectory', (('real_time_factor', 0.5),), **more)
    listener.wait(lambda: len(listener.records) >= 12)
    assert sum(r.interrupted for r in listener.records) > 6  # it really was guided or averaged
    other = policy.clone()
    other.normalizer.action_std.fill_(0.04)
    manifest = other.save(tmp_path / 'other')
    assert listener.set_parameter('checkpoint', 'other').successful
    listener.wait(lambda: listener.status['active']['sha256'] == manifest.sha256)
    seen, figures = len(listener.records), len(listener.figures)
    listener.wait(lambda: len(listener.records) >= seen + 12)
    assert listener.records[-1].policy_sha == manifest.sha256
    listener.wait(lambda: len(listener.figures) > figures + 1)
    last = listener.figures[-1]
    assert last['limit_violations'] == 0, last['last_violation']
    assert last['rejected_commands'] == 0


def test_a_run_over_ros_is_the_run_of_the_env(stack, policy):
    count = 150
    listener = stack(lockstep=True, interface='trajectory')
    listener.wait(lambda: len(listener.records) >= count)
    env = ChunkVectorEnv(TASK, 1, ROBOT, seed=SIM_SEED)
    noise = NoiseSource('gaussian', NOISE_SEED)
    observation, _ = env.reset(seed=SIM_SEED)
    for number in range(count):
        record = listener.records[number]
        assert record.seq == number
        z = noise.sample(number, policy.spec.noise_size)
        np.testing.assert_array_equal(record.noise, z)
        np.testing.assert_allclose(record.observation, observation[0], atol=1e-3)
        chunk = policy.act(observation, z[None])
        observation, reward, terminated, _, info = env.step(chunk)
        np.testing.assert_allclose(record.executed, info['executed'][0], atol=1e-3)
        assert record.clamp_rad == pytest.approx(info['clamp_rad'][0], abs=1e-3)
        assert record.reward == pytest.approx(reward[0], abs=1e-3)
        assert record.terminated == terminated[0] and record.success == info['success'][0]
        assert not record.interrupted
    assert {r.episode for r in listener.records[:count]} >= {0, 1, 2}


@pytest.mark.parametrize(
    ('interface', 'sim'), [('trajectory', ()), ('position', (('lockstep_steps', 1),))]
)
def test_the_simulated_controller_finds_no_violation_of_any_limit(stack, interface, sim):
    """The simulator judges by itself, independently of whoever commands."""
    listener = stack(True, interface, sim)
    listener.wait(lambda: len(listener.records) >= 20)
    seen = len(listener.figures)
    listener.wait(lambda: len(listener.figures) > seen)
    figures = listener.figures[-1]
    assert figures['commands'] >= 20
    assert figures['limit_violations'] == 0, figures['last_violation']
    assert figures['rejected_commands'] == 0
    assert max(r.clamp_rad for r in listener.records) > 0.01  # there was something to filter
