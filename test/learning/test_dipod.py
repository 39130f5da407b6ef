# SPDX-License-Identifier: Apache-2.0
"""The DiPOD loss against numbers worked out by hand, and its gradient against differences.

The example: ell_old = ((1, 1), (2, 2)), ell = ((.9, .5), (2.3, 1.9)), A = (1.5, -2), clip .2.
    rho = e^.1, e^.5, e^-.3, e^.1 = 1.1051709, 1.6487213, .7408182, 1.1051709
    PPO:  A=1.5: 1.6577564, clipped 1.2 * 1.5 = 1.8
          A=-2:  min(-1.4816364, -.8 * 2) = -1.6,  -2.2103418
          mean of (1.6577564, 1.8, -1.6, -2.2103418) = -.0881464
    SPO:  -1.4816364 - 5 * .2591818^2 = -1.8175125,  -2.2103418 - 5 * .1051709^2 = -2.2656464
          mean of (1.6577564, 1.8, -1.8175125, -2.2656464) = -.1563506
    mean of ell = 1.4
"""

import math

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.base import Batch, run_epochs  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig, dipod_loss  # noqa: E402
from dipod_ros.policy.path import cfm_loss, draw_path_samples  # noqa: E402

ELL_OLD = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
ELL = torch.tensor([[0.9, 0.5], [2.3, 1.9]])
ADVANTAGES = torch.tensor([1.5, -2.0])


def config(**options):
    return DipodConfig(**({'beta': 0.0, 'clip': 0.2} | options))


def gradient(ell, ell_old, advantages, settings):
    ell = ell.clone().requires_grad_(True)
    dipod_loss(ell, ell_old, advantages, settings)[0].backward()
    return ell.grad


@pytest.mark.parametrize(
    ('region', 'beta', 'expected'),
    [
        ('ppo', 0.0, 0.0881464),
        ('aspo', 0.0, 0.1563506),
        ('ppo', 0.5, 0.0881464 + 0.5 * 1.4),
        ('aspo', 0.1, 0.1563506 + 0.1 * 1.4),
    ],
)
def test_the_loss_is_the_one_worked_out_by_hand(region, beta, expected):
    settings = config(trust_region=region, beta=beta)
    loss, stats = dipod_loss(ELL, ELL_OLD, ADVANTAGES, settings)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    # e^.5 > 1.2 at A > 0 and e^-.3 < .8 at A < 0, but not e^.1 at A < 0; ASPO cuts none at A < 0.
    assert stats['clip_fraction'] == (0.5 if region == 'ppo' else 0.25)
    assert stats['ratio_mean'] == pytest.approx(
        (2 * math.exp(0.1) + math.exp(0.5) + math.exp(-0.3)) / 4
    )
    assert stats['cfm_loss'] == pytest.approx(1.4)


def test_clipped_samples_give_no_policy_gradient_but_are_still_regularised():
    """PPO: d/d ell of -rho A / 4 is +rho A / 4 inside the clip, 0 outside; beta adds beta / 4."""
    expected = torch.tensor([[math.exp(0.1) * 1.5, 0.0], [0.0, math.exp(0.1) * -2.0]])
    for beta in (0.0, 0.4):
        actual = gradient(ELL, ELL_OLD, ADVANTAGES, config(beta=beta))
        torch.testing.assert_close(actual, (expected + beta) / 4)


def test_aspo_pulls_the_ratio_of_bad_actions_back_to_one():
    """SPO: d/d rho (rho A - |A| / (2 c) (rho - 1)^2) vanishes at rho = 1 - c, A < 0."""
    for rho, sign in ((0.8, 0), (0.7, -1), (0.9, 1)):
        ell = torch.tensor([[-math.log(rho)]])
        # Positive A d psi / d rho lowers ell, that is, the gradient of the loss has its sign.
        actual = gradient(ell, torch.zeros(1, 1), torch.tensor([-1.0]), config(trust_region='aspo'))
        if sign == 0:
            assert abs(actual.item()) < 1e-6
        else:
            assert actual.item() * -sign > 0.1


