# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in the batch: the term is what it says, decays, survives a resume, and refuses."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.learning.imitation import (  # noqa: E402
    Imitation,
    ImitationConfig,
    imitation_config,
    load_demonstrations,
)
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.seeding import torch_rng  # noqa: E402
from dipod_ros.policy.path import draw_path_samples  # noqa: E402

# Where the toy policy is shown to go, in normalised units.
SHOWN = 2.0


@pytest.fixture
def make_demonstrations(make_spec):
    """Return demonstrations of the toy task that always do `SHOWN`, and noise where they fail."""

    def make(episodes=12, length=3, won=None, **options):
        rng = np.random.default_rng(3)
        spec = make_spec(**options)
        rows = episodes * length
        won = np.arange(episodes) % 3 > 0 if won is None else won
        good = np.repeat(won, length)
        shape = (rows, spec.horizon, len(spec.joints))
        actions = np.where(good[:, None, None], SHOWN, rng.normal(size=shape))
        return Demonstrations(
            spec=spec,
            observations=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
            actions=actions.astype(np.float32),
            episodes=np.repeat(np.arange(episodes), length),
            success=np.asarray(won),
            seed=0,
        )

    return make


def settings(imitation, **algorithm):
    quick = {'epochs': 4, 'minibatches': 2, 'samples_per_action': 4} | algorithm
    return LearnerConfig(
        algorithm=DipodConfig(**quick),
        critic=CriticConfig(width=16, epochs=2),
        health=HealthConfig(1e9, 0.0, states=32, actions_per_state=4),
        imitation=imitation,
        critic_warmup_updates=0,
        gap_every=0,
    )


def by_hand(policy, demonstrations, config, update, seed):
    """Return weight decay^k mean |v(x_t, t, o) - (eps - a)|^2 / sqrt(D), from its definition."""
    good = demonstrations.success[demonstrations.episodes]
    observations = torch.from_numpy(demonstrations.observations[good])
    actions = torch.from_numpy(demonstrations.actions[good]).flatten(1)
    rng = torch_rng(seed, 'imitation', update)
    rows = torch.randint(len(actions), (config.batch,), generator=rng)
    samples = draw_path_samples(config.batch, 1, actions.shape[1], rng)
    o, a, t, eps = observations[rows], actions[rows], samples.t[:, 0], samples.eps[:, 0]
    x_t = (1 - t[:, None]) * a + t[:, None] * eps
    error = policy.velocity(x_t, t, o) - (eps - a)
    ell = error.square().sum(1) / actions.shape[1] ** 0.5
    return config.weight * config.decay**update * ell.mean()


@pytest.mark.parametrize('update', [0, 3])
def test_the_term_is_the_loss_of_successful_demonstrations_and_decays(
    make_policy, make_demonstrations, update
):
    policy, shown = make_policy().requires_grad_(True), make_demonstrations()
    config = ImitationConfig(weight=0.7, decay=0.5, batch=9)
    term = Imitation(policy, config, [shown]).term(update, seed=4)
    loss, stats = term(policy)
    expected = by_hand(policy, shown, config, update, seed=4).detach()
    torch.testing.assert_close(loss, expected)
    assert stats['demo_loss'] == pytest.approx(float(expected) / (0.7 * 0.5**update), rel=1e-5)
    # The gradient reaches every weight of the network, and the next step draws other rows.
    loss.backward()
    assert all(p.grad is not None for p in policy.net.parameters())
    assert any(float(p.grad.abs().max()) > 0 for p in policy.net.parameters())
    assert not torch.equal(term(policy)[0], loss)


def test_failed_demonstrations_are_not_imitated(make_policy, make_demonstrations):
    imitation = Imitation(make_policy(), ImitationConfig(), [make_demonstrations()])
    assert len(imitation.shown[1]) == 8 * 3
    torch.testing.assert_close(imitation.shown[1], torch.full((24, 2), SHOWN))


def test_without_a_weight_learning_is_what_it_was(
    make_policy, make_demonstrations, make_rollout, assert_same_weights
):
    plain = Learner(make_policy(), settings(None))
    none = Learner(make_policy(), settings(ImitationConfig(weight=0.0)), [make_demonstrations()])
    for learner in (plain, none):
        learner.update(make_rollout(make_policy()))
    assert_same_weights(plain.policy, none.policy)


def test_demonstrations_pull_the_policy_to_what_they_show(
    make_policy, make_demonstrations, make_rollout
):
    """With rewards that say nothing of it: what moves the policy is the term."""

    def after(weight):
        learner = Learner(
            make_policy(),
            settings(ImitationConfig(weight=weight), epochs=40, learning_rate=3e-3, beta=0.0),
            [make_demonstrations()],
        )
        rng = np.random.default_rng(0)
        rollout = make_rollout(make_policy(), episodes=32)
        noisy = rng.normal(size=len(rollout)).astype(np.float32)
        row = learner.update(replace(rollout, rewards=noisy))
        return np.abs(learner.policy.act(rollout.observations, rollout.noise) - SHOWN).mean(), row

    (without, _), (pulled, row) = after(0.0), after(5.0)
    assert pulled < 0.5 * without
    assert row['demo_loss'] > 0


