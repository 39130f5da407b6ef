# SPDX-License-Identifier: Apache-2.0
"""The options of DiPOD: each does what its name says, seen in losses, gradients and weights."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.base import Batch, autocast  # noqa: E402
from dipod_ros.learning.algorithms.dipod import (  # noqa: E402
    BETA_RANGE,
    DipodConfig,
    dipod_loss,
)
from dipod_ros.learning.algorithms.self_distillation import (  # noqa: E402
    InterleavedConfig,
    self_distill,
)
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.health import elbo_gap_nats  # noqa: E402
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.q_critic import QCriticConfig  # noqa: E402
from dipod_ros.policy.path import PathSamples, cfm_loss  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

ELL_OLD = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
ELL = torch.tensor([[0.9, 0.5], [2.3, 1.9]])
ADVANTAGES = torch.tensor([1.5, -2.0])

QUICK = LearnerConfig(
    algorithm=DipodConfig(beta=0.1, epochs=2, minibatches=2, samples_per_action=4),
    critic=CriticConfig(width=16, epochs=2),
    health=HealthConfig(states=16, actions_per_state=4, max_cfm_ratio=9.0),
    critic_warmup_updates=0,
    gap_every=0,
)


def gradient(settings, **options):
    ell = ELL.clone().requires_grad_(True)
    dipod_loss(ell, ELL_OLD, ADVANTAGES, settings, **options)[0].backward()
    return ell.grad


def test_fpo_averages_the_losses_of_an_action_before_the_ratio():
    """Means .7 and 2.1 against 1 and 2: rho = e^.3, e^-.1; 1.2 * 1.5 clipped, e^-.1 * -2."""
    loss, stats = dipod_loss(ELL, ELL_OLD, ADVANTAGES, DipodConfig(beta=0.0, ratio='action'))
    assert loss.item() == pytest.approx(-(1.8 - 2 * math.exp(-0.1)) / 2, abs=1e-6)
    assert stats['clip_fraction'] == 0.5


@pytest.mark.parametrize(
    ('which', 'held'), [('all', [1, 1]), ('positive', [1, 0]), ('negative', [0, 1])]
)
def test_the_regulariser_acts_on_the_chosen_sign_of_the_advantage(which, held):
    plain = gradient(DipodConfig(beta=0.0))
    regularised = gradient(DipodConfig(beta=0.4, regularise=which))
    expected = 0.4 / 4 * torch.tensor(held, dtype=torch.float32)[:, None].expand(2, 2)
    torch.testing.assert_close(regularised - plain, expected)


def test_an_anchor_replaces_what_is_held_down_and_not_the_surrogate():
    anchor = torch.full((2, 2), 5.0, requires_grad=True)
    settings = DipodConfig(beta=0.4, anchor='start')
    loss, _ = dipod_loss(ELL, ELL_OLD, ADVANTAGES, settings, regularised=anchor)
    plain, _ = dipod_loss(ELL, ELL_OLD, ADVANTAGES, DipodConfig(beta=0.0))
    assert loss.item() == pytest.approx(plain.item() + 0.4 * 5.0)
    loss.backward()
    torch.testing.assert_close(anchor.grad, torch.full((2, 2), 0.1))


def test_the_anchor_is_the_policy_that_learning_started_from(make_policy):
    policy = make_policy()
    algorithm = DipodConfig(beta=0.4, anchor='start', samples_per_action=2).build()
    learning = algorithm.start(policy)
    o, a = torch.randn(6, 2), torch.randn(6, 2)
    batch = Batch(o, a, torch.zeros(6, 2), torch.randn(6), {})
    memory = algorithm.remember(policy, batch, torch.Generator().manual_seed(0))
    assert memory['anchor'].shape == a.shape and not torch.equal(memory['anchor'], a)
    loss, _ = algorithm.loss(learning, replace(batch, memory=memory))
    samples = PathSamples(memory['t'], memory['eps'])
    held = cfm_loss(policy, memory['anchor'], o, samples).mean()
    plain = replace(algorithm.config, beta=0.0)
    ell = cfm_loss(policy, a, o, samples)
    expected = dipod_loss(ell, memory['ell_old'], batch.advantages, plain)[0] + 0.4 * held
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_beta_rises_while_the_gap_is_above_its_target_and_falls_below_it():
    algorithm = DipodConfig(beta=0.1, gap_target=1.0).build()
    # What counts is the excess over the first one, and the gap itself where it is known.
    algorithm.observe({'exact_gap_nats': 10.0, 'elbo_gap_nats': 2.0})
    assert algorithm.beta == pytest.approx(0.1 * math.exp(-0.5))
    algorithm.observe({'exact_gap_nats': 11.4, 'elbo_gap_nats': 2.0})
    assert algorithm.beta == pytest.approx(0.1 * math.exp(-0.5 + 0.2))
    algorithm.observe({'success_rate': 0.5})
    algorithm.observe({'exact_gap_nats': math.nan})
    assert algorithm.beta == pytest.approx(0.1 * math.exp(-0.3))
    for _ in range(50):
        algorithm.observe({'elbo_gap_nats': 1e6})
    assert algorithm.beta == BETA_RANGE[1]
    for _ in range(50):
        algorithm.observe({'elbo_gap_nats': 0.0})
    assert algorithm.beta == BETA_RANGE[0]


def test_the_gap_that_beta_is_adapted_from_is_that_of_the_start(make_policy, make_rollout):
    """Without a warm-up the first update has moved the policy before any gap is measured."""
    gaps = []
    for rate in (1e-4, 0.03):
        algorithm = replace(QUICK.algorithm, gap_target=1.0, learning_rate=rate)
        settings = replace(
            QUICK,
            algorithm=algorithm,
            gap_every=1,
            health=HealthConfig(states=16, max_cfm_ratio=1e9, min_action_std_ratio=0.0),
        )
        row = Learner(make_policy(), settings).update(make_rollout(make_policy()))
        assert row['version'] == 1
        gaps.append(row['first_gap_nats'])
    assert gaps[0] == gaps[1]


def test_a_gap_that_is_never_measured_is_no_target():
    with pytest.raises(UserError, match='gap_every 0 never measures it: set gap_every to 4'):
        LearnerConfig(algorithm=DipodConfig(gap_target=1.0), gap_every=0)


def test_the_clip_of_aspo_cuts_good_actions_alone():
    ell_old = torch.zeros(2, 2)
    # Ratios 0.5, 1, 1 and 2; the first is of a bad action.
    ell = -torch.tensor([[0.5, 1.0], [1.0, 2.0]]).log()
    a = torch.tensor([-1.0, 1.0])
    shares = [
        dipod_loss(ell, ell_old, a, DipodConfig(trust_region=region))[1]['clip_fraction']
        for region in ('ppo', 'aspo')
    ]
    assert shares == [0.5, 0.25]


def test_an_adapted_beta_survives_a_resume_and_a_fixed_one_is_that_of_the_settings(
    make_policy, make_rollout, tmp_path
):
    for target, expected in ((1e-3, 'adapted'), (0.0, 'fixed')):
        algorithm = replace(QUICK.algorithm, gap_target=target)
        learner = Learner(make_policy(), replace(QUICK, algorithm=algorithm, gap_every=1))
        row = learner.update(make_rollout(make_policy()))
        learner.save(tmp_path / 'state')
        other = Learner(
            make_policy(), replace(QUICK, algorithm=replace(algorithm, beta=0.7), gap_every=1)
        )
        other.load(tmp_path / 'state')
        assert row['beta'] == learner.algorithm.beta
        if expected == 'adapted':
            assert other.algorithm.state() == learner.algorithm.state()
            assert other.algorithm.beta != 0.1 and 'first_gap_nats' in other.algorithm.state()
        else:
            assert (other.algorithm.beta, learner.algorithm.beta) == (0.7, 0.1)


def test_self_distillation_tightens_a_loose_bound_and_keeps_the_policy(linear_flow):
    """The velocity K x with K=.4 is not the marginal velocity of its own samples: a gap.

    Self-distillation closes it, and the spread of the actions, exp(-.4), stays.
    """
    policy = linear_flow(torch.eye(2) * 0.4).requires_grad_(True)
    o = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))

    def measure():
        gap = elbo_gap_nats(policy, o, torch.Generator().manual_seed(1))
        noise = torch.randn(4096, 2, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            return gap, float(policy.sample(o.repeat(16, 1), noise).std())

    gap, std = measure()
    self_distill(policy, o, torch.Generator().manual_seed(3), steps=400, learning_rate=1e-3)
    tight, after = measure()
    assert std == pytest.approx(math.exp(-0.4), rel=0.05)
    assert gap > 0.1 and tight < 0.35 * gap
    assert after == pytest.approx(std, rel=0.12)


def test_self_distillation_refuses_a_sampler_that_shrinks_the_policy(make_policy):
    policy = make_policy(sampler=SamplerSpec('euler', 10))
    with pytest.raises(UserError, match='midpoint'):
        self_distill(policy, torch.zeros(4, 2), torch.Generator(), steps=1)


def test_bursts_that_could_not_be_are_refused_before_anything_is_learned(make_policy):
    policy = make_policy(sampler=SamplerSpec('euler', 4))
    for options in ({'burst_every': 2}, {'burst_every': 0, 'initial_steps': 3}):
        with pytest.raises(UserError, match='choose midpoint'):
            Learner(policy, replace(QUICK, algorithm=InterleavedConfig(**options)))
    Learner(policy, replace(QUICK, algorithm=InterleavedConfig(burst_every=0)))


def test_bursts_come_when_they_are_due(make_policy, make_rollout):
    algorithm = InterleavedConfig(
        epochs=1, samples_per_action=2, burst_every=2, burst_steps=2, initial_steps=3
    )
    settings = replace(QUICK, algorithm=algorithm, critic_warmup_updates=1)
    learner = Learner(make_policy(), settings)
    rows = []
    for _ in range(4):
        policy = learner.behaviour(learner.version)
        rows.append(learner.update(make_rollout(policy, version=learner.version)))
    # The initial stage in update 0 makes a version although the critic alone warms up.
    assert ['self_distillation_loss' in r for r in rows] == [True, False, True, False]
    assert [r['version'] for r in rows] == [1, 2, 3, 4]
    without = replace(settings, algorithm=replace(algorithm, initial_steps=0))
    row = Learner(make_policy(), without).update(make_rollout(make_policy()))
    assert row['version'] == 0 and 'self_distillation_loss' not in row


@pytest.mark.parametrize(
    'options',
    [{'gap_target': -1.0}, {'ratio': 'batch'}, {'regularise': 'some'}, {'anchor': 'demos'}],
)
def test_options_that_do_not_exist_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        DipodConfig(**options)


@pytest.mark.parametrize('name', ['burst_steps', 'burst_every', 'initial_steps'])
def test_negative_bursts_are_refused(name):
    with pytest.raises(UserError, match=name):
        InterleavedConfig(**{name: -1})


def test_bfloat16_gives_the_same_losses_to_its_precision(make_policy, make_rollout):
    policy = make_policy(width=64)
    generator = torch.Generator().manual_seed(0)
    o, a = torch.randn(64, 2, generator=generator), torch.randn(64, 2, generator=generator)
    samples = PathSamples(torch.rand(64, 4, generator=generator), torch.randn(64, 4, 2))
    exact = cfm_loss(policy, a, o, samples)
    with autocast('bfloat16'):
        rough = cfm_loss(policy, a, o, samples)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
    settings = replace(QUICK, algorithm=replace(QUICK.algorithm, precision='bfloat16', epochs=1))
    row = Learner(make_policy(), settings).update(make_rollout(make_policy(), episodes=64))
    assert row['version'] == 1 and np.isfinite(row['policy_loss'])


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match='precision'):
        DipodConfig(precision='float8')


@pytest.mark.parametrize('q_critic', [None, QCriticConfig(first_rounds=1, rounds=1, steps=2)])
def test_the_policy_waits_for_the_first_reward_and_the_log_says_so(
    make_policy, make_rollout, assert_same_weights, caplog, q_critic
):
    """An untrained critic's errors look like advantages: they are no reason to move."""
    learner = Learner(make_policy(), replace(QUICK, q_critic=q_critic))
    nothing = make_rollout(make_policy(), reward=lambda chunks: np.zeros(len(chunks)))
    with caplog.at_level(logging.WARNING):
        row = learner.update(nothing)
    assert row['advantage_rms'] > 0 and row['version'] == 0 and 'policy_loss' not in row
    assert 'no decision so far was worth more than another' in caplog.text
    assert_same_weights(learner.policy, make_policy())
    assert learner.update(make_rollout(make_policy()))['version'] == 1
    # Failures alone tell as much, once something is known to succeed.
    again = make_rollout(learner.policy, version=1, reward=lambda chunks: np.zeros(len(chunks)))
    assert learner.update(again)['version'] == 2


