# SPDX-License-Identifier: Apache-2.0
"""Advantages by hand, and a critic that finds a value function it is shown."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.critic import (  # noqa: E402
    REMEMBERED,
    CriticConfig,
    CriticTrainer,
    generalized_advantages,
)
from dipod_ros.learning.rollout import decision_index  # noqa: E402

NAN = float('nan')


def gae(rewards, values, following, terminated, last, gamma=0.9, gae_lambda=0.5):
    return generalized_advantages(
        torch.tensor(rewards),
        torch.tensor(values),
        torch.tensor(following),
        torch.tensor(terminated),
        torch.tensor(last),
        gamma,
        gae_lambda,
    )


def test_a_terminated_episode_by_hand():
    """delta = 1 + .9 * 1 - .5 = 1.4 and 2 - 1 = 1; A = 1.4 + .45 * 1 = 1.85 and 1."""
    got = gae([1.0, 2.0], [0.5, 1.0], [1.0, 7.0], [False, True], [False, True])
    torch.testing.assert_close(got, torch.tensor([1.85, 1.0]))


def test_a_truncated_episode_goes_on_in_the_value_of_its_last_observation():
    """delta = 0 + 0 - 1, 1 + 1.8 - 0, 0 + 2.7 - 2; A = .7, 2.8 + .45 * .7, -1 + .45 * 3.115."""
    got = gae([0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 3.0], [False] * 3, [False, False, True])
    torch.testing.assert_close(got, torch.tensor([-1 + 0.45 * 3.115, 3.115, 0.7]))


def test_episodes_in_one_batch_do_not_leak_into_each_other():
    first = ([1.0, 2.0], [0.5, 1.0], [1.0, 7.0], [False, True], [False, True])
    second = ([0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [False, False], [False, True])
    both = gae(*(a + b for a, b in zip(first, second, strict=True)))
    torch.testing.assert_close(both, torch.cat([gae(*first), gae(*second)]))


def test_lambda_one_gives_discounted_returns_and_lambda_zero_one_step_errors():
    episode = ([1.0, 2.0, 4.0], [9.0, 9.0, 9.0], [9.0, 9.0, 0.0], [False, False, True])
    last = [False, False, True]
    returns = gae(*episode, last, gae_lambda=1.0) + 9
    torch.testing.assert_close(returns, torch.tensor([1 + 0.9 * 2 + 0.81 * 4, 2 + 3.6, 4.0]))
    errors = gae(*episode, last, gae_lambda=0.0)
    torch.testing.assert_close(errors, torch.tensor([1 + 8.1 - 9, 2 + 8.1 - 9, 4.0 - 9]))


def test_what_followed_the_end_is_ignored_whatever_it_is():
    got = gae([1.0, 2.0], [0.5, 1.0], [1.0, NAN], [False, True], [False, True])
    torch.testing.assert_close(got, torch.tensor([1.85, 1.0]))


@pytest.fixture
def trainer():
    torch.manual_seed(0)
    return CriticTrainer(2, CriticConfig(width=64, clock=False))


def test_the_critic_finds_a_known_value_function(make_policy, make_rollout, trainer):
    policy = make_policy()
    rollout = make_rollout(policy, episodes=512, length=1)
    o = torch.from_numpy(rollout.observations)
    truth = torch.sin(2 * o[:, 0]) + o[:, 1]
    seen = replace(trainer.see(policy, rollout), returns=truth)
    explained = [trainer.fit(seen, torch.Generator().manual_seed(i)) for i in range(20)]
    assert explained[0] < 0.5  # reported before the fit
    assert explained[-1] > 0.97
    unseen = torch.randn(200, 2, generator=torch.Generator().manual_seed(99)).clamp(-2, 2)
    truth = torch.sin(2 * unseen[:, 0]) + unseen[:, 1]
    residual = trainer.critic(unseen).detach() - truth
    assert residual.var() < 0.05 * truth.var()


def test_returns_are_advantages_plus_values_on_normalised_observations(
    make_policy, make_rollout, trainer
):
    policy = make_policy()
    rng = np.random.default_rng(0)
    policy.normalizer.fit(rng.normal(5, 3, (100, 2)), rng.normal(size=(100, 2)))
    rollout = make_rollout(policy, episodes=3, length=2)
    advantages, returns = trainer.advantages(policy, rollout)
    with torch.no_grad():
        o = policy.normalizer.observation(torch.from_numpy(rollout.observations))
        n = policy.normalizer.observation(torch.from_numpy(rollout.next_observations))
        values, following = trainer.critic(o), trainer.critic(n)
    torch.testing.assert_close(returns - advantages, values, rtol=0, atol=1e-5)
    expected = generalized_advantages(
        torch.from_numpy(rollout.rewards),
        values,
        following,
        torch.from_numpy(rollout.terminated),
        torch.from_numpy(rollout.last),
        0.99,
        0.95,
    )
    torch.testing.assert_close(advantages, expected)
    assert not advantages.requires_grad and not returns.requires_grad


def test_fitting_leaves_the_policy_alone(make_policy, make_rollout, trainer, assert_same_weights):
    policy = make_policy()
    rollout = make_rollout(policy)
    trainer.learn(policy, rollout, torch.Generator().manual_seed(0))
    assert_same_weights(policy, make_policy())


def test_values_that_explain_nothing_have_explained_variance_below_zero(
    make_policy, make_rollout, trainer
):
    policy = make_policy()
    seen = trainer.see(policy, make_rollout(policy, episodes=64))
    values = trainer.critic(seen.inputs).detach()
    values -= values.mean()
    with torch.no_grad():
        trainer.critic.layers[-1].bias -= trainer.critic(seen.inputs).mean()
    explained = trainer.fit(replace(seen, returns=-3 * values), torch.Generator().manual_seed(0))
    # residual = -4 V against returns -3 V: 1 - 16/9.
    assert explained == pytest.approx(1 - 16 / 9, rel=1e-3)


def test_values_that_are_all_too_low_do_not_count_as_explaining(make_policy, make_rollout, trainer):
    """The same error everywhere makes every action look good."""
    seen = trainer.see(make_policy(), make_rollout(make_policy(), episodes=64))
    returns = trainer.critic(seen.inputs).detach()
    returns += returns.std(unbiased=False)
    seen = replace(seen, returns=returns)
    assert trainer.fit(seen, torch.Generator().manual_seed(0)) == pytest.approx(0, abs=1e-3)


def test_fits_repeat_with_their_generator(make_policy, make_rollout):
    policy = make_policy()
    rollout = make_rollout(policy)
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        trainer = CriticTrainer(2, CriticConfig(width=16))
        trainer.learn(policy, rollout, torch.Generator().manual_seed(seed))
        nets.append(torch.cat([p.flatten() for p in trainer.critic.parameters()]))
    assert torch.equal(nets[0], nets[1]) and not torch.equal(nets[0], nets[2])


def test_the_clock_counts_decisions_within_each_episode():
    last = np.array([False, False, True, True, False, True])
    assert decision_index(last).tolist() == [0, 1, 2, 0, 0, 1]


def test_with_a_clock_a_value_of_time_alone_is_found(make_policy, make_rollout):
    """Reward at the deadline, observations without meaning: only the clock can tell the value."""
    policy = make_policy()
    rollout = make_rollout(policy, episodes=64, length=4)
    truth = torch.from_numpy(rollout.step).float()
    explained = {}
    for clock in (False, True):
        torch.manual_seed(0)
        trainer = CriticTrainer(2, CriticConfig(width=64, epochs=60, clock=clock))
        for seed in (0, 1):
            seen = trainer.see(policy, make_rollout(policy, episodes=64, length=4, seed=seed))
            rng = torch.Generator().manual_seed(0)
            explained[clock] = trainer.fit(replace(seen, returns=truth), rng)
    assert explained[True] > 0.95 and explained[False] < 0.3


def test_a_memory_of_rollouts_gives_better_values(make_policy, make_rollout):
    """Returns that are half luck: values from eight rollouts err less than values from one."""
    policy = make_policy()
    error = {}
    probe = torch.randn(500, 2, generator=torch.Generator().manual_seed(99))
    for history in (1, 8):
        torch.manual_seed(0)
        trainer = CriticTrainer(2, CriticConfig(width=64, history=history, clock=False))
        for seed in range(10):
            rollout = make_rollout(policy, episodes=64, length=1, seed=seed)
            luck = np.random.default_rng(seed).normal(size=64).astype(np.float32)
            rewards = np.sign(rollout.observations[:, 0]) + luck
            rollout = replace(rollout, rewards=rewards)
            trainer.learn(policy, rollout, torch.Generator().manual_seed(seed))
        residual = trainer.critic(probe).detach() - probe[:, 0].sign()
        error[history] = float(residual.square().mean())
        assert len(trainer.memory()) == len(REMEMBERED) * (history - 1)
    assert error[8] < 0.8 * error[1]


def test_the_memory_survives_a_round_trip(make_policy, make_rollout):
    policy = make_policy()
    trainer, other = (CriticTrainer(2, CriticConfig(width=8, history=3)) for _ in range(2))
    for seed in range(4):
        rollout = make_rollout(policy, seed=seed)
        rewards = np.full_like(rollout.rewards, seed)
        generator = torch.Generator().manual_seed(0)
        trainer.learn(policy, replace(rollout, rewards=rewards), generator)
    kept = trainer.memory()
    assert [float(kept[f'critic_memory.{i}.rewards'][0]) for i in (0, 1)] == [2.0, 3.0]
    other.set_memory(kept | {'critic.layers.0.weight': torch.zeros(1)})
    assert all(torch.equal(kept[k], v) for k, v in other.memory().items())
    assert other.memory().keys() == kept.keys()


def test_a_memory_of_an_older_program_is_forgotten(make_policy, make_rollout, trainer):
    trainer.learn(make_policy(), make_rollout(make_policy()), torch.Generator().manual_seed(0))
    older = {k: v for k, v in trainer.memory().items() if 'following' not in k}
    trainer.set_memory(older)
    assert trainer.memory() == {}


@pytest.fixture
def living(make_policy, make_rollout):
    """Return a policy and a rollout with reward 1 at each decision of lives without an end."""
    policy = make_policy()
    rollout = make_rollout(policy, episodes=4, length=50, reward=lambda a: np.ones(len(a)))
    return policy, replace(rollout, terminated=np.zeros(len(rollout), dtype=bool))


def worth(living, updates, **settings):
    """Return the mean value after updates on the same rollout; the true one is 100."""
    policy, rollout = living
    torch.manual_seed(0)
    trainer = CriticTrainer(2, CriticConfig(width=32, epochs=20, minibatches=1, **settings))
    for update in range(updates):
        trainer.learn(policy, rollout, torch.Generator().manual_seed(update))
    with torch.no_grad():
        return float(trainer.critic(trainer.see(policy, rollout).inputs).mean())


def test_the_first_update_fits_a_long_dense_reward_more_than_once(living):
    """Lambda-returns of random weights reach 1 / (1 - gamma lambda) = 17 decisions far, not 100."""
    one, four = (worth(living, 1, first_sweeps=sweeps) for sweeps in (1, 4))
    assert four > 2 * one


def test_later_updates_fit_once(living, monkeypatch):
    fits = []
    fit = CriticTrainer.fit
    monkeypatch.setattr(CriticTrainer, 'fit', lambda *args: fits.append(1) or fit(*args))
    worth(living, 3, first_sweeps=4)
    assert len(fits) == 4 + 1 + 1


def test_what_is_remembered_is_worth_what_the_present_values_say(living):
    """Returns by the values of long ago would hold the new ones down."""
    kept, anew = (worth(living, 6, first_sweeps=1, refresh=refresh) for refresh in (False, True))
    assert anew > 1.1 * kept


@pytest.mark.parametrize(
    'name', ['width', 'depth', 'epochs', 'minibatches', 'history', 'first_sweeps']
)
def test_settings_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=name):
        CriticConfig(**{name: 0})