@pytest.mark.parametrize('region', ['ppo', 'aspo'])
@pytest.mark.parametrize('beta', [0.0, 0.3])
def test_the_gradient_is_that_of_finite_differences(region, beta):
    generator = torch.Generator().manual_seed(0)
    ell_old = torch.rand(6, 5, generator=generator, dtype=torch.float64) * 2
    ell = ell_old + 0.3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    settings = config(trust_region=region, beta=beta, log_ratio_max=50.0)
    actual = gradient(ell, ell_old, advantages, settings)
    h = 1e-6
    for i in range(6):
        for j in range(5):
            step = torch.zeros_like(ell)
            step[i, j] = h
            high = dipod_loss(ell + step, ell_old, advantages, settings)[0]
            low = dipod_loss(ell - step, ell_old, advantages, settings)[0]
            assert actual[i, j].item() == pytest.approx(float(high - low) / (2 * h), abs=1e-8)


@pytest.mark.parametrize('region', ['ppo', 'aspo'])
def test_on_policy_the_direction_is_advantage_plus_beta(region):
    """At ell = ell_old the loss falls along -(A + beta) grad ell: the direction of the paper."""
    actual = gradient(ELL_OLD, ELL_OLD, ADVANTAGES, config(trust_region=region, beta=0.3))
    expected = (ADVANTAGES + 0.3)[:, None].expand(2, 2) / 4
    torch.testing.assert_close(actual, expected)


def test_on_policy_that_holds_down_to_the_weights(make_policy):
    policy = make_policy()
    generator = torch.Generator().manual_seed(0)
    actions, observations = (torch.randn(8, 2, generator=generator) for _ in range(2))
    advantages = torch.randn(8, generator=generator)
    samples = draw_path_samples(8, 4, 2, generator)
    ell = cfm_loss(policy, actions, observations, samples)
    loss, _ = dipod_loss(ell, ell.detach(), advantages, config(beta=0.2))
    weighted = ((advantages + 0.2)[:, None] * ell).mean()
    weights = list(policy.net.parameters())
    actual = torch.autograd.grad(loss, weights, retain_graph=True)
    expected = torch.autograd.grad(weighted, weights)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_beta_zero_is_fpo_plus_plus():
    """max E[min(rho A, clip(rho) A)] with a ratio per sample, written out again."""
    generator = torch.Generator().manual_seed(3)
    ell_old, ell = (torch.rand(7, 4, generator=generator) for _ in range(2))
    advantages = torch.randn(7, generator=generator)
    objective = []
    for b in range(7):
        for s in range(4):
            rho, a = math.exp(ell_old[b, s] - ell[b, s]), advantages[b].item()
            objective.append(min(rho * a, min(max(rho, 0.8), 1.2) * a))
    loss, _ = dipod_loss(ell, ell_old, advantages, config())
    assert loss.item() == pytest.approx(-sum(objective) / len(objective), abs=1e-6)


def test_the_log_ratio_is_bounded_and_its_gradient_is_not_cut():
    """ell_old - ell = 5 counts as 3: the loss at A=-1 is e^3, its slope -e^3, not 0."""
    ell, ell_old, advantages = torch.zeros(1, 1), torch.full((1, 1), 5.0), torch.tensor([-1.0])
    loss, _ = dipod_loss(ell, ell_old, advantages, config(log_ratio_max=3.0))
    assert loss.item() == pytest.approx(math.exp(3))
    slope = gradient(ell, ell_old, advantages, config(log_ratio_max=3.0))
    assert slope.item() == pytest.approx(-math.exp(3))
    # Below there is no bound, for exp() goes to 0 by itself.
    loss, _ = dipod_loss(ell_old, ell, torch.tensor([1.0]), config(log_ratio_max=3.0))
    assert loss.item() == pytest.approx(-math.exp(-5))


