# SPDX-License-Identifier: Apache-2.0
"""The external benchmarks step exactly as the stock environments do, world by world."""

import gymnasium
import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.sim.external.chunk_env import ExternalChunkEnv
from dipod_ros.sim.external.registry import EXTERNAL, GYMNASIUM, make_env

GAITS = list(GYMNASIUM.items())


def stock(env_id):
    pytest.importorskip('imageio', reason='Gymnasium makes no MuJoCo env without it')
    return gymnasium.make(env_id)


@pytest.fixture(scope='module')
def cube():
    pytest.importorskip('ogbench', reason='the cube task is OGBench')
    return make_env('cube_single', 3, seed=5)


def chunks(rng, env, scale=1.0):
    return (scale * rng.uniform(-1, 1, env.action_space.shape)).astype(np.float32)


@pytest.mark.parametrize(('task', 'env_id'), GAITS)
def test_whole_episodes_are_those_of_gymnasium(task, env_id):
    env = make_env(task, 6, seed=3)
    theirs = [stock(env_id) for _ in range(6)]
    for i, other in enumerate(theirs):
        other.reset(seed=0)
        other.unwrapped.set_state(*env.state(i))
    rng = np.random.default_rng(0)
    alive, inside = np.ones(6, dtype=bool), 0
    while alive.any():
        # Weak actions in some worlds: those stay up for longer.
        actions = chunks(rng, env) * np.linspace(0.1, 1, 6, dtype=np.float32)[:, None, None]
        observation, reward, terminated, truncated, info = env.step(actions)
        for i in np.flatnonzero(alive):
            steps, total = info['control_steps'][i], 0.0
            assert steps >= 1
            for k in range(steps):
                o, r, fell, late, _ = theirs[i].step(actions[i, k])
                total += r
                # It ends in the step that the chunk env stopped at, and in none before.
                assert (fell or late) == ((terminated[i] or truncated[i]) and k == steps - 1)
            inside += int(steps < env.horizon)
            np.testing.assert_array_equal(observation[i], o.astype(np.float32))
            assert reward[i] == pytest.approx(total, abs=1e-6)
            assert terminated[i] == fell and truncated[i] == late
        alive &= ~(terminated | truncated)
    assert env.steps.max() > 40
    assert inside, 'no episode ended inside a chunk: this shows less than it should'


@pytest.mark.parametrize(('task', 'env_id'), GAITS)
def test_constants_are_the_defaults_of_gymnasium(task, env_id):
    import inspect
    from dataclasses import asdict

    kind = type(stock(env_id).unwrapped)
    theirs = {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items()}
    ours = asdict(make_env(task, 1, seed=0).gait)
    assert ours.pop('task') == task
    if 'healthy_state_range' not in theirs:
        assert ours.pop('healthy_state_range') == (-np.inf, np.inf)
    assert ours == {k: theirs[k] for k in ours}


def test_time_limit_truncates_where_gymnasium_does():
    # A horizon that does not divide 1000, and a state that nothing topples: the hopper is put back
    # before every chunk.
    from dipod_ros.sim.external.gymnasium_chunks import GymnasiumChunkEnv

    env = GymnasiumChunkEnv('Hopper-v5', 1, seed=0, horizon=7)
    start = env.state(0)
    total = 0
    for _ in range(143):
        env._data[0].qpos[:], env._data[0].qvel[:] = start
        _, _, terminated, truncated, info = env.step(np.zeros((1, 7, 3)))
        total += int(info['control_steps'][0])
        assert not terminated[0]
    assert total == 1000 and truncated[0] and info['success'][0]
    assert info['control_steps'][0] == 1000 % 7


@pytest.mark.parametrize(('task', 'env_id'), GAITS)
def test_reset_noise_is_that_of_gymnasium(task, env_id):
    env, other = make_env(task, 200, seed=0), stock(env_id).unwrapped
    other.reset(seed=0)
    qpos = np.array([env.state(i)[0] for i in range(200)]) - other.init_qpos
    qvel = np.array([env.state(i)[1] for i in range(200)]) - other.init_qvel
    scale = other._reset_noise_scale
    for noise in (qpos, qvel):
        assert np.abs(noise).max() <= scale
        assert noise.std() == pytest.approx(scale / 3**0.5, rel=0.05)
        # One number per coordinate and world.
        assert len(np.unique(noise)) == noise.size


