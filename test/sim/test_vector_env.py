# SPDX-License-Identifier: Apache-2.0
"""The vectorised env: seeds, limits, freezing, restoring, and Gymnasium's own rules."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from dipod_ros.errors import UserError
from dipod_ros.sim.vector_env import ChunkVectorEnv

TASKS = ('reach', 'pillar_reach', 'rail_push')


def _chunks(env, decisions, seed=0, scale=3e-3):
    rng = np.random.default_rng(seed)
    shape = (decisions, *env.action_space.shape)
    return rng.normal(size=shape) * scale


def _record_setpoints(env):
    """Return a list that every setpoint row [N, substeps, A] is appended to."""
    seen = []
    advance = env.episodes.worlds.advance

    def spy(setpoints, active=None):
        seen.append(setpoints.copy())
        return advance(setpoints, active)

    env.episodes.worlds.advance = spy
    return seen


@pytest.mark.parametrize('task', [*TASKS, 'none'])
def test_observation_is_the_streams_side_by_side(task):
    env = ChunkVectorEnv(task, 3, seed=0)
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    assert observation.dtype == np.float32
    points = env.episodes.points()
    parts = np.split(observation, np.cumsum([s.size for s in env.streams])[:-1], axis=1)
    for stream, part in zip(env.streams, parts, strict=True):
        expected = {
            'joint_position': env.episodes.worlds.joint_position,
            'command': env.command,
        }.get(stream.source)
        expected = points[stream.name] if expected is None else expected
        np.testing.assert_array_equal(part, expected.astype(np.float32))


def test_gymnasium_makes_it():
    env = gymnasium.make_vec('dipod_ros/reach-v0', num_envs=2, seed=3)
    assert env.unwrapped.task.name == 'reach'
    assert env.metadata['autoreset_mode'] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=4)
    action = np.zeros(env.action_space.shape, dtype=np.float32)
    assert env.action_space.contains(action)
    result = env.step(action)
    assert env.observation_space.contains(result[0])
    assert [a.shape for a in result[1:4]] == [(2,)] * 3
    again, _ = env.reset(seed=4)
    assert np.array_equal(observation, again)
    env.close()


@pytest.mark.parametrize('task', TASKS)
def test_the_same_seed_gives_the_same_run(task):
    runs = []
    for _ in range(2):
        env = ChunkVectorEnv(task, 4, seed=7)
        runs.append([env.step(a) for a in _chunks(env, 16)])
    for one, two in zip(*runs, strict=True):
        for a, b in zip(one[:4], two[:4], strict=True):
            assert np.array_equal(a, b)


def test_an_episode_depends_on_seed_world_and_number_alone():
    """World 2's episode 1 is the same beside 3 worlds or 7, and however episode 0 went."""
    few, many = ChunkVectorEnv('reach', 3, seed=5), ChunkVectorEnv('reach', 7, seed=5)
    for a in _chunks(many, 3):
        many.step(a)
    few.reset()
    many.reset()
    assert np.array_equal(few.observe()[2], many.observe()[2])
    assert not np.array_equal(few.observe()[0], few.observe()[1])
    other = ChunkVectorEnv('reach', 3, seed=6)
    other.reset()
    assert not np.array_equal(few.observe(), other.observe())


@pytest.mark.parametrize('scale', [3e-3, 0.3, 1e3])
def test_no_action_whatever_makes_a_setpoint_leave_the_limits(scale):
    env = ChunkVectorEnv('none', 8, seed=0)
    start = env.command
    seen = _record_setpoints(env)
    for a in _chunks(env, 20, scale=scale):
        env.step(a)
    limits, h = env.limits, env.control_period_s / env.task.world.substeps
    path = np.concatenate([start[:, None], *seen], axis=1)
    velocity = np.diff(path, axis=1) / h
    at_rest = np.zeros_like(velocity[:, :1])
    acceleration = np.diff(np.concatenate([at_rest, velocity], axis=1), axis=1) / h
    assert np.all(path >= limits.lower - 1e-9) and np.all(path <= limits.upper + 1e-9)
    assert np.abs(velocity / limits.velocity).max() <= 1 + 1e-6
    assert np.abs(acceleration / limits.acceleration).max() <= 1 + 1e-6
    if scale > 0.1:  # the limits were really asked for
        assert np.abs(velocity / limits.velocity).max() > 0.9
        assert np.abs(acceleration / limits.acceleration).max() > 0.9


def test_joint_torque_stays_within_the_published_effort():
    env = ChunkVectorEnv('none', 4, seed=0)
    worst = np.zeros(7)
    advance = env.episodes.advance

    def spy(setpoints, active=None):
        effort = advance(setpoints, active)
        np.maximum(worst, np.abs(effort).max(axis=0), out=worst)
        return effort

    env.episodes.advance = spy
    for a in _chunks(env, 20, scale=0.3):
        env.step(a)
    assert np.all(worst <= env.robot.effort + 1e-9)
    assert worst.max() > 20  # it worked hard


def test_actions_that_are_not_finite_brake():
    env = ChunkVectorEnv('none', 2, seed=0)
    action = np.full(env.action_space.shape, np.nan)
    action[1] = 1e-3
    _, _, _, _, info = env.step(action)
    assert np.isinf(info['clamp_rad'][0]) and info['clamp_rad'][1] < 1e-9
    assert np.array_equal(info['executed'][0], np.tile(env.robot.home, (5, 1)))


