# SPDX-License-Identifier: Apache-2.0
"""Learning on the simulated worlds themselves: the parts fit each other."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('mujoco')

from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.evaluate import evaluate_policy  # noqa: E402
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.rollout import collect_episodes  # noqa: E402
from dipod_ros.learning.task_spec import spec_for  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import PolicySpec, SamplerSpec  # noqa: E402
from dipod_ros.sim.vector_env import ChunkVectorEnv  # noqa: E402

NETWORK = {'kind': 'residual_mlp', 'width': 16, 'depth': 2}


@pytest.fixture(scope='module')
def env():
    with_worlds = ChunkVectorEnv('reach', num_envs=3, seed=0, autoreset=False)
    yield with_worlds
    with_worlds.close()


@pytest.fixture(scope='module')
def policy(env):
    torch.manual_seed(0)
    policy = FlowPolicy(spec_for(env, SamplerSpec('euler', 2), NETWORK))
    with torch.no_grad():
        policy.normalizer.action_std.fill_(0.01)  # rad per control step
    return policy


def test_a_spec_says_what_the_env_is(env):
    spec = spec_for(env)
    assert (spec.task, spec.robot) == ('reach', 'arm7')
    assert spec.observation_size == env.single_observation_space.shape[0]
    assert (spec.horizon, len(spec.joints)) == env.single_action_space.shape
    assert spec.mismatch(env.limits, env.control_period_s) is None
    assert PolicySpec.from_dict(spec.to_dict()).to_dict() == spec.to_dict()
    assert spec_for(env, SamplerSpec('euler', 2), NETWORK).sampler.steps == 2


def test_worlds_give_whole_episodes_that_repeat(env, policy):
    def collect(seed):
        noise_size = policy.spec.noise_size
        return collect_episodes(
            env, policy.act, noise_size, np.random.default_rng(0), seed=seed, version=0
        )

    first, again, other = collect(4), collect(4), collect(5)
    assert first.episodes == 3 and first.last.sum() == 3 and first.last[-1]
    np.testing.assert_array_equal(first.observations, again.observations)
    np.testing.assert_array_equal(first.rewards, again.rewards)
    assert not np.array_equal(first.observations[0], other.observations[0])
    inner = ~first.last[:-1]
    np.testing.assert_array_equal(
        first.next_observations[:-1][inner], first.observations[1:][inner]
    )
    assert first.control_steps == len(first) * policy.spec.horizon


def test_a_learner_takes_what_the_worlds_give(env, policy):
    settings = LearnerConfig(
        algorithm=DipodConfig(epochs=1, samples_per_action=2),
        critic=CriticConfig(width=8, epochs=1),
        critic_warmup_updates=0,
        gap_every=0,
    )
    learner = Learner(policy, settings)
    rollout = collect_episodes(
        env, policy.act, policy.spec.noise_size, np.random.default_rng(0), seed=1
    )
    assert learner.mismatch(rollout) < 1e-6
    rollout.rewards[-1] = 1.0  # nothing succeeds by chance, and of that nothing is learned
    metrics = learner.update(rollout)
    assert metrics['version'] == 1 and metrics['collapsed'] == 0
    # Another gain of the arm is another policy, and the learner notices.
    assert learner.mismatch(replace(rollout, chunks=rollout.chunks * 1.1)) > 1e-4


def test_policies_are_evaluated_in_the_worlds(env, policy):
    rate = evaluate_policy(env, policy, episodes=3, seed=2)
    assert rate.episodes == 3 and rate == evaluate_policy(env, policy, episodes=3, seed=2)
