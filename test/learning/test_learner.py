# SPDX-License-Identifier: Apache-2.0
"""Learning as a whole: it improves, it can be resumed, and it finds back from a collapse."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.state_io import load_state, save_state  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

QUICK = LearnerConfig(
    algorithm=DipodConfig(epochs=4, minibatches=2, samples_per_action=4),
    critic=CriticConfig(width=16, epochs=2),
    health=HealthConfig(states=32, actions_per_state=4),
    critic_warmup_updates=0,
    gap_every=0,
)
RUINOUS = replace(QUICK, algorithm=replace(QUICK.algorithm, learning_rate=5.0, max_grad_norm=1e6))


def states(learner):
    """Return every tensor that decides the future of a learner."""
    tensors = learner.snapshot()
    for version in learner.versions.numbers:
        for name, value in learner.behaviour(version).weights().items():
            tensors[f'recent.{version}.{name}'] = torch.from_numpy(value)
    return tensors


def assert_same_state(first, second):
    a, b = states(first), states(second)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def run(learner, make_rollout, updates):
    """Update on rollouts of the present policy, which depend on the number of updates only."""
    rows = []
    for _ in range(updates):
        rollout = make_rollout(
            learner.behaviour(learner.version), seed=learner.updates, version=learner.version
        )
        rows.append(learner.update(rollout))
    return rows


def test_learning_raises_the_probability_of_the_rewarded_action(make_policy, make_rollout):
    """A bandit: reward 1 when the first joint goes the way that the observation's sign says."""
    policy = make_policy(observed=1)
    settings = replace(
        QUICK,
        algorithm=DipodConfig(epochs=10, learning_rate=2e-3),
        critic_warmup_updates=1,
        critic=CriticConfig(width=32),
        health=HealthConfig(max_cfm_ratio=9.0, min_action_std_ratio=0.0),
    )
    learner = Learner(policy, settings)

    def act(current, seed, version):
        rollout = make_rollout(current, episodes=256, length=1, seed=seed, version=version)
        right = np.sign(rollout.chunks[:, 0, 0]) == np.sign(rollout.observations[:, 0])
        return replace(rollout, rewards=right.astype(np.float32), success=right)

    start = act(policy, 1000, 0).success.mean()
    for _ in range(12):
        learner.update(act(learner.behaviour(learner.version), learner.updates, learner.version))
    end = act(learner.policy, 1000, 0).success.mean()
    assert start < 0.6 and end > 0.85


@pytest.mark.parametrize('gap_every', [0, 2])
def test_a_resumed_run_goes_on_bit_by_bit(make_policy, make_rollout, tmp_path, gap_every):
    settings = replace(QUICK, critic_warmup_updates=1, gap_every=gap_every)
    straight = Learner(make_policy(), settings)
    rows = run(straight, make_rollout, 4)

    first = Learner(make_policy(), settings)
    begun = run(first, make_rollout, 2)
    first.save(tmp_path / 'state')
    torch.manual_seed(99)
    resumed = Learner(make_policy(seed=5), settings)
    resumed.load(tmp_path / 'state')
    assert (resumed.version, resumed.updates, resumed.episodes) == (1, 2, 64)
    assert_same_state(resumed, first)

    assert begun + run(resumed, make_rollout, 2) == rows
    assert_same_state(resumed, straight)
    assert resumed.control_steps == straight.control_steps


def test_two_learners_with_one_seed_are_one(make_policy, make_rollout):
    first, second = (Learner(make_policy(), QUICK) for _ in range(2))
    other = Learner(make_policy(), replace(QUICK, seed=1))
    assert run(first, make_rollout, 2) == run(second, make_rollout, 2)
    run(other, make_rollout, 2)
    assert_same_state(first, second)
    name = 'policy.net.output.bias'
    assert not torch.equal(states(other)[name], states(first)[name])


def test_the_policy_given_is_not_touched(make_policy, make_rollout, assert_same_weights):
    policy = make_policy()
    run(Learner(policy, QUICK), make_rollout, 1)
    assert_same_weights(policy, make_policy())


def test_each_update_makes_the_next_version(make_policy, make_rollout, assert_same_weights):
    learner = Learner(make_policy(), QUICK)
    for version in (1, 2):
        row = run(learner, make_rollout, 1)[0]
        assert row['version'] == learner.version == version
        assert row['collapsed'] == 0
        assert_same_weights(learner.behaviour(version), learner.policy)
    with pytest.raises(AssertionError):
        assert_same_weights(learner.behaviour(1), learner.behaviour(2))