def test_own_successes_are_imitated_newest_first(make_policy, make_rollout):
    policy = make_policy()
    imitation = Imitation(policy, ImitationConfig(own_episodes=5))
    assert imitation.term(0, seed=0) is None  # nothing has succeeded yet
    rollout = make_rollout(policy, episodes=32)
    imitation.watch(policy, rollout)
    kept = np.flatnonzero(rollout.success)[-5:]
    rows = np.concatenate([[2 * e, 2 * e + 1] for e in kept])
    own = imitation.memory()
    actions = torch.cat([own[f'imitation.{i}.actions'] for i in range(5)])
    np.testing.assert_array_equal(actions.numpy(), rollout.chunks[rows].reshape(10, -1))
    assert imitation.term(0, seed=0)(policy)[0] > 0


@pytest.mark.parametrize('own', [0, 6])
def test_a_resumed_run_goes_on_bit_by_bit(
    make_policy, make_demonstrations, make_rollout, tmp_path, own
):
    config = settings(ImitationConfig(weight=0.3, decay=0.9, own_episodes=own))
    shown = [make_demonstrations()]

    def run(learner, updates):
        for _ in range(updates):
            acting = learner.behaviour(learner.version)
            learner.update(make_rollout(acting, seed=learner.updates, version=learner.version))
        return learner

    straight = run(Learner(make_policy(), config, shown), 4)
    run(Learner(make_policy(), config, shown), 2).save(tmp_path / 'state')
    resumed = Learner(make_policy(seed=5), config, shown)
    resumed.load(tmp_path / 'state')
    run(resumed, 2)
    first, second = straight.snapshot(), resumed.snapshot()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert any(name.startswith('imitation.') for name in first) == (own > 0)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'task': 'juggle'}, 'have task juggle, the policy has toy'),
        ({'horizon': 2}, 'steps per chunk 2'),
        ({'size': 3}, 'joints'),
        ({'observed': 5}, 'streams'),
        ({'control_period_s': 0.02}, 'control_period_s 0.02'),
    ],
)
def test_demonstrations_of_something_else_are_refused(
    make_policy, make_demonstrations, change, reason
):
    sizes = {k: v for k, v in change.items() if k in ('horizon', 'size', 'observed')}
    shown = make_demonstrations(**sizes)
    spec = replace(shown.spec, **{k: v for k, v in change.items() if k not in sizes})
    with pytest.raises(UserError, match=reason):
        Imitation(make_policy(), ImitationConfig(), [replace(shown, spec=spec)])


def test_demonstrations_without_a_success_are_refused(make_policy, make_demonstrations):
    shown = make_demonstrations(won=np.zeros(12, dtype=bool))
    with pytest.raises(UserError, match='none of the demonstrations succeeded'):
        Imitation(make_policy(), ImitationConfig(), [shown])
    # For the critic alone they need not have succeeded.
    assert imitation_config(0.0, 1.0) is None
    assert imitation_config(0.2, 0.9) == ImitationConfig(0.2, 0.9)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'weight': -0.1}, 'demo_weight must not be negative'),
        ({'weight': float('nan')}, 'demo_weight must not be negative'),
        ({'decay': 0.0}, 'demo_decay must be above 0'),
        ({'decay': 1.1}, 'demo_decay must be above 0'),
        ({'batch': 0}, 'batch of at least 1'),
        ({'own_episodes': -1}, 'batch of at least 1'),
    ],
)
def test_impossible_settings_are_refused(values, reason):
    with pytest.raises(UserError, match=reason):
        ImitationConfig(**values)


def test_a_weight_without_anything_to_imitate_is_refused(make_policy):
    with pytest.raises(UserError, match='name demonstrations'):
        Imitation(make_policy(), ImitationConfig(weight=0.1))


def test_demonstrations_come_from_a_file_or_a_folder(make_demonstrations, make_policy, tmp_path):
    with pytest.raises(UserError, match='dipod demos'):
        load_demonstrations(tmp_path / 'absent.safetensors')
    with pytest.raises(UserError, match=r'no \*.safetensors file'):
        load_demonstrations(tmp_path)
    for name, episodes in (('a', 6), ('b', 12)):
        make_demonstrations(episodes=episodes).save(tmp_path / f'{name}.safetensors')
    assert len(load_demonstrations(tmp_path / 'a.safetensors')) == 1
    both = Imitation(make_policy(), ImitationConfig(), load_demonstrations(tmp_path))
    assert len(both.shown[1]) == (4 + 8) * 3