@pytest.mark.parametrize('task', list(GYMNASIUM))
def test_episode_depends_on_seed_world_and_episode_only(task):
    few, many = make_env(task, 2, seed=7), make_env(task, 5, seed=1)
    many.reset(seed=7)
    np.testing.assert_array_equal(few.observe(), many.observe()[:2])
    assert not np.array_equal(few.observe()[0], few.observe()[1])
    # World 0 begins episode 1 alone; world 1 joins later and meets the same episode 1.
    first = few.observe()
    few.reset(options={'reset_mask': np.array([True, False])})
    assert not np.array_equal(few.observe()[0], first[0])
    np.testing.assert_array_equal(few.observe()[1], first[1])
    second = many.reset()[0]
    np.testing.assert_array_equal(few.observe()[0], second[0])


def test_finished_world_freezes_until_reset():
    env = make_env('hopper', 2, seed=0)
    while not env.terminated.any():
        env.step(np.ones((2, 4, 3)))
    which = int(np.flatnonzero(env.terminated)[0])
    before = env.observe()[which]
    observation, reward, terminated, _, info = env.step(np.ones((2, 4, 3)))
    np.testing.assert_array_equal(observation[which], before)
    assert terminated[which] and reward[which] == 0 and info['control_steps'][which] == 0
    _, _ = env.reset()
    assert env.step(np.zeros((2, 4, 3)))[4]['control_steps'].tolist() == [4, 4]


def test_autoreset_starts_the_next_episode_in_the_step_that_ends_one():
    from dipod_ros.sim.external.gymnasium_chunks import GymnasiumChunkEnv

    env = GymnasiumChunkEnv('Hopper-v5', 2, seed=4, autoreset=True)
    other = make_env('hopper', 2, seed=4)
    other.reset()
    for _ in range(200):
        observation, _, terminated, _, info = env.step(np.ones((2, 4, 3)))
        if terminated.any():
            break
    i = int(np.flatnonzero(terminated)[0])
    assert info['_final_obs'][i]
    assert not np.array_equal(info['final_obs'][i], observation[i])
    np.testing.assert_array_equal(observation[i], other.observe()[i])


def test_actions_are_clipped_to_the_bounds():
    one, two = make_env('walker2d', 1, seed=0), make_env('walker2d', 1, seed=0)
    a, b = one.step(np.full((1, 4, 6), 9.0)), two.step(np.ones((1, 4, 6)))
    np.testing.assert_array_equal(a[0], b[0])
    assert a[1] == b[1]


def test_bad_input_is_refused():
    env = make_env('hopper', 2, seed=0)
    with pytest.raises(UserError, match=r'shape \(2, 3\), this env needs \(2, 4, 3\)'):
        env.step(np.zeros((2, 3)))
    with pytest.raises(UserError, match='not finite'):
        env.step(np.full((2, 4, 3), np.nan))
    with pytest.raises(UserError, match='unknown task'):
        make_env('nothing', 1)
    with pytest.raises(UserError, match='num_envs'):
        make_env('hopper', 0)


def test_shipped_tasks_come_from_the_same_place():
    env = make_env('reach', 2, seed=0)
    assert not isinstance(env, ExternalChunkEnv)
    assert env.task.name == 'reach' and not env.autoreset


def test_cube_steps_as_the_stock_env(cube):
    import mujoco

    from dipod_ros.sim.external.ogbench_cube import make_cube

    theirs = make_cube()
    assert theirs._success_timing == 'post'
    cube.reset(seed=11)
    rng = np.random.default_rng(0)
    for i in range(cube.num_envs):
        if i:
            cube.reset(seed=11)
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(cube.model, kind))
        mujoco.mj_getState(cube.model, cube.data(i), state, kind)
        mujoco.mj_resetData(theirs.model, theirs.data)
        mujoco.mj_setState(theirs.model, theirs.data, state, kind)
        mujoco.mj_forward(theirs.model, theirs.data)
        for decision in range(4):
            actions = chunks(rng, cube)
            observation, reward, *_ = cube.step(actions)
            for action in actions[i].astype(np.float64):
                o, _, success, _, info = theirs.step(action)
                assert info['success'] == success
            np.testing.assert_allclose(observation[i, :28], o, atol=1e-6)
            assert observation[i, 28] == pytest.approx((decision + 1) * 5 / 80)
            assert reward[i] == float(success)