def test_the_first_updates_teach_the_critic_alone(make_policy, make_rollout, assert_same_weights):
    learner = Learner(make_policy(), replace(QUICK, critic_warmup_updates=2))
    critic = learner.snapshot()['critic.layers.0.weight'].clone()
    rows = run(learner, make_rollout, 2)
    assert [r['version'] for r in rows] == [0, 0]
    assert 'policy_loss' not in rows[0]
    assert_same_weights(learner.policy, make_policy())
    assert not torch.equal(learner.snapshot()['critic.layers.0.weight'], critic)
    assert run(learner, make_rollout, 1)[0]['version'] == 1


def test_after_a_collapse_the_policy_is_the_one_before(
    make_policy, make_rollout, assert_same_weights
):
    learner = Learner(make_policy(), RUINOUS)
    before = learner.snapshot()
    row = run(learner, make_rollout, 1)[0]
    assert row['collapsed'] == 1 and row['alarms'] == 1
    assert row['version'] == learner.version == 0 and row['updates'] == 1
    assert_same_weights(learner.policy, make_policy())
    assert_same_weights(learner.behaviour(0), make_policy())
    assert learner.algorithm.config.learning_rate == 2.5 and learner.algorithm.config.epochs == 2
    assert [g['lr'] for g in learner.optimizer.param_groups] == [2.5]
    # The optimiser has forgotten the bad step too; the critic keeps what it learned.
    after = learner.snapshot()
    assert {k for k in after if k.startswith('policy_adam')} == {
        k for k in before if k.startswith('policy_adam')
    }
    assert not torch.equal(after['critic.layers.0.weight'], before['critic.layers.0.weight'])


# Judged by single rollouts; every policy is narrow to NARROW and none is to WIDE.
WIDE = replace(QUICK.health, max_cfm_ratio=9.0, min_action_std_ratio=0.0, return_updates=1)
NARROW = replace(WIDE, min_action_std_ratio=9.0)
SEVEN = (1.0, 1.1) * 3 + (1.0,)


def learn_from(learner, make_rollout, health, *returns):
    """Update once for each return, with an alarm of these settings; return the last metrics."""
    learner.config = replace(learner.config, health=health)
    for value in returns:
        rollout = make_rollout(learner.policy, seed=learner.updates, version=learner.version)
        row = learner.update(
            replace(rollout, returns=np.full(rollout.episodes, value, dtype=np.float32))
        )
    return row


def test_narrow_actions_are_no_collapse_while_the_return_holds(make_policy, make_rollout):
    learner = Learner(make_policy(), QUICK)
    assert learn_from(learner, make_rollout, NARROW, 1.0)['collapsed'] == 1  # nothing to compare
    row = learn_from(learner, make_rollout, NARROW, 1.1, 2.0, 1.9)
    assert (row['collapsed'], row['alarms'], row['version']) == (0, 1, 3)


def test_a_narrow_policy_that_lost_its_return_gives_way_to_the_last_wide_one(
    make_policy, make_rollout, assert_same_weights
):
    learner = Learner(make_policy(), replace(QUICK, max_lag=9))
    learn_from(learner, make_rollout, WIDE, *SEVEN)
    wide = learner.snapshot()
    assert learn_from(learner, make_rollout, NARROW, 1.2, 1.3)['version'] == 9
    narrow = learner.behaviour(9)
    row = learn_from(learner, make_rollout, NARROW, -9.0)
    assert (row['collapsed'], row['alarms'], row['version']) == (1, 1, 10)
    assert_same_weights(learner.policy, learner.behaviour(7))
    assert_same_weights(learner.behaviour(10), learner.policy)
    assert_same_weights(learner.behaviour(9), narrow)  # its decisions are still on their way
    assert learner.algorithm.config.epochs == 2
    # The rollout that the wide version was last judged by counts, what came after it does not.
    assert learner.returns == pytest.approx([*SEVEN, 1.2])
    after = learner.snapshot()
    same = [k for k in wide if k.startswith('policy')]
    assert all(torch.equal(after[k], wide[k]) for k in same)
    # And it may become narrow again.
    assert learn_from(learner, make_rollout, NARROW, 1.3)['collapsed'] == 0


def test_a_collapse_while_the_return_holds_costs_one_update(
    make_policy, make_rollout, assert_same_weights
):
    learner = Learner(make_policy(), QUICK)
    learn_from(learner, make_rollout, WIDE, 1.0, 1.1)
    learn_from(learner, make_rollout, NARROW, 1.2)
    row = learn_from(learner, make_rollout, replace(NARROW, max_cfm_ratio=0.0), 1.3)
    assert (row['collapsed'], row['version']) == (1, 3)
    assert_same_weights(learner.policy, learner.behaviour(3))


