# SPDX-License-Identifier: Apache-2.0
"""When the tasks are won and lost, and how they begin."""

import mujoco
import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.sim.demonstrator import solve_poses
from dipod_ros.sim.episodes import Episodes
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.tasks import pillar_reach
from dipod_ros.sim.tasks.reach import GoalMotion, Reach
from dipod_ros.sim.tasks.registry import make_task
from dipod_ros.sim.world import STATE

ENVS = 16


@pytest.fixture(scope='module', params=['reach', 'pillar_reach', 'rail_push'])
def task(request):
    return make_task(request.param)


@pytest.fixture(scope='module')
def pillar():
    return make_task('pillar_reach')


@pytest.fixture(scope='module')
def push():
    return make_task('rail_push')


def _hold(episodes, periods=1, position=None):
    worlds = episodes.worlds
    position = worlds.joint_position if position is None else position
    setpoints = np.repeat(position[:, None], episodes.task.world.substeps, axis=1)
    for _ in range(periods):
        episodes.advance(setpoints)


def test_episodes_begin_at_rest_clear_of_everything_and_unsolved(task):
    episodes = Episodes(task, 64, seed=0)
    model, data = task.world.model, mujoco.MjData(task.world.model)
    for state in episodes.worlds.state:
        mujoco.mj_setState(model, data, state, STATE)
        mujoco.mj_forward(model, data)
        assert data.ncon == 0
        assert not data.qvel.any()
    limits = task.world.robot.limits
    q = episodes.worlds.joint_position
    assert np.all((q > limits.lower) & (q < limits.upper))
    _hold(episodes, task.horizon)
    outcome = episodes.outcome()
    assert not outcome.success.any() and not outcome.terminated.any()


def test_a_goal_is_reached_at_the_end_of_a_chunk_only():
    task = make_task('reach')
    episodes = Episodes(task, 2, seed=0)
    tip = episodes.points()['tip']
    episodes.goal[:] = tip + [[0, 0, 0.024], [0, 0, 0.026]]
    for step in range(task.horizon):
        assert not episodes.success.any(), step
        _hold(episodes)
    outcome = episodes.outcome()
    assert outcome.success.tolist() == [True, False]
    assert outcome.terminated.tolist() == [True, False]
    assert outcome.reward.tolist() == [1.0, 0.0]
    assert episodes.outcome().reward.tolist() == [0.0, 0.0]  # paid once


def test_touching_the_pillar_loses_even_at_the_goal(pillar):
    episodes = Episodes(pillar, 1, seed=0)
    q = solve_poses(
        pillar.chain, pillar.world.robot.home, np.array([[pillar_reach.PILLAR_X, 0.0, 0.2]])
    )
    episodes.worlds.state[0] = pillar.world.rest_state(q[0])  # the peg is inside the pillar
    episodes.goal[0] = pillar.chain.forward(q)[0]
    _hold(episodes, pillar.horizon, position=q)
    outcome = episodes.outcome()
    assert outcome.terminated[0] and not outcome.success[0] and outcome.reward[0] == 0


def test_the_goal_behind_the_pillar_is_won_without_touching(pillar):
    episodes = Episodes(pillar, 1, seed=0)
    q = solve_poses(pillar.chain, pillar.world.robot.home, episodes.goal)
    episodes.worlds.state[0] = pillar.world.rest_state(q[0])
    _hold(episodes, pillar.horizon)
    assert episodes.outcome().success[0]


def test_the_straight_way_is_blocked(pillar):
    """Without the pillar in the way, the task would have no two solutions."""
    x = np.zeros(200)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        state, goal = pillar.start(rng)
        tip = pillar.chain.forward(state[None, 1 + pillar.world.qpos_index])[0]
        share = tip[1] / (tip[1] - goal[1])
        x[seed] = tip[0] + share * (goal[0] - tip[0]) - pillar_reach.PILLAR_X
    # Peg and pillar radius: a line that passes closer than this touches.
    assert np.mean(np.abs(x) < 0.052) > 0.5
    assert np.all(np.abs(x) < 0.1)


