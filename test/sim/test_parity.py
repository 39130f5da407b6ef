# SPDX-License-Identifier: Apache-2.0
"""A policy meets the same world in the vectorised env and behind a trajectory controller."""

import numpy as np
import pytest

from dipod_ros.policy.limits import LimitFilter, spline_knots
from dipod_ros.sim.controllers import ArmController
from dipod_ros.sim.episodes import Episodes
from dipod_ros.sim.tasks.registry import make_task
from dipod_ros.sim.vector_env import ChunkVectorEnv


# The two round setpoints differently, by 1e-16 rad; contact and friction magnify that.
@pytest.mark.parametrize(('name', 'tolerance'), [('pillar_reach', 1e-9), ('rail_push', 1e-5)])
def test_env_and_trajectories_give_the_same_run(name, tolerance):
    env = ChunkVectorEnv(name, 2, seed=11)
    expert = env.task.demonstrator(2, np.random.default_rng(0))
    episodes = Episodes(make_task(name), 1, seed=11)  # world 0 of the env, run on its own
    limits, dt = env.limits, env.control_period_s
    substeps = env.task.world.substeps
    guard, controller = LimitFilter(limits, dt), ArmController(limits, dt)

    def begin():
        start = episodes.worlds.joint_position[0]
        guard.reset(start)
        controller.reset(start)

    begin()
    now, ends = 0.0, 0
    for _ in range(20):
        chunk = expert.chunk(env.command, env.episodes.points())
        _, reward, terminated, _, info = env.step(chunk)
        # The same chunk, as the server makes a trajectory of it.
        previous = guard.position.copy()
        targets = previous + np.cumsum(chunk[0], axis=0)
        points = np.array([guard.step(target) for target in targets])
        np.testing.assert_allclose(points, info['executed'][0], atol=1e-12)
        positions, velocities = spline_knots(previous, points, dt)
        times = now + dt * np.arange(1, env.horizon + 1)
        assert controller.follow(times, positions, velocities, now) == []
        for k in range(env.horizon):
            setpoints = controller.setpoints(now, dt / substeps, substeps)
            episodes.advance(setpoints[None])
            now = times[k]
        outcome = episodes.outcome()
        assert outcome.reward[0] == pytest.approx(reward[0], abs=tolerance)
        assert outcome.terminated[0] == terminated[0]
        if outcome.terminated[0]:
            assert outcome.success[0] == info['success'][0]
            episodes.begin(outcome.terminated)
            begin()
            ends += 1
        np.testing.assert_allclose(
            episodes.worlds.state[0], env.episodes.worlds.state[0], atol=tolerance
        )
    assert ends >= 1
