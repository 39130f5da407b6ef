# SPDX-License-Identifier: Apache-2.0
"""No command begins where the arm is outside its limits: it would jump to the limit."""

import numpy as np
import pytest
from checkpoints import make_limits
from worlds import CHUNK_NS, START, World, answer, assert_smooth, settled

from dipod_ros.serving import safety
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.start_place import SLACK_RAD

LIMITS = make_limits()
OUTSIDE = np.array([0.1, LIMITS.upper[1] + 0.3, 0.3])


@pytest.fixture
def make_world(make_bench):
    def make(position, interface='position', **config):
        world = World(make_bench(RealTimeLoop, interface=interface, **config))
        world.position = np.asarray(position, dtype=float)
        return settled(world)

    return make


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
def test_an_arm_outside_its_limits_is_held_with_the_reason_until_it_is_moved(make_world, interface):
    world = make_world(OUTSIDE, interface)
    world.run(20)
    assert world.setpoints == [] and world.plans == []
    (text,) = world.bench.notices.active
    assert 'joint shoulder at 1.800 is outside 1.500 rad' in text
    assert 'limits.position_upper' in text
    world.position = START.copy()
    world.run(10)
    assert world.bench.notices.active == []
    first = world.plans[0]
    np.testing.assert_array_equal(first.trail[-1], START)
    if interface == 'position':
        assert_smooth([START, *world.setpoints], LIMITS)


def test_an_arm_that_was_pushed_outside_while_it_stood_is_not_pulled_back(make_world):
    world = make_world(START)
    world.run(5)
    world.sensing = False
    world.run(20)
    stood = len(world.setpoints)
    world.position = OUTSIDE
    world.sensing = True
    world.run(10)
    assert world.counts(safety.RESYNC) == 0
    np.testing.assert_array_equal(world.setpoints[stood:], world.setpoints[stood - 1 : -1])
    assert any('shoulder' in text for text in world.bench.notices.active)
    world.position = np.array([1.0, 1.0, -1.0])
    world.run(4)
    assert world.counts(safety.RESYNC) == 1
    assert world.bench.notices.active == []
    np.testing.assert_allclose(world.setpoints[-1], world.position, atol=0.05)


def test_noise_at_the_limit_stops_nobody(make_world):
    world = make_world(LIMITS.upper + 0.8 * SLACK_RAD)
    world.bench.engine.chunk = -0.005 * np.ones_like(world.bench.engine.chunk)
    world.run(10)
    assert world.bench.notices.active == []
    assert np.all(world.setpoints[-1] < LIMITS.upper)
    assert_smooth([LIMITS.upper, *world.setpoints], LIMITS)


def test_noise_outside_is_told_once_and_a_move_again(make_world):
    world = make_world(OUTSIDE)
    rng = np.random.default_rng(0)
    world.run(1)
    told = len(world.bench.told)
    for _ in range(30):
        world.position = OUTSIDE + rng.normal(0.0, 0.005, 3)
        world.run(1)
    assert len(world.bench.told) == told
    world.position = OUTSIDE + 0.1
    world.run(3)
    assert len(world.bench.told) == told + 1


def test_every_joint_that_is_outside_is_named(make_world):
    world = make_world([LIMITS.upper[0] + 0.1, 0.0, LIMITS.lower[2] - 0.1])
    world.run(1)
    (text,) = world.bench.notices.active
    assert 'joint base at 2.100 is outside 2.000' in text
    assert 'joint elbow at -2.600 is outside -2.500' in text
    assert 'limits.position_lower and limits.position_upper' in text


def test_in_lockstep_the_world_waits_until_the_arm_is_inside(make_bench):
    bench = make_bench(LockstepLoop)
    assert answer(bench, 0, OUTSIDE, episode=-1, reset=True) is None
    assert answer(bench, 0, OUTSIDE, episode=-1, reset=True) is None  # it asks again
    assert any('shoulder' in text for text in bench.notices.active)
    assert bench.engine.observations == []
    command = answer(bench, CHUNK_NS, START, episode=-1, reset=True)
    np.testing.assert_array_equal(command.plan.previous, START)
    assert bench.notices.active == []
    # An arm that gets outside by what it does goes on: its command is inside.
    assert answer(bench, 2 * CHUNK_NS, OUTSIDE) is not None
    # Time that goes back begins where the arm is.
    assert answer(bench, CHUNK_NS, OUTSIDE, episode=0) is None