@pytest.mark.parametrize(
    'options',
    [
        {'trust_region': 'kl'},
        {'beta': -0.1},
        {'epochs': 0},
        {'minibatches': 0},
        {'samples_per_action': 0},
        {'clip': 0.0},
        {'learning_rate': -1e-3},
        {'max_grad_norm': 0.0},
        {'log_ratio_max': 0.0},
        {'beta': math.nan},
        {'learning_rate': math.nan},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        DipodConfig(**options)


@pytest.fixture
def update(make_policy):
    """Return a function that updates a fresh policy and returns it with its statistics."""

    def run(scale=1.0, advantages=None, optimizer=torch.optim.Adam, rate=1e-3, **options):
        policy = make_policy()
        generator = torch.Generator().manual_seed(0)
        actions, observations = (torch.randn(32, 2, generator=generator) for _ in range(2))
        if advantages is None:
            advantages = torch.randn(32, generator=generator)
        samples = draw_path_samples(32, 4, 2, generator)
        with torch.no_grad():
            ell_old = cfm_loss(policy, actions, observations, samples)
        memory = {'t': samples.t, 'eps': samples.eps, 'ell_old': ell_old}
        stats = run_epochs(
            config(**options).build(),
            policy,
            optimizer(policy.net.parameters(), lr=rate),
            Batch(observations, actions, torch.zeros(32, 2), advantages * scale, memory),
            torch.Generator().manual_seed(1),
        )
        with torch.no_grad():
            ell = cfm_loss(policy, actions, observations, samples)
        return policy, stats, (ell - ell_old).mean(1), advantages

    return run


def test_good_actions_gain_evidence_and_bad_ones_lose_it(update):
    _, _, change, advantages = update(epochs=10, clip=0.5)
    assert change[advantages > 0.5].mean() < -0.02
    assert change[advantages < -0.5].mean() > 0.02


def test_beta_keeps_the_loss_on_own_actions_down(update):
    """With every action bad, FPO++ spoils the bound of all of them; the regulariser holds it."""
    bad = -torch.ones(32) + 0.5 * torch.randn(32, generator=torch.Generator().manual_seed(9))
    plain = update(advantages=bad, epochs=10, clip=0.5)[2].mean()
    held = update(advantages=bad, epochs=10, clip=0.5, beta=5.0)[2].mean()
    assert plain > 0.05 and held < 0


def test_advantages_count_relative_to_their_spread(update, assert_same_weights):
    first = update(epochs=2)[0]
    policy, stats, _, _ = update(scale=64.0, epochs=2)
    # A power of two: the division by the root mean square is exact but for the 1e-8.
    for a, b in zip(first.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_advantages_are_not_centred(update):
    """A batch of failures must not look half good: all A < 0, and every action loses evidence."""
    bad = -torch.ones(32) - torch.rand(32, generator=torch.Generator().manual_seed(9))
    assert update(advantages=bad, epochs=10, clip=0.5)[2].mean() > 0.05


def test_the_first_pass_is_on_policy(update):
    _, stats, _, advantages = update(epochs=1, minibatches=1)
    assert stats['ratio_mean'] == pytest.approx(1.0, abs=1e-6)
    assert stats['clip_fraction'] == 0
    expected = -(advantages / advantages.square().mean().sqrt()).mean().item()
    assert stats['policy_loss'] == pytest.approx(expected, abs=1e-5)


def test_the_gradient_is_clipped_by_norm(update, make_policy):
    """One plain gradient step of rate 1 moves the weights by max_grad_norm and no more."""
    policy, stats, _, _ = update(
        optimizer=torch.optim.SGD, rate=1.0, epochs=1, minibatches=1, max_grad_norm=0.01
    )
    assert stats['gradient_norm'] > 0.01
    moved = [
        (a - b).detach().square().sum()
        for a, b in zip(policy.parameters(), make_policy().parameters(), strict=True)
    ]
    assert float(sum(moved)) ** 0.5 == pytest.approx(0.01, rel=1e-3)


def test_the_normaliser_never_moves(update, make_policy):
    trained, fresh = update(epochs=3)[0], make_policy()
    for a, b in zip(trained.normalizer.buffers(), fresh.normalizer.buffers(), strict=True):
        assert torch.equal(a, b)


def test_an_update_repeats_bit_by_bit(update, assert_same_weights):
    assert_same_weights(update(epochs=2)[0], update(epochs=2)[0])
