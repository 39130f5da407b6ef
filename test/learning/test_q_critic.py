# SPDX-License-Identifier: Apache-2.0
"""The off-policy critic: targets by hand, a known MDP, what it adds to a batch, and a resume."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.base import UpdateStopped  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.learning.demonstrations.windows import WindowConfig, cut  # noqa: E402
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.q_advantages import with_q_advantages  # noqa: E402
from dipod_ros.learning.q_critic import QCritic, QCriticConfig, td_lambda_targets  # noqa: E402
from dipod_ros.learning.q_memory import (  # noqa: E402
    demonstrated_decisions,
    newest_decisions,
    require_sparse,
    rollout_decisions,
)
from dipod_ros.learning.q_network import QNetwork  # noqa: E402
from dipod_ros.learning.rollout import Rollout  # noqa: E402

SMALL = QCriticConfig(
    members=2, width=16, depth=1, first_rounds=3, rounds=2, steps=5, batch=16, samples=3, imagined=7
)
QUICK = LearnerConfig(
    algorithm=DipodConfig(epochs=3, minibatches=2, samples_per_action=4),
    critic=CriticConfig(width=16, epochs=2),
    health=HealthConfig(1e9, 0.0, states=32, actions_per_state=4),
    q_critic=SMALL,
    critic_warmup_updates=1,
    gap_every=0,
)


def sparse(rollout):
    """Return the rollout with a reward at the ends of episodes only, as demonstrations have it."""
    rewards = np.where(rollout.last, rollout.rewards, 0).astype(np.float32)
    return replace(rollout, rewards=rewards, success=rewards[rollout.last] > 0)


@pytest.fixture
def make_demonstrations(make_spec):
    """Return four demonstrations of two decisions, of which the second and third succeed."""

    def make(**options):
        rng = np.random.default_rng(3)
        spec = make_spec(**options)
        return Demonstrations(
            spec=spec,
            observations=rng.normal(size=(8, spec.observation_size)).astype(np.float32),
            actions=rng.normal(size=(8, spec.horizon, len(spec.joints))).astype(np.float32),
            episodes=np.repeat(np.arange(4), 2),
            success=np.array([False, True, True, False]),
            seed=0,
        )

    return make


def targets(rewards, ahead, terminated, last, td_lambda):
    flags = [torch.tensor(x, dtype=torch.bool) for x in (terminated, last)]
    values = [torch.tensor(x) for x in (rewards, ahead)]
    return td_lambda_targets(*values, *flags, 0.5, td_lambda).tolist()


def test_targets_by_hand():
    # An episode that ends by itself, and one that is cut off after two decisions.
    rewards, ahead = [0.0, 0.0, 1.0, 0.0, 2.0], [0.4, 0.8, 9.0, 0.6, 0.2]
    terminated, last = [0, 0, 1, 0, 0], [0, 0, 1, 0, 1]
    one = targets(rewards, ahead, terminated, last, 0.0)
    np.testing.assert_allclose(one, [0.2, 0.4, 1.0, 0.3, 2.1], rtol=1e-6)
    whole = targets(rewards, ahead, terminated, last, 1.0)
    np.testing.assert_allclose(whole, [0.25, 0.5, 1.0, 1.05, 2.1], rtol=1e-6)
    # 0.5 (0.5 * 0.8 + 0.5 * 1.0) = 0.45, then 0.5 (0.5 * 0.4 + 0.5 * 0.45) = 0.2125.
    half = targets(rewards, ahead, terminated, last, 0.5)
    np.testing.assert_allclose(half[:3], [0.2125, 0.45, 1.0], rtol=1e-6)


def test_what_followed_an_end_is_ignored_whatever_it_is():
    assert targets([1.0], [float('nan')], [1], [1], 0.7) == [1.0]


def walk(policy, episodes, seed, version=0):
    """Two decisions: the second pays 1 when both went right (first joint above 0)."""
    rng = np.random.default_rng(seed)
    count = 2 * episodes
    last = np.arange(count) % 2 == 1
    noise = rng.normal(size=(count, policy.spec.noise_size)).astype(np.float32)
    observations = np.zeros((count, 1), np.float32)
    observations[~last] = 1  # the start; the second state says whether the first went right
    first = policy.act(observations[~last], noise[~last])
    observations[last] = np.where(first[:, :1, 0] > 0, 0.5, -0.5)
    chunks = np.zeros((count, 1, 2), np.float32)
    chunks[~last] = first
    chunks[last] = policy.act(observations[last], noise[last])
    won = (chunks[last, 0, 0] > 0) & (observations[last, 0] > 0)
    rewards = np.zeros(count, np.float32)
    rewards[last] = won
    following = np.zeros_like(observations)
    following[~last] = observations[last]
    following[last] = np.nan
    return Rollout(
        observations, noise, chunks, rewards, following, last, last,
        np.full(count, version), won, won.astype(np.float32), count,
    )  # fmt: skip


def test_the_q_function_of_a_small_mdp_is_found(make_policy):
    """Q of going right and wrong, in the start and in the second states, is known."""
    policy = make_policy(observed=1)
    config = QCriticConfig(members=2, width=32, first_rounds=12, gamma=0.9)
    torch.manual_seed(0)
    critic = QCritic(policy, config)
    critic.learn(policy, walk(policy, 512, 0), torch.Generator().manual_seed(0))
    # How often this policy goes right in the second state, where that counts.
    z = np.random.default_rng(9).normal(size=(4000, 2)).astype(np.float32)
    right = float((policy.act(np.full((4000, 1), 0.5, np.float32), z)[:, 0, 0] > 0).mean())
    assert 0.1 < right < 0.9
    for state, clock, wanted_right in ((1.0, 0.0, 0.9 * right), (0.5, 0.1, 1.0), (-0.5, 0.1, 0.0)):
        for sign, wanted in ((1.0, wanted_right), (-1.0, 0.0)):
            chunk = torch.tensor([[0.7 * sign, 0.0]])
            q = critic.values(torch.tensor([[state]]), torch.tensor([clock]), chunk)
            assert abs(float(q) - wanted) < 0.1, (state, sign)


def test_learning_with_q_reaches_the_goal_of_the_small_mdp_sooner(make_policy):
    """The same six rollouts of 16 episodes with and without; judged on 1000 others."""

    def learned(q_critic, seed):
        settings = replace(
            QUICK,
            algorithm=DipodConfig(epochs=10, learning_rate=1e-3),
            critic=CriticConfig(),
            q_critic=q_critic,
            seed=seed,
        )
        learner = Learner(make_policy(observed=1), settings)
        for update in range(6):
            acting = learner.behaviour(learner.version)
            learner.update(walk(acting, 16, 100 * seed + update, learner.version))
        return walk(learner.policy, 1000, 999).success.mean()

    config = QCriticConfig(members=2, width=32, first_rounds=6, rounds=2, imagined=64)
    plain = np.mean([learned(None, seed) for seed in range(2)])
    with_q = np.mean([learned(config, seed) for seed in range(2)])
    assert with_q > plain + 0.05


def test_joint_increments_are_seen_as_means_and_other_actions_whole(make_spec):
    spec = make_spec(size=2, horizon=5)
    network = QNetwork(spec, 3, 8, 1)
    assert network.ends == [3, 5]
    o, clock, a = torch.randn(4, 2), torch.zeros(4), torch.randn(4, 10)
    assert network(o, clock, a).shape == (3, 4)
    # Swapping the first two steps changes no mean.
    swapped = a[:, [2, 3, 0, 1, 4, 5, 6, 7, 8, 9]]
    torch.testing.assert_close(network(o, clock, swapped), network(o, clock, a))
    whole = QNetwork(replace(spec, action='raw'), 3, 8, 1)
    assert not torch.allclose(whole(o, clock, swapped), whole(o, clock, a))
    assert [QNetwork(make_spec(horizon=h), 1, 8, 1).ends for h in (1, 2, 16)] == [
        [1],
        [1, 2],
        [8, 16],
    ]


def test_members_do_not_touch_each_other(make_spec):
    torch.manual_seed(0)
    network = QNetwork(make_spec(), 3, 8, 2)
    out = network(torch.randn(5, 2), torch.rand(5), torch.randn(5, 2))
    out[1].sum().backward()
    for parameter in network.parameters():
        assert parameter.grad[1].any() and not parameter.grad[[0, 2]].any()


def test_demonstrations_are_rewarded_at_the_end_of_a_success(make_policy, make_demonstrations):
    shown = demonstrated_decisions(make_policy(), make_demonstrations())
    assert shown.rewards.tolist() == [0, 0, 0, 1, 0, 1, 0, 0]
    assert shown.last.tolist() == shown.terminated.tolist() == [False, True] * 4
    np.testing.assert_allclose(shown.clock, [0, 0.1] * 4)
    torch.testing.assert_close(shown.next_observations[0], shown.observations[1])


@pytest.fixture
def record(make_spec):
    """Return a function: a recording of three motions with a decision every `stride` steps."""

    def make(stride, horizon=4):
        spec = make_spec(horizon=horizon, observed=2)
        observations, actions, episodes = [], [], []
        for episode in range(3):
            t = np.linspace(0, 1, 26 + episode)
            s = 10 * t**3 - 15 * t**4 + 6 * t**5
            points = np.pad(s, 5, mode='edge')[:, None] * [0.1, -0.06 - 0.02 * episode]
            windows = cut(points, horizon, spec.limits, 0.04, WindowConfig(stride))
            ticks = windows.ticks
            # Normalised observations are clipped: small numbers.
            observations.append(np.stack([np.full(len(ticks), episode), ticks / 10], axis=1))
            actions.append(windows.actions)
            episodes.append(np.full(len(ticks), episode))
        return Demonstrations(
            spec=spec,
            observations=np.concatenate(observations).astype(np.float32),
            actions=np.concatenate(actions).astype(np.float32),
            episodes=np.concatenate(episodes).astype(np.int32),
            success=np.array([True, False, True]),
            seed=0,
        )

    return make


@pytest.mark.parametrize('stride', [1, 2, 4])
def test_of_a_recording_q_sees_one_chunk_after_the_other(make_policy, record, stride):
    """What follows a decision is where its chunk ends, however densely it was recorded."""
    recording = record(stride)
    shown = demonstrated_decisions(make_policy(horizon=4), recording)
    assert len(shown) == len(recording.observations)
    episode, tick = shown.observations.T * torch.tensor([[1], [10]])
    follows = ~shown.last
    torch.testing.assert_close(shown.next_observations[follows, 1] * 10, tick[follows] + 4)
    torch.testing.assert_close(shown.next_observations[follows, 0], episode[follows])
    for number, won in enumerate(recording.success):
        own = episode == number
        torch.testing.assert_close(shown.clock[own], (tick[own] - tick[own].min()) / 4 / 10)
        assert int(shown.last[own].sum()) == 4 // stride
        assert shown.rewards[own].tolist() == (shown.last[own] & bool(won)).float().tolist()


def test_a_recording_without_decisions_a_chunk_apart_is_refused(make_policy, record):
    with pytest.raises(UserError, match='every 3 control steps and chunks of 4'):
        QCritic(make_policy(horizon=4), SMALL, [record(3)])


def test_recordings_of_different_strides_in_one_file_are_refused(make_policy, record):
    """Which decision follows which in the dense ones could not be told from the sparse ones."""
    dense, sparser = record(1), record(4)
    names = ('observations', 'actions')
    mixed = replace(
        dense,
        **{n: np.concatenate([getattr(dense, n), getattr(sparser, n)]) for n in names},
        episodes=np.concatenate([dense.episodes, sparser.episodes + 3]),
        success=np.concatenate([dense.success, sparser.success]),
    )
    with pytest.raises(UserError, match='files of their own'):
        QCritic(make_policy(horizon=4), SMALL, [mixed])
    # Each in a file of its own.
    QCritic(make_policy(horizon=4), SMALL, [dense, sparser])


def test_standing_still_is_no_overlap(make_policy, make_demonstrations):
    shown = make_demonstrations()
    still = replace(shown, actions=np.where((shown.episodes == 1)[:, None, None], 0, shown.actions))
    assert len(QCritic(make_policy(), SMALL, [still]).shown) == len(shown.actions)


def test_of_many_demonstrations_every_few_episodes_are_kept(make_policy, make_demonstrations):
    many = [make_demonstrations()] * 5  # 20 episodes of two decisions
    shown = QCritic(make_policy(), replace(SMALL, memory=12), many).shown
    assert len(shown) == 10 and shown.last.tolist() == [False, True] * 5
    # Every fourth: the first of each four.
    torch.testing.assert_close(shown.actions[:2], shown.actions[8:])
    assert len(QCritic(make_policy(), replace(SMALL, memory=40), many).shown) == 40


def test_half_of_a_gradient_step_are_demonstrations(make_policy, make_demonstrations):
    critic = QCritic(make_policy(), SMALL, [make_demonstrations()])
    rows = critic._rows(100, 108, torch.Generator().manual_seed(0))
    assert len(rows) == 16 and int((rows >= 100).sum()) == 8 and int(rows.max()) < 108
    assert int(critic._rows(100, 100, torch.Generator().manual_seed(0)).max()) < 100


def test_rewards_that_demonstrations_do_not_have_are_refused_and_nothing_happens(
    make_policy, make_demonstrations, make_rollout
):
    learner = Learner(make_policy(), QUICK, [make_demonstrations()])
    dense = make_rollout(learner.policy)
    assert dense.rewards[~dense.last].any()
    before = learner.snapshot()
    with pytest.raises(UserError, match='give the Q critic no demonstrations'):
        learner.update(dense)
    after = learner.snapshot()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in after)
    learner.update(sparse(dense))
    Learner(make_policy(), QUICK).update(dense)  # without demonstrations any reward will do


def test_an_episode_that_was_cut_off_is_worth_nothing_so_far(make_policy, make_rollout):
    """The reward of its last decision went with that decision, whatever was said of it."""
    rollout = sparse(make_rollout(make_policy(), episodes=4))
    terminated, rewards = rollout.terminated.copy(), rollout.rewards.copy()
    terminated[-1], rewards[-1] = False, 0
    for success in (True, False):
        won = rollout.success.copy()
        won[-1] = success
        require_sparse(replace(rollout, terminated=terminated, rewards=rewards, success=won))
    rewards[-1] = 1
    with pytest.raises(UserError, match='1 at the end of a success'):
        require_sparse(replace(rollout, terminated=terminated, rewards=rewards))


def test_what_followed_an_end_is_remembered_as_a_number(make_policy, make_rollout):
    policy = make_policy()
    rollout = make_rollout(policy, episodes=4)
    following = rollout.next_observations.copy()
    following[rollout.last] = [np.inf, np.nan]
    kept = rollout_decisions(policy, replace(rollout, next_observations=following))
    assert not kept.next_observations[kept.last].any()
    learner = Learner(policy, QUICK)
    metrics = learner.update(replace(rollout, next_observations=following))
    assert np.isfinite(metrics['q_loss'])


def test_only_the_newest_rollout_of_a_window_is_remembered(make_policy, make_rollout):
    policy = make_policy()
    old, new = (make_rollout(policy, episodes=4, seed=s) for s in (0, 1))
    window = replace(Rollout.concatenate([old, new]), success=new.success, returns=new.returns)
    kept = newest_decisions(policy, window)
    np.testing.assert_array_equal(kept.rewards, new.rewards)
    np.testing.assert_array_equal(kept.observations, new.observations)


def test_the_oldest_decisions_are_forgotten(make_policy, make_rollout):
    policy = make_policy()
    critic = QCritic(policy, replace(SMALL, memory=10))
    for seed in (0, 1):
        rollout = make_rollout(policy, episodes=4, seed=seed)
        critic.learn(policy, rollout, torch.Generator().manual_seed(seed))
    assert len(critic.own) == 10
    np.testing.assert_array_equal(critic.own.rewards[-8:], rollout.rewards)


def test_the_batch_gets_both_advantages_and_imagined_decisions(make_policy, make_rollout):
    torch.manual_seed(0)
    learner = Learner(make_policy(), replace(QUICK, critic_warmup_updates=9))
    rollout = make_rollout(learner.policy)
    learner.update(rollout)
    raw = learner._batch(rollout, torch.linspace(-1, 1, len(rollout)))
    batch = learner.versions.remembered(
        raw, rollout, learner.algorithm, torch.Generator().manual_seed(1)
    )

    def extended(**changes):
        learner.q.config = replace(SMALL, **changes)
        rng = torch.Generator().manual_seed(2)
        return with_q_advantages(learner.q, batch, rollout, learner.policy, learner.algorithm, rng)

    more = extended()
    assert len(more) == len(rollout) + 7
    assert all(len(v) == len(more) for v in more.memory.values())
    for part in (more.advantages[:-7], more.advantages[-7:]):
        assert float(part.square().mean().sqrt()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(more.actions[:-7], raw.actions)
    # An imagined action is the policy's own for its noise.
    own = learner.policy.sample(more.observations, more.noise)
    torch.testing.assert_close(more.actions, own, rtol=1e-4, atol=1e-5)
    alone = extended(weight=0.0, imagined=0)
    unit = raw.advantages / raw.advantages.square().mean().sqrt()
    torch.testing.assert_close(alone.advantages, unit, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(more.advantages[:-7], unit, atol=0.05)


def test_before_an_own_success_the_errors_of_the_other_critic_move_nothing(
    make_policy, make_demonstrations, make_rollout
):
    """Demonstrations tell good from bad then, own decisions do not."""
    after = []
    for wrong, lucky in ((0.0, False), (1.0, False), (1.0, True)):
        learner = Learner(make_policy(), QUICK, [make_demonstrations()])
        for update in range(3):
            acting = learner.behaviour(learner.version)
            rollout = make_rollout(acting, seed=update, version=learner.version)
            if not lucky:
                none = np.zeros(len(rollout), dtype=np.float32)
                success = np.zeros(rollout.episodes, dtype=bool)
                rollout = replace(rollout, rewards=none, success=success, returns=success * 1.0)
            with torch.no_grad():
                for weight in learner.critic.critic.parameters():
                    weight += wrong * torch.randn(weight.shape, generator=torch.Generator())
            learner.update(sparse(rollout))
        assert learner.version == 2
        after.append(torch.cat([p.flatten() for p in learner.policy.net.parameters()]))
    assert torch.equal(after[0], after[1]) and not torch.equal(after[1], after[2])


@pytest.mark.parametrize('shown', [False, True])
def test_a_resumed_run_goes_on_bit_by_bit(
    make_policy, make_demonstrations, make_rollout, tmp_path, shown
):
    demonstrations = [make_demonstrations()] if shown else []

    def run(learner, updates):
        rows = []
        for _ in range(updates):
            acting = learner.behaviour(learner.version)
            rollout = make_rollout(acting, seed=learner.updates, version=learner.version)
            rows.append(learner.update(sparse(rollout)))
        return rows

    straight = Learner(make_policy(), QUICK, demonstrations)
    rows = run(straight, 4)
    first = Learner(make_policy(), QUICK, demonstrations)
    run(first, 2)
    first.save(tmp_path / 'state')
    torch.manual_seed(99)
    resumed = Learner(make_policy(seed=5), QUICK, demonstrations)
    resumed.load(tmp_path / 'state')
    assert run(resumed, 2) == rows[2:]
    a, b = straight.snapshot(), resumed.snapshot()
    assert a.keys() == b.keys() and any(name.startswith('q_memory.') for name in a)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert len(resumed.q.own) == 4 * 64


def test_what_is_remembered_is_no_part_of_the_rollout(make_policy, make_rollout, tmp_path):
    """Whoever made the rollout may use its arrays again, and may have used one for two things."""
    learner = Learner(make_policy(), QUICK)
    rollout = make_rollout(learner.policy)
    assert rollout.last is rollout.terminated
    learner.update(rollout)
    learner.save(tmp_path / 'state')
    kept = learner.q.own.rewards.clone()
    rollout.rewards[:] = 9
    assert torch.equal(learner.q.own.rewards, kept)


def test_an_update_stopped_while_q_is_fitted_has_not_happened(make_policy, make_rollout):
    stopped, straight = (Learner(make_policy(), QUICK) for _ in range(2))
    for learner in (stopped, straight):
        learner.update(make_rollout(learner.policy))
    rollout = make_rollout(stopped.policy, seed=1)
    before = stopped.snapshot()
    asked = []

    def after_one_round():
        asked.append(stopped.q.network.layers[0].weight.detach().clone())
        return len(asked) == 2

    with pytest.raises(UpdateStopped):
        stopped.update(rollout, after_one_round)
    assert not torch.equal(*asked)  # it was in the middle of it
    after = stopped.snapshot()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in after)
    assert (stopped.updates, stopped.version, len(stopped.q.own)) == (1, 0, 64)
    assert stopped.update(rollout) == straight.update(rollout)


def test_the_first_fit_of_q_can_be_stopped_too(make_policy, make_rollout):
    """It takes the longest, and the critic's warm-up has no epochs that would ask."""
    learner = Learner(make_policy(), QUICK)
    with pytest.raises(UpdateStopped):
        learner.update(make_rollout(learner.policy), lambda: True)
    assert learner.q.own is None and learner.updates == 0