def test_wide_again_is_a_new_place_to_go_back_to(make_policy, make_rollout, assert_same_weights):
    learner = Learner(make_policy(), QUICK)
    learn_from(learner, make_rollout, WIDE, *SEVEN)
    learn_from(learner, make_rollout, NARROW, 1.2)
    learn_from(learner, make_rollout, WIDE, 1.3)
    latest = learner.policy.clone()
    learn_from(learner, make_rollout, NARROW, 1.4, -9.0)
    assert_same_weights(learner.policy, latest)


@pytest.mark.parametrize('returns', [(1.3, 1.4), (-9.0, 1.0)])
def test_a_run_that_is_narrow_goes_on_bit_by_bit(make_policy, make_rollout, tmp_path, returns):
    first = Learner(make_policy(), QUICK)
    learn_from(first, make_rollout, WIDE, *SEVEN)
    learn_from(first, make_rollout, NARROW, 1.2)
    first.save(tmp_path / 'state')
    resumed = Learner(make_policy(), QUICK)
    resumed.load(tmp_path / 'state')
    rows = [learn_from(learner, make_rollout, NARROW, *returns) for learner in (first, resumed)]
    assert rows[0] == rows[1] and rows[0]['alarms'] == (returns[0] < 0)
    assert_same_state(first, resumed)
    for learner in (first, resumed):
        learner.save(tmp_path / f'{learner is first}')
    assert (tmp_path / 'True').read_bytes() == (tmp_path / 'False').read_bytes()


def test_a_state_without_returns_begins_to_count_anew(make_policy, make_rollout, tmp_path):
    """That of a program that did not look at them."""
    learner = Learner(make_policy(), QUICK)
    run(learner, make_rollout, 2)
    learner.save(tmp_path / 'state')
    tensors, info = load_state(tmp_path / 'state')
    del tensors['returns']
    save_state(tmp_path / 'state', tensors, info)
    resumed = Learner(make_policy(), QUICK)
    resumed.load(tmp_path / 'state')
    assert resumed.returns == [] and resumed.updates == 2


def test_weights_that_are_not_a_number_are_a_collapse(
    make_policy, make_rollout, assert_same_weights
):
    absurd = replace(QUICK, algorithm=replace(QUICK.algorithm, learning_rate=1e30))
    learner = Learner(make_policy(), absurd)
    row = run(learner, make_rollout, 1)[0]
    assert np.isnan(row['cfm_own']) and row['collapsed'] == 1
    assert_same_weights(learner.policy, make_policy())


@pytest.mark.parametrize(
    'name', ['observations', 'noise', 'chunks', 'rewards', 'returns', 'next_observations']
)
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_rollout_that_is_not_finite_is_refused_and_nothing_happens(
    make_policy, make_rollout, name, value
):
    """A NaN in the critic would stay there for ever."""
    learner = Learner(make_policy(), QUICK)
    before = learner.snapshot()
    rollout = make_rollout(make_policy())
    values = getattr(rollout, name).copy()
    values.flat[5] = value
    with pytest.raises(UserError, match=name):
        learner.update(replace(rollout, **{name: values}))
    assert all(torch.equal(before[k], v) for k, v in learner.snapshot().items())
    assert learner.updates == 0


def test_rewards_whose_squares_are_no_numbers_are_refused(make_policy, make_rollout):
    learner = Learner(make_policy(), QUICK)
    rollout = make_rollout(make_policy())
    with pytest.raises(UserError, match='rewards beyond 1e'):
        learner.update(replace(rollout, rewards=rollout.rewards * 1e20))


def test_noise_of_another_policy_is_refused(make_policy, make_rollout):
    learner = Learner(make_policy(), QUICK)
    rollout = make_rollout(make_policy())
    with pytest.raises(UserError, match='noise'):
        learner.update(replace(rollout, noise=rollout.noise[:, :-1]))


def test_nothing_but_collapses_ends_learning_with_the_last_good_version(
    make_policy, make_rollout, assert_same_weights
):
    hopeless = replace(QUICK, health=HealthConfig(max_cfm_ratio=0.0), max_alarms_in_a_row=3)
    learner = Learner(make_policy(), hopeless)
    run(learner, make_rollout, 3)
    with pytest.raises(UserError, match='3 updates in a row .* version 0 is kept'):
        run(learner, make_rollout, 1)
    assert learner.updates == 3
    assert_same_weights(learner.policy, make_policy())
    unending = Learner(make_policy(), replace(hopeless, max_alarms_in_a_row=0))
    assert len(run(unending, make_rollout, 5)) == 5