def test_cube_reward_once_at_the_first_success_then_it_ends(cube):
    cube.reset(seed=2)
    # World 1: the cube lies 3.9 cm from its target; the others are far away.
    cube.data(1).qpos[cube._cube_at : cube._cube_at + 2] = cube._goal_m[:2] + [0.039, 0]
    _, reward, terminated, truncated, info = cube.step(np.zeros((3, 5, 5)))
    assert reward.tolist() == [0, 1, 0] and terminated.tolist() == [False, True, False]
    assert info['control_steps'].tolist() == [5, 1, 5]
    for _ in range(15):
        _, reward, terminated, truncated, info = cube.step(np.zeros((3, 5, 5)))
        assert not reward.any()
    # Out of time counts as the end: the time is part of the observation.
    assert terminated.all() and not truncated.any()
    assert info['success'].tolist() == [False, True, False]
    np.testing.assert_allclose(cube.observe()[[0, 2], 28], 1.0)


def test_cube_start_is_that_of_the_task_and_of_its_seed(cube):
    first = cube.reset(seed=9)[0]
    again = cube.reset()[0]
    assert not np.array_equal(first, again)
    np.testing.assert_array_equal(cube.reset(seed=9)[0], first)
    where = np.array([cube.data(i).qpos[cube._cube_at : cube._cube_at + 3] for i in range(3)])
    assert np.abs(where[:, :2] - [0.35, 0.0]).max() <= 0.01
    low, high = cube.cube._arm_sampling_bounds
    hand = first[:, 12:15] / 10 + [0.425, 0, 0]
    assert np.all(hand >= low - 0.01) and np.all(hand <= high + 0.01)


def test_cube_oracle_without_flaws_succeeds_and_flaws_are_what_fails_it(cube):
    from dipod_ros.sim.external.ogbench_demos import Flaws, collect_cube

    good = collect_cube(3, seed=0, flaws=Flaws((1.0, 1.0), 0.0, 0.0))
    assert good.success.all()
    bad = collect_cube(2, seed=0, flaws=Flaws((0.1, 0.1), 0.0, 0.0))
    assert not bad.success.any()
    assert bad.actions.shape == (2 * 76, 5, 5) and bad.observations.shape == (2 * 76, 29)
    # Rows overlap by all but one control step.
    np.testing.assert_array_equal(bad.actions[1:76, :-1], bad.actions[:75, 1:])
    again = collect_cube(1, seed=0, flaws=Flaws((0.1, 0.1), 0.0, 0.0))
    np.testing.assert_array_equal(bad.actions[:76], again.actions)


def test_external_tasks_have_all_that_a_spec_needs():
    from dipod_ros.learning.task_spec import spec_for

    sizes = {'hopper': (11, 3, 4), 'walker2d': (17, 6, 4)}
    assert {*sizes, 'cube_single'} == set(EXTERNAL)
    for task, (observation, action, horizon) in sizes.items():
        spec = spec_for(make_env(task, 1, seed=0))
        assert (spec.observation_size, len(spec.joints), spec.horizon) == (
            observation,
            action,
            horizon,
        )
        assert spec.task == task and spec.control_period_s == pytest.approx(0.008)


def test_speed_is_of_the_steps_that_were_run(monkeypatch):
    from dipod_ros.cli import bench_learn_speed as bench

    pytest.importorskip('imageio', reason='Gymnasium makes no MuJoCo env without it')
    monkeypatch.setitem(bench.STEPS, 'hopper', 600)
    speed = bench.env_speed('hopper', rounds=2)
    assert set(speed) == {'ours', 'stock'}
    for side in speed.values():
        assert len(side.rounds) == 2 and min(side.rounds) <= side.steps_per_s <= max(side.rounds)
    with pytest.raises(UserError, match='no speed to measure'):
        bench.env_speed('reach')
    with pytest.raises(UserError, match='rounds'):
        bench.env_speed('hopper', rounds=0)
