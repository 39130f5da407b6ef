# SPDX-License-Identifier: Apache-2.0
"""Success rates with honest intervals, and episodes counted once each."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from scipy.stats import binomtest

from dipod_ros.learning.evaluate import SuccessRate, evaluate, evaluate_policy, wilson_interval
from dipod_ros.learning.rollout import Rollout, collect_episodes


@pytest.mark.parametrize('episodes', [1, 2, 10, 512])
def test_the_interval_is_that_of_scipy(episodes):
    for successes in {0, 1, episodes // 3, episodes - 1, episodes}:
        expected = binomtest(successes, episodes).proportion_ci(0.95, method='wilson')
        assert wilson_interval(successes, episodes) == pytest.approx(
            (expected.low, expected.high), abs=1e-12
        )


def test_the_interval_holds_the_rate_itself_to_the_last_bit():
    """Error bars have no negative length."""
    for episodes in range(1, 1500):
        assert wilson_interval(0, episodes)[0] == 0
        assert wilson_interval(episodes, episodes)[1] == 1


def test_without_episodes_nothing_is_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)


class CountdownEnv(VectorEnv):
    """World i is over after i % 3 + 1 decisions; the reward is the first number of the chunk.

    It succeeds when all its chunks began above 0. Finished worlds stay finished, as in the worlds
    that this package simulates, and would hand out reward and success if anyone counted them.
    """

    metadata = {'autoreset_mode': AutoresetMode.DISABLED}

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1, 2), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self._start = np.random.default_rng(seed).normal(size=self.num_envs)
        self._steps = np.zeros(self.num_envs, dtype=int)
        self._good = np.ones(self.num_envs, dtype=bool)
        return self._observe(), {}

    def _observe(self):
        return np.column_stack([self._start, self._steps]).astype(np.float32)

    def step(self, actions):
        running = self._steps < np.arange(self.num_envs) % 3 + 1
        self._steps += running
        first = actions[:, 0, 0].astype(np.float64)
        self._good &= (first > 0) | ~running
        over = self._steps == np.arange(self.num_envs) % 3 + 1
        reward = np.where(running, first, 100.0)
        info = {'control_steps': np.where(running, 5, 0), 'success': (over & self._good) | ~running}
        return self._observe(), reward, over, np.zeros(self.num_envs, dtype=bool), info


def from_noise(observations, noise):
    return noise[:, None, :2]


def collect(num_envs=6, actor=from_noise, **options):
    env = CountdownEnv(num_envs)
    rng = np.random.default_rng(0)
    return collect_episodes(env, actor, 2, rng, **({'seed': 3} | options))


def test_each_world_gives_one_whole_episode_after_the_other():
    rollout = collect()
    assert rollout.episodes == 6 and len(rollout) == 1 + 2 + 3 + 1 + 2 + 3
    assert rollout.observations[:, 1].tolist() == [0, 0, 1, 0, 1, 2] * 2
    assert rollout.last.tolist() == [True, False, True, False, False, True] * 2
    np.testing.assert_array_equal(rollout.terminated, rollout.last)
    # The observation that followed, of the same world and one step later.
    np.testing.assert_array_equal(rollout.next_observations[:, 0], rollout.observations[:, 0])
    np.testing.assert_array_equal(rollout.next_observations[:, 1], rollout.observations[:, 1] + 1)
    assert len(np.unique(rollout.observations[:, 0])) == 6
    assert rollout.control_steps == 5 * len(rollout)


def test_finished_worlds_are_neither_asked_nor_counted():
    asked = []

    def actor(observations, noise):
        asked.append(len(observations))
        return from_noise(observations, noise)

    rollout = collect(actor=actor)
    assert asked == [6, 4, 2]
    ends = np.flatnonzero(rollout.last) + 1
    per_episode = [r.sum() for r in np.split(rollout.rewards, ends[:-1])]
    np.testing.assert_allclose(rollout.returns, per_episode, rtol=1e-6)
    good = [np.all(r > 0) for r in np.split(rollout.rewards, ends[:-1])]
    assert rollout.success.tolist() == good and 0 < sum(good) < 6


def test_chunks_are_those_of_the_actor_for_that_noise():
    rollout = collect(version=7)
    np.testing.assert_array_equal(rollout.chunks, from_noise(rollout.observations, rollout.noise))
    assert set(rollout.version) == {7}
    assert {rollout.observations.dtype, rollout.noise.dtype, rollout.rewards.dtype} == {
        np.dtype(np.float32)
    }
    assert rollout.noise.std() > 0.3


def test_zero_noise_is_zero():
    assert not collect(zero_noise=True).noise.any()


def test_a_policy_with_its_normaliser_acts_on_raw_observations(make_policy):
    policy = make_policy()
    rng = np.random.default_rng(0)
    policy.normalizer.fit(rng.normal(3, 2, (50, 2)), rng.normal(0, 0.1, (50, 2)))
    env = CountdownEnv(6)
    rollout = collect_episodes(env, policy.act, 2, rng, seed=0)
    np.testing.assert_allclose(
        rollout.chunks, policy.act(rollout.observations, rollout.noise), atol=1e-6
    )


def test_rollouts_are_joined_episode_by_episode():
    first, second = collect(), collect(num_envs=3, version=2)
    joined = Rollout.concatenate([first, second])
    assert joined.episodes == 9 and len(joined) == len(first) + len(second)
    np.testing.assert_array_equal(joined.rewards[len(first) :], second.rewards)
    assert joined.control_steps == first.control_steps + second.control_steps
    assert joined.version[-1] == 2 and joined.version[0] == 0


def test_evaluation_runs_whole_batches_of_new_initial_conditions():
    env, progress = CountdownEnv(6), []
    rate = evaluate(env, from_noise, 2, episodes=13, seed=5, progress=progress.append)
    assert rate.episodes == 18 and progress == [6, 12, 18]
    assert len(set(env.seeds)) == 3
    successes = round(rate.success * 18)
    assert rate.success == successes / 18
    assert (rate.low, rate.high) == wilson_interval(successes, 18)
    assert rate.low < rate.success < rate.high
    assert rate.control_steps == 3 * 5 * 12


def test_two_policies_meet_the_same_initial_conditions_and_other_seeds_others():
    envs = [CountdownEnv(6) for _ in range(3)]
    for env, seed, sign in zip(envs, (1, 1, 2), (1, -1, 1), strict=True):
        evaluate(env, lambda o, z, s=sign: s * from_noise(o, z), 2, episodes=12, seed=seed)
    assert envs[0].seeds == envs[1].seeds
    assert set(envs[0].seeds).isdisjoint(envs[2].seeds)


def test_an_evaluation_repeats():
    rates = [evaluate(CountdownEnv(6), from_noise, 2, episodes=12, seed=s) for s in (1, 1, 2)]
    assert rates[0] == rates[1] != rates[2]


def test_the_mean_return_is_per_episode(make_policy):
    rate = evaluate(
        CountdownEnv(3), lambda o, z: np.full((len(o), 1, 2), 0.5, np.float32), 2, episodes=3
    )
    assert rate.return_mean == pytest.approx((1 + 2 + 3) * 0.5 / 3)
    assert rate.success == 1.0 and rate.high == 1.0 and 0.4 < rate.low < 0.5


def test_a_policy_is_evaluated_with_the_noise_that_its_sampler_needs(make_policy):
    from dipod_ros.policy.spec import SamplerSpec

    policy = make_policy(sampler=SamplerSpec('sde', 3))
    assert evaluate_policy(CountdownEnv(3), policy, episodes=3).episodes == 3


def test_a_success_rate_reads_as_text_and_as_plain_values():
    rate = SuccessRate(0.25, 0.1, 0.5, 8, 1.5, 320)
    assert str(rate) == '0.250 [0.100, 0.500] of 8 episodes'
    assert rate.to_dict()['high'] == 0.5