def test_executed_and_clamp_tell_what_became_of_an_action():
    env = ChunkVectorEnv('none', 2, seed=0)
    start = env.command
    actions = np.full(env.action_space.shape, 1e-4)
    actions[1] = 0.5
    _, _, _, _, info = env.step(actions)
    np.testing.assert_allclose(
        info['executed'][0], start[0] + 1e-4 * np.arange(1, 6)[:, None], atol=1e-12
    )
    assert info['clamp_rad'][0] < 1e-9 < 1.0 < info['clamp_rad'][1]
    assert np.array_equal(env.command, info['executed'][:, -1])


def test_a_finished_world_freezes_without_autoreset():
    env = ChunkVectorEnv('pillar_reach', 3, seed=0, autoreset=False)
    goal = env.episodes.goal
    goal[1] = env.episodes.points()['tip'][1]  # world 1 is there already
    hold = np.zeros(env.action_space.shape)
    _, reward, terminated, truncated, info = env.step(hold)
    assert reward.tolist() == [0, 1, 0] and terminated.tolist() == [False, True, False]
    assert info['success'].tolist() == [False, True, False]
    assert info['control_steps'].tolist() == [5, 5, 5]
    frozen = env.episodes.worlds.state[1].copy()
    command = env.command[1].copy()
    for a in _chunks(env, 3):
        _, reward, terminated, truncated, info = env.step(a)
        assert reward[1] == 0 and terminated[1] and info['success'][1]
        assert info['control_steps'].tolist() == [5, 0, 5]
        assert info['clamp_rad'][1] == 0 and np.isnan(info['executed'][1]).all()
        assert np.array_equal(env.episodes.worlds.state[1], frozen)
        assert np.array_equal(env.command[1], command)
        assert not truncated.any()
    env.reset()
    assert not env.episodes.done.any() and env.episodes.episode.tolist() == [1, 1, 1]


def test_freezing_a_neighbour_changes_nothing_for_the_others():
    one, two = (ChunkVectorEnv('reach', 2, seed=0, autoreset=False) for _ in range(2))
    two.episodes.goal[0] = two.episodes.points()['tip'][0]
    for a in _chunks(one, 6):
        one.step(a)
        two.step(a)
    assert two.episodes.done[0] and not one.episodes.done[0]
    assert np.array_equal(one.episodes.worlds.state[1], two.episodes.worlds.state[1])


def test_autoreset_begins_the_next_episode_in_the_same_step():
    env = ChunkVectorEnv('reach', 2, seed=0)
    env.episodes.goal[0] = env.episodes.points()['tip'][0]
    observation, reward, terminated, _, info = env.step(np.zeros(env.action_space.shape))
    assert reward.tolist() == [1, 0] and terminated.tolist() == [True, False]
    assert info['_final_obs'].tolist() == [True, False]
    assert np.array_equal(info['final_obs'][1], observation[1])
    assert not np.array_equal(info['final_obs'][0], observation[0])
    assert env.episodes.episode.tolist() == [1, 0]
    fresh = ChunkVectorEnv('reach', 2, seed=0)
    fresh.reset()
    assert np.array_equal(fresh.observe()[0], observation[0])
    # The command of the new episode is at rest where the new episode's arm is.
    assert np.array_equal(env.command[0], env.episodes.worlds.joint_position[0])


def test_time_runs_out_as_a_loss():
    env = ChunkVectorEnv('reach', 2, seed=0, autoreset=False)
    hold = np.zeros(env.action_space.shape)
    for k in range(env.task.decisions):
        _, reward, terminated, truncated, info = env.step(hold)
        assert terminated.all() == (k == env.task.decisions - 1)
        assert not reward.any() and not truncated.any() and not info['success'].any()


def test_reset_can_be_restricted_to_some_worlds():
    env = ChunkVectorEnv('reach', 3, seed=0, autoreset=False)
    env.step(_chunks(env, 1)[0])
    before = env.observe()
    after, _ = env.reset(options={'reset_mask': np.array([False, True, False])})
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    assert not np.array_equal(before[1], after[1])
    with pytest.raises(UserError, match='leave reset_mask out'):
        env.reset(seed=1, options={'reset_mask': np.array([True, False, False])})


def test_the_future_follows_from_the_state():
    env = ChunkVectorEnv('rail_push', 3, seed=0)
    chunks = _chunks(env, 10)
    for a in chunks[:4]:
        env.step(a)
    state = env.get_state()
    first = [env.step(a)[:3] for a in chunks[4:]]
    env.set_state(state)
    second = [env.step(a)[:3] for a in chunks[4:]]
    for one, two in zip(first, second, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_bad_input_is_one_line():
    with pytest.raises(UserError, match=r"unknown task 'juggle': use one of \['reach'"):
        ChunkVectorEnv('juggle')
    with pytest.raises(UserError, match='task pillar_reach needs a tip'):
        ChunkVectorEnv('pillar_reach', robot='arm2')
    env = ChunkVectorEnv('none', 2, robot='arm2')
    with pytest.raises(UserError, match=r'shape \(2, 5, 7\), this env needs \(2, 5, 2\)'):
        env.step(np.zeros((2, 5, 7)))