def test_a_state_without_q_is_refused(make_policy, make_rollout, tmp_path):
    plain = Learner(make_policy(), replace(QUICK, q_critic=None))
    plain.update(make_rollout(plain.policy))
    plain.save(tmp_path / 'state')
    with pytest.raises(UserError, match='learned without a Q critic; leave q_critic off'):
        Learner(make_policy(), QUICK).load(tmp_path / 'state')


def test_after_a_collapse_policy_and_optimiser_go_back_and_q_keeps_what_it_learned(
    make_policy, make_rollout, assert_same_weights
):
    ruinous = replace(
        QUICK,
        algorithm=replace(QUICK.algorithm, learning_rate=5.0, max_grad_norm=1e6),
        health=HealthConfig(states=32, actions_per_state=4),
        critic_warmup_updates=0,
    )
    learner = Learner(make_policy(), ruinous)
    row = learner.update(make_rollout(learner.policy))
    assert row['collapsed'] == 1 and row['q_loss'] > 0
    assert_same_weights(learner.policy, make_policy())
    assert len(learner.q.own) == 64
    kept = learner.q.values(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2))
    assert torch.isfinite(kept).all()


def test_without_q_learning_is_what_it_was(make_policy, make_rollout):
    policies = []
    for config in (None, replace(SMALL, weight=0.0, imagined=0)):
        learner = Learner(make_policy(), replace(QUICK, q_critic=config, critic_warmup_updates=0))
        learner.update(make_rollout(learner.policy))
        policies.append(learner.policy)
    for a, b in zip(*(p.parameters() for p in policies), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'members': 0}, 'members must be at least 1, got 0'),
        ({'batch': 1}, 'batch must be at least 2, got 1'),
        ({'samples': 1}, 'samples must be at least 2, got 1'),
        ({'weight': -1.0}, r'weight must not be negative, got -1\.0'),
        ({'td_lambda': 1.1}, r'td_lambda must be within 0\.\.1, got 1\.1'),
        ({'learning_rate': 0.0}, r'learning_rate must be above 0, got 0\.0'),
        ({'gamma': float('nan')}, 'gamma must be within'),
    ],
)
def test_impossible_settings_are_refused(values, reason):
    with pytest.raises(UserError, match=reason):
        QCriticConfig(**values)