def test_without_any_advantage_the_policy_stays(make_policy, make_rollout, assert_same_weights):
    learner = Learner(make_policy(), replace(QUICK, critic=CriticConfig(gae_lambda=0.0, gamma=0.0)))
    for parameter in learner.critic.critic.parameters():
        torch.nn.init.zeros_(parameter)
    rollout = make_rollout(make_policy(), episodes=2, reward=lambda chunks: np.zeros(len(chunks)))
    rollout.returns[0] = 1.0  # earned before the part that is known
    row = learner.update(rollout)
    assert row['advantage_rms'] == 0 and row['version'] == 0 and 'policy_loss' not in row
    assert_same_weights(learner.policy, make_policy())


def test_an_empty_rollout_is_refused(make_policy, make_rollout):
    rollout = make_rollout(make_policy(), episodes=1, length=1)
    names = ('observations', 'noise', 'chunks', 'rewards', 'next_observations', 'terminated')
    empty = {n: getattr(rollout, n)[:0] for n in (*names, 'last', 'version', 'success', 'returns')}
    with pytest.raises(UserError, match='empty'):
        Learner(make_policy(), QUICK).update(replace(rollout, **empty))


def test_a_rollout_of_another_policy_is_refused(make_policy, make_rollout):
    learner = Learner(make_policy(), QUICK)
    for other in (make_policy(observed=3), make_policy(size=3)):
        with pytest.raises(UserError, match='the policy has 2 and 1 x 2'):
            learner.update(make_rollout(other))
