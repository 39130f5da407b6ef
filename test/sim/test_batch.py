# SPDX-License-Identifier: Apache-2.0
"""What becomes of a world depends on its own state and setpoints alone."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.tasks.registry import make_task
from dipod_ros.sim.world import compile_world


@pytest.fixture(scope='module')
def world():
    return make_task('rail_push').world  # contacts and friction: the solver has work to do


def _setpoints(world, count, seed):
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, 5 * world.substeps, world.robot.size)) * 2e-3
    return world.robot.home + np.cumsum(steps, axis=1)


def test_worlds_do_not_influence_each_other(world):
    setpoints = _setpoints(world, 6, 0)
    together = BatchWorlds(world, 6)
    together.advance(setpoints)
    for i in range(6):
        alone = BatchWorlds(world, 1)
        alone.advance(setpoints[i : i + 1])
        assert np.array_equal(alone.state[0], together.state[i])


def test_threads_change_nothing(world):
    setpoints = _setpoints(world, 9, 1)
    one, two = BatchWorlds(world, 9), BatchWorlds(world, 9, threads=2)
    assert np.array_equal(one.advance(setpoints), two.advance(setpoints))
    assert np.array_equal(one.state, two.state)


def test_worlds_that_are_not_active_stay(world):
    worlds = BatchWorlds(world, 3)
    before = worlds.state.copy()
    active = np.array([False, True, False])
    sensors = worlds.advance(_setpoints(world, 3, 2), active)
    assert np.array_equal(worlds.state[[0, 2]], before[[0, 2]])
    assert not np.array_equal(worlds.state[1], before[1])
    assert not sensors[[0, 2]].any()
    assert worlds.advance(_setpoints(world, 3, 2), np.zeros(3, dtype=bool)).shape == sensors.shape


def test_the_arm_follows_its_setpoints():
    world = compile_world(load_robot('arm2'))
    worlds = BatchWorlds(world, 1)
    target = world.robot.home + [0.1, -0.1]
    worlds.advance(np.tile(target, (1, 1000, 1)))
    assert worlds.joint_position[0] == pytest.approx(target, abs=1e-4)
    assert np.abs(worlds.joint_velocity).max() < 1e-3


def test_gravity_is_compensated():
    """The arm holds its home without sagging, as the real controller makes it do."""
    world = compile_world(load_robot('arm7'))
    worlds = BatchWorlds(world, 1)
    sensors = worlds.advance(np.tile(world.robot.home, (1, 400, 1)))
    assert np.abs(worlds.joint_position[0] - world.robot.home).max() < 1e-6
    assert np.abs(sensors[0, -1, world.effort_index]).max() < 1e-3


def test_counts_must_be_positive(world):
    with pytest.raises(UserError, match='at least 1'):
        BatchWorlds(world, 0)
    with pytest.raises(UserError, match='at least 1'):
        BatchWorlds(world, 1, threads=0)