def test_an_error_at_the_end_of_an_update_takes_the_version_back_too(
    make_policy, make_rollout, monkeypatch
):
    learner = Learner(make_policy(), QUICK)
    begun = learner.counts()
    monkeypatch.setattr(learner, '_measure_gap', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(learner, make_rollout, 1)
    assert learner.counts() == begun and learner.returns == []
    monkeypatch.undo()
    fresh = Learner(make_policy(), QUICK)
    assert run(learner, make_rollout, 2) == run(fresh, make_rollout, 2)
    assert_same_state(learner, fresh)


def test_learning_goes_on_after_a_collapse(make_policy, make_rollout):
    learner = Learner(make_policy(), RUINOUS)
    rows = run(learner, make_rollout, 16)
    # Halved until it works: epochs never reach 0.
    assert learner.algorithm.config.epochs >= 1
    assert learner.algorithm.config.learning_rate == 5.0 / 2**learner.alarms
    assert rows[-1]['collapsed'] == 0 and learner.version > 0
    assert learner.version + learner.alarms == learner.updates


def test_gentler_settings_survive_a_resume(make_policy, make_rollout, tmp_path):
    learner = Learner(make_policy(), RUINOUS)
    run(learner, make_rollout, 1)
    learner.save(tmp_path / 'state')
    resumed = Learner(make_policy(), RUINOUS)
    resumed.load(tmp_path / 'state')
    assert (resumed.algorithm.config.learning_rate, resumed.algorithm.config.epochs) == (2.5, 2)
    assert [g['lr'] for g in resumed.optimizer.param_groups] == [2.5]
    assert resumed.alarms == 1
    assert run(learner, make_rollout, 1) == run(resumed, make_rollout, 1)


def test_without_an_alarm_a_resume_may_change_the_settings(make_policy, make_rollout, tmp_path):
    learner = Learner(make_policy(), QUICK)
    run(learner, make_rollout, 1)
    learner.save(tmp_path / 'state')
    faster = replace(QUICK, algorithm=replace(QUICK.algorithm, learning_rate=7e-4))
    resumed = Learner(make_policy(), faster)
    resumed.load(tmp_path / 'state')
    assert resumed.algorithm.config.learning_rate == 7e-4
    assert [g['lr'] for g in resumed.optimizer.param_groups] == [7e-4]


@pytest.mark.parametrize('max_lag', [0, 2])
def test_versions_are_forgotten_after_max_lag(make_policy, make_rollout, max_lag):
    learner = Learner(make_policy(), replace(QUICK, max_lag=max_lag))
    run(learner, make_rollout, 4)
    known = [v for v in range(-1, 6) if learner.behaviour(v) is not None]
    assert known == list(range(4 - max_lag, 5))


def test_decisions_of_unknown_versions_are_refused_and_nothing_happens(
    make_policy, make_rollout, with_versions
):
    learner = Learner(make_policy(), QUICK)
    run(learner, make_rollout, 3)
    before, twin = learner.snapshot(), learner.updates
    rollout = make_rollout(make_policy())
    for versions in ([0], [3, 7], [-1, 3]):
        with pytest.raises(UserError, match='versions'):
            learner.update(with_versions(rollout, versions))
    after = learner.snapshot()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert learner.updates == twin and learner.version == 3


def test_each_decision_is_compared_with_the_version_that_took_it(
    make_policy, make_rollout, with_versions
):
    """Mixed versions: with honest labels all first ratios are 1, and the mismatch is 0."""
    learner = Learner(make_policy(), QUICK)
    run(learner, make_rollout, 2)
    parts = [make_rollout(learner.behaviour(v), seed=v, version=v) for v in (0, 1, 2)]
    mixed = type(parts[0]).concatenate(parts)
    assert learner.mismatch(mixed) < 1e-5
    wrong = with_versions(mixed, np.roll(mixed.version, 64))
    assert learner.mismatch(wrong) > 1e-3
    assert learner.update(mixed)['lag_mean'] == pytest.approx(1.0)


def test_mismatch_sees_one_wrong_chunk(make_policy, make_rollout):
    learner = Learner(make_policy(), QUICK)
    rollout = make_rollout(make_policy())
    assert learner.mismatch(rollout) < 1e-6
    chunks = rollout.chunks.copy()
    chunks[7, 0, 1] += 0.25
    assert learner.mismatch(replace(rollout, chunks=chunks)) == pytest.approx(0.25, abs=1e-5)


def test_the_ratio_counts_from_the_policy_that_acted(make_policy, make_rollout):
    """Decisions of version 0 after version 1 was made: the first ratios are not 1."""
    settings = replace(
        QUICK,
        algorithm=replace(QUICK.algorithm, epochs=1, minibatches=1, learning_rate=1e-2, clip=1e-3),
        health=HealthConfig(max_cfm_ratio=9.0, min_action_std_ratio=0.0),
    )
    learner = Learner(make_policy(), settings)
    old = make_rollout(make_policy(), version=0)
    assert learner.update(old)['clip_fraction'] == 0
    assert learner.update(old)['clip_fraction'] > 0.1


def test_metrics_tell_what_came_in(make_policy, make_rollout):
    learner = Learner(make_policy(), QUICK)
    rollout = make_rollout(make_policy(), episodes=8, length=3)
    row = learner.update(rollout)
    assert row['episodes'] == 8 and row['decisions'] == 24 and row['control_steps'] == 24
    assert row['success_rate'] == pytest.approx(rollout.success.mean())
    assert row['return_mean'] == pytest.approx(rollout.returns.mean())
    assert all(isinstance(v, (int, float)) for v in row.values())
    assert 'elbo_gap_nats' not in row


GAPS = pytest.mark.parametrize(
    'sampler, target, names',
    [
        (None, 0.0, ['exact_gap_nats']),
        (None, 1.0, ['exact_gap_nats']),
        # All that can be had where the sampler draws noise.
        (SamplerSpec('sde', 5), 0.0, ['elbo_gap_nats']),
    ],
)


@GAPS
def test_a_gap_that_is_not_measured_for_lack_of_time_takes_nothing_of_the_update(
    make_policy, make_rollout, sampler, target, names
):
    algorithm = replace(QUICK.algorithm, gap_target=target)
    policy = make_policy(sampler=sampler)
    kept = Learner(policy, replace(QUICK, algorithm=algorithm, gap_every=1))
    free = Learner(policy, QUICK)
    rollout = make_rollout(policy)
    asked = iter([False] * (QUICK.algorithm.epochs + 1))  # by each epoch, and where the gap begins
    row = kept.update(rollout, stop=lambda: next(asked, True))
    assert not set(names) & row.keys()
    assert row == pytest.approx(free.update(rollout), nan_ok=True) and kept.version == 1
    assert_same_state(kept, free)


@GAPS
def test_the_gap_is_estimated_every_so_often(make_policy, make_rollout, sampler, target, names):
    algorithm = replace(QUICK.algorithm, gap_target=target)
    settings = replace(QUICK, gap_every=2, algorithm=algorithm)
    rows = run(Learner(make_policy(sampler=sampler), settings), make_rollout, 3)
    for name in ('elbo_gap_nats', 'exact_gap_nats'):
        assert [name in r for r in rows] == [name in names, False, name in names]


def test_an_error_in_the_middle_of_an_update_leaves_nothing_behind(
    make_policy, make_rollout, monkeypatch
):
    learner = Learner(make_policy(), QUICK)
    run(learner, make_rollout, 1)
    before = learner.snapshot()

    def fails(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(learner.algorithm, 'after_epochs', fails)
    with pytest.raises(RuntimeError, match='out of memory'):
        run(learner, make_rollout, 1)
    after = learner.snapshot()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_state_of_another_network_is_refused(make_policy, tmp_path):
    Learner(make_policy(width=64), QUICK).save(tmp_path / 'policy')
    narrow = replace(QUICK, critic=CriticConfig(width=8))
    Learner(make_policy(), narrow).save(tmp_path / 'critic')
    for name in ('policy', 'critic'):
        learner = Learner(make_policy(), QUICK)
        before = states(learner)
        with pytest.raises(UserError, match=f'{name} does not fit') as error:
            learner.load(tmp_path / name)
        assert '\n' not in str(error.value)
        after = states(learner)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize('field', ['version', 'recent', 'algorithm', 'alarms'])
def test_a_state_without_a_field_is_refused(make_policy, make_rollout, tmp_path, field):
    learner = Learner(make_policy(), RUINOUS)
    run(learner, make_rollout, 1)
    learner.save(tmp_path / 'state')
    tensors, info = load_state(tmp_path / 'state')
    del info[field]
    save_state(tmp_path / 'state', tensors, info)
    with pytest.raises(UserError, match='does not fit'):
        Learner(make_policy(), RUINOUS).load(tmp_path / 'state')


def test_a_missing_state_is_an_error_of_one_line(make_policy, tmp_path):
    with pytest.raises(UserError, match='absent'):
        Learner(make_policy(), QUICK).load(tmp_path / 'absent')


def test_a_seed_may_be_any_whole_number(make_policy, make_rollout):
    run(Learner(make_policy(), replace(QUICK, seed=-1)), make_rollout, 1)
