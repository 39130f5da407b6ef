# SPDX-License-Identifier: Apache-2.0
"""What policies see of simulated worlds: the same for the same state, and only what changed."""

import numpy as np
import pytest

from dipod_ros.sim.demonstrations import collect
from dipod_ros.sim.render import NoGL
from dipod_ros.sim.vector_env import ChunkVectorEnv


@pytest.fixture
def env():
    env = ChunkVectorEnv('reach_camera', 3, seed=4, autoreset=False)
    try:
        env.pictures()
    except NoGL as error:
        pytest.skip(str(error))
    yield env
    env.close()


def still(env):
    return np.zeros(env.action_space.shape, np.float32)


def orange(picture):
    """Return where the goal's ball is, mean column and row."""
    r, g, b = (picture[..., i].astype(int) for i in range(3))
    rows, columns = np.nonzero((r - b > 90) & (r - g > 40) & (r - g < 180))
    return columns.mean(), rows.mean(), len(rows)


def test_the_goal_is_seen_and_is_not_told(env):
    assert [s.name for s in env.streams] == ['joint_position', 'command', 'tip', 'camera']
    pictures = env.pictures()['camera']
    assert pictures.shape == (3, 96, 96, 3) and pictures.dtype == np.uint8
    seen = [orange(p) for p in pictures]
    assert all(count > 8 for *_, count in seen)
    assert len({round(x) for x, *_ in seen}) > 1


def test_the_same_seed_gives_the_same_pictures_and_the_episodes_of_reach(env):
    other = ChunkVectorEnv('reach_camera', 3, seed=4, autoreset=False)
    np.testing.assert_array_equal(env.pictures()['camera'], other.pictures()['camera'])
    other.close()
    told = ChunkVectorEnv('reach', 3, seed=4, autoreset=False)
    np.testing.assert_array_equal(told.episodes.goal, env.episodes.goal)
    np.testing.assert_array_equal(told.observe()[:, :17], env.observe()[:, :17])


def test_features_are_nan_until_there_is_an_encoder_and_then_its(env):
    assert np.isnan(env.observe()[:, 17:]).all() and np.isfinite(env.observe()[:, :17]).all()
    calls = []

    def encode(pictures):
        calls.append(len(pictures))
        return np.repeat(pictures.mean((1, 2, 3), dtype=np.float64)[:, None], 32, 1).astype('f4')

    env.see_with({'camera': encode})
    expected = env.pictures()['camera'].mean((1, 2, 3))
    np.testing.assert_allclose(env.observe()[:, 17], expected, rtol=1e-5)
    env.observe()
    assert calls == [3]  # nothing moved: nothing drawn again
    env.episodes.done[1] = True
    env.step(still(env))
    assert calls == [3, 2]  # nor a world that stands still


def test_a_reset_is_seen(env):
    before = env.pictures()['camera']
    env.reset(seed=5)
    assert (env.pictures()['camera'] != before).any(axis=(1, 2, 3)).all()


def test_demonstrations_hold_the_picture_of_every_decision(env):
    demos = collect('reach_camera', 3, seed=4)
    pictures = demos.images['camera']
    assert pictures.shape == (len(demos.observations), 96, 96, 3)
    assert (demos.observations[:, 17:] == 0).all() and np.isfinite(demos.observations).all()
    first = np.flatnonzero(np.diff(demos.episodes, prepend=-1))
    np.testing.assert_array_equal(pictures[first], env.pictures()['camera'])
    # The second picture of an episode belongs to its second decision: play it again and look.
    chunk = still(env)
    chunk[:] = demos.actions[first]
    env.step(chunk)
    np.testing.assert_allclose(
        env.pictures()['camera'].astype(int), pictures[first + 1].astype(int), atol=2
    )
    same = collect('reach_camera', 3, seed=4)
    np.testing.assert_array_equal(same.images['camera'], pictures)


def test_demonstrations_know_the_goal_that_the_policy_must_see(env):
    demos = collect('reach_camera', 3, seed=4)
    goal = demos.privileged['goal']
    assert list(demos.privileged) == ['goal'] and goal.shape == (len(demos.observations), 3)
    first = np.flatnonzero(np.diff(demos.episodes, prepend=-1))
    np.testing.assert_allclose(goal[first], env.episodes.goal, atol=1e-6)
    # It stands still: every decision of an episode has the same.
    np.testing.assert_array_equal(goal, goal[first][demos.episodes])
    assert not collect('reach', 2, seed=4).privileged  # which is told
