# SPDX-License-Identifier: Apache-2.0
"""The scripted experts: imperfect, feasible, reproducible, and of both minds about the pillar."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.sim.demonstrations import BATCH, collect
from dipod_ros.sim.tasks.pillar_reach import PILLAR_X
from dipod_ros.sim.vector_env import ChunkVectorEnv


@pytest.mark.parametrize(
    ('task', 'low', 'high'),
    [('reach', 0.90, 1.0), ('pillar_reach', 0.80, 0.97), ('rail_push', 0.75, 0.97)],
)
def test_experts_succeed_mostly_but_not_always(task, low, high):
    demos = collect(task, 200, seed=0)
    assert low < demos.success.mean() < high
    assert demos.success.shape == (200,)
    assert len(demos.observations) == len(demos.actions) == len(demos.episodes)
    assert np.array_equal(np.unique(demos.episodes), np.arange(200))
    assert np.all(np.diff(demos.episodes) >= 0)
    assert np.isfinite(demos.observations).all() and np.isfinite(demos.actions).all()


def test_what_is_recorded_is_what_a_policy_would_have_to_do():
    """Played back, the recorded chunks are feasible and lead to the same observations."""
    demos = collect('pillar_reach', 12, seed=3)
    env = ChunkVectorEnv('pillar_reach', 12, seed=3, autoreset=False)
    observation = env.observe()
    chunks = [demos.actions[demos.episodes == e] for e in range(12)]
    seen = [demos.observations[demos.episodes == e] for e in range(12)]
    for k in range(env.task.decisions):
        action = np.zeros(env.action_space.shape)
        for e in range(12):
            if k < len(chunks[e]):
                action[e] = chunks[e][k]
                np.testing.assert_allclose(observation[e], seen[e][k], atol=1e-5)
        observation, _, _, _, info = env.step(action)
        # float32 records may ask for a hair more than the limits give
        assert info['clamp_rad'].max() < 1e-6
    assert np.array_equal(info['success'], demos.success)


def test_the_seed_decides():
    one, two, other = (collect('reach', 8, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.actions, two.actions)
    assert np.array_equal(one.success, two.success)
    assert one.actions.shape != other.actions.shape or not np.array_equal(
        one.actions, other.actions
    )


def test_more_episodes_than_worlds():
    counts = []
    demos = collect('reach', BATCH + 3, seed=0, progress=counts.append)
    assert counts == [BATCH, 3]
    assert np.array_equal(np.unique(demos.episodes), np.arange(BATCH + 3))
    first = [demos.observations[demos.episodes == e][0] for e in (0, BATCH)]
    assert not np.array_equal(*first)  # world 0's second episode is another one


def test_the_pillar_is_passed_on_both_sides():
    env = ChunkVectorEnv('pillar_reach', 100, seed=0, autoreset=False)
    expert = env.task.demonstrator(100, np.random.default_rng(0))
    side = np.full(100, np.nan)
    while not env.episodes.done.all():
        before = env.episodes.points()['tip']
        env.step(expert.chunk(env.command, env.episodes.points()))
        after = env.episodes.points()['tip']
        passing = (before[:, 1] < 0) & (after[:, 1] >= 0)
        side[passing] = np.sign(after[passing, 0] - PILLAR_X)
    passed = side[np.isfinite(side)]
    assert len(passed) > 90
    assert 0.3 < np.mean(passed > 0) < 0.7


@pytest.mark.parametrize('task', ['reach', 'pillar_reach', 'rail_push'])
def test_experts_rarely_need_the_limit_filter(task):
    env = ChunkVectorEnv(task, 100, seed=0, autoreset=False)
    expert = env.task.demonstrator(100, np.random.default_rng(0))
    clamped = steps = 0
    while not env.episodes.done.all():
        _, _, _, _, info = env.step(expert.chunk(env.command, env.episodes.points()))
        active = info['control_steps'] > 0
        clamped += int((info['clamp_rad'][active] > 1e-6).sum())
        steps += int(active.sum())
    assert clamped / steps < 0.01


def test_a_task_without_an_expert_says_so():
    with pytest.raises(UserError, match='task none has no demonstrator'):
        collect('none', 2)