def _puck(push, episodes):
    return episodes.points()['puck'][:, 1]


def test_the_puck_moves_by_contact_only(push):
    episodes = Episodes(push, ENVS, seed=0)
    start = _puck(push, episodes).copy()
    _hold(episodes, 25)
    assert np.array_equal(_puck(push, episodes), start)


def test_the_peg_pushes_the_puck_and_it_stops(push):
    episodes = Episodes(push, 1, seed=0)
    start = _puck(push, episodes)[0]
    tip = episodes.points()['tip'].copy()
    tip[:, 0], tip[:, 2] = 0.5, 0.055
    q = episodes.worlds.joint_position
    y = tip[0, 1]
    contact = start - 0.04 - 0.012
    while y < contact + 0.05:
        y += 0.004
        q = solve_poses(push.chain, q[0], np.array([[0.5, y, 0.055]]), sweeps=3)
        _hold(episodes, position=q)
        if y < contact - 0.02:
            assert _puck(push, episodes)[0] == start
    _hold(episodes, 10, position=q)
    moved = _puck(push, episodes)[0] - start
    assert moved == pytest.approx(0.05, abs=0.01)
    assert abs(episodes.worlds.qvel(push._puck)[0]) < 1e-3


def test_the_mark_must_be_met_slowly_and_not_passed(push):
    episodes = Episodes(push, 4, seed=0)
    model = push.world.model
    joint = model.joint('task/puck').id
    place, speed = 1 + model.jnt_qposadr[joint], 1 + model.nq + model.jnt_dofadr[joint]
    mark = episodes.goal[:, 1]
    episodes.worlds.state[:, place] = mark + [0.0, 0.0, 0.05, -0.05]
    episodes.worlds.state[:, speed] = [0.0, 0.3, 0.0, 0.0]
    still = np.zeros(4)
    verdict = push.judge(episodes.worlds, episodes.goal, still, still.astype(bool))
    assert verdict.success.tolist() == [True, False, False, False]
    assert verdict.failed.tolist() == [False, False, True, False]


def test_shaping_is_small_and_counts_progress(push):
    episodes = Episodes(push, 1, seed=0)
    joint = push.world.model.joint('task/puck').id
    place = 1 + push.world.model.jnt_qposadr[joint]
    before = push.progress(episodes.worlds, episodes.goal)
    episodes.worlds.state[0, place] += 0.1
    verdict = push.judge(episodes.worlds, episodes.goal, before, np.zeros(1, dtype=bool))
    assert 0 < verdict.reward[0] < 0.1
    back = push.judge(
        episodes.worlds,
        episodes.goal,
        push.progress(episodes.worlds, episodes.goal),
        np.zeros(1, dtype=bool),
    )
    assert back.reward[0] == 0


def test_none_never_ends():
    task = make_task('none', 'arm2')
    episodes = Episodes(task, 2, seed=0)
    _hold(episodes, 50)
    outcome = episodes.outcome()
    assert not outcome.terminated.any() and not outcome.reward.any()


def test_a_moving_goal_swings_about_where_it_was_drawn_and_is_judged_where_it_is():
    task = Reach(load_robot('arm7'), GoalMotion(amplitude_m=0.1, period_s=0.8))
    episodes = Episodes(task, 1, seed=0)
    drawn = episodes.goal[0].copy()
    np.testing.assert_array_equal(episodes.points()['goal'][0], drawn)
    # A quarter of its period is one chunk: 5 control periods of 40 ms.
    episodes.goal[0] = episodes.points()['tip'][0] - [0, 0.1, 0]
    _hold(episodes, task.horizon)
    moved = episodes.points()['goal'][0]
    np.testing.assert_allclose(moved, episodes.goal[0] + [0, 0.1, 0], atol=1e-6)
    assert episodes.outcome().success.all()
    with pytest.raises(UserError, match='period_s'):
        GoalMotion(period_s=0.0)
