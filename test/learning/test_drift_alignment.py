# SPDX-License-Identifier: Apache-2.0
"""Cosines of gradients: where they are known, and that noise is neither hidden nor invented."""

import math

import pytest

torch = pytest.importorskip('torch')

from drift_flows import gaussian_policy, rng, train, two_modes  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.drift.alignment import (  # noqa: E402
    corrected_cosine,
    gradient_alignment,
    policy_gradient,
)
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402


def noisy(direction, groups, noise, seed=0):
    """Estimates of one direction [P] with noise of that norm, relative to the direction's."""
    draws = torch.randn(groups, len(direction), generator=rng(seed))
    return direction + noise * direction.norm() * draws / len(direction) ** 0.5


def vectors(angle, size=400):
    first, second = torch.zeros(size), torch.zeros(size)
    first[0], second[0], second[1] = 3.0, math.cos(angle), math.sin(angle)
    return first, second


@pytest.mark.parametrize('angle', [0.0, 0.9, math.pi / 2, math.pi])
def test_a_cosine_is_found_below_noise_that_hides_it(angle):
    p, t = vectors(angle)
    found = corrected_cosine(noisy(p, 16, 2.0), noisy(t, 16, 2.0, seed=1))
    assert found.value == pytest.approx(math.cos(angle), abs=4 * found.error)
    assert found.error < 0.15
    # 1 / (1 + 2^2 / 16)
    assert found.reliability_proxy == pytest.approx(0.8, abs=0.1)
    assert found.norm_ratio == pytest.approx(3, rel=0.1) and found.note == ''
    if angle == 0:
        assert found.raw < 0.9  # what it looks like without the correction


def test_two_groups_are_the_split_half():
    p, t = (noisy(v, 2, 0.5, seed=i) for i, v in enumerate(vectors(0.5)))
    cross = (p[0] @ t[1] + p[1] @ t[0]) / 2
    expected = cross / torch.sqrt((p[0] @ p[1]) * (t[0] @ t[1]))
    found = corrected_cosine(p, t)
    assert found.value == pytest.approx(float(expected), rel=1e-5)
    mean_p, mean_t = p.mean(0), t.mean(0)
    assert found.raw == pytest.approx(float(torch.cosine_similarity(mean_p, mean_t, dim=0)))
    assert math.isnan(found.error)  # two groups have none


def test_noise_that_two_gradients_share_is_no_alignment():
    """The same noise in both makes the raw cosine high; the corrected one is not fooled."""
    p, t = vectors(math.pi / 2)
    shared = 6 * torch.randn(32, 400, generator=rng()) / 20
    found = corrected_cosine(p + shared, 3 * t + shared)
    assert found.raw > 0.08 and found.value == pytest.approx(0, abs=max(4 * found.error, 0.05))


def test_a_gradient_without_signal_gives_no_number():
    """Of many draws of pure noise half have no positive product: those say so."""
    silent = 0
    for seed in range(20):
        p = torch.randn(8, 400, generator=rng(seed))
        found = corrected_cosine(p, noisy(vectors(0.0)[0], 8, 0.5, seed))
        assert 0 <= found.reliability_proxy < 0.6
        if found.reliability_proxy == 0:
            silent += 1
            assert math.isnan(found.value) and math.isnan(found.error)
            assert 'no signal in the surrogate gradient' in found.note
    assert 4 <= silent <= 16


@pytest.fixture(scope='module')
def tight(make_policy):
    """A flow that fits its actions, two modes moved by the observation."""
    return train(make_policy(size=1, sampler=SamplerSpec('midpoint', 20)), two_modes)


def own_actions(policy, count, seed=1):
    o = torch.randn(count, 2, generator=rng(seed))
    with torch.no_grad():
        return o, policy.sample(o, torch.randn(count, 1, generator=rng(seed + 100)))


def test_training_follows_the_policy_gradient_of_a_tight_gaussian_exactly(make_policy):
    """With the exact v* the bound is the log-density, in its two parameters as well.

    d/d mu and d/d log s of log N(a; mu, s^2) are (a - mu)/s^2 and ((a - mu)/s)^2 - 1.
    """
    policy = gaussian_policy(make_policy, mu=0.3, s=0.5)
    a = 0.3 + 0.5 * torch.randn(1024, 1, generator=rng(), dtype=torch.float64)
    o = torch.zeros(1024, 2, dtype=torch.float64)
    advantage = (a[:, 0] - 0.3) + (a[:, 0] - 0.3) ** 2
    score = torch.stack([(a[:, 0] - 0.3) / 0.25, ((a[:, 0] - 0.3) / 0.5) ** 2 - 1])
    expected = (advantage * score).mean(1)
    true = policy_gradient(policy, o, a, advantage, 'true', steps=40)
    torch.testing.assert_close(true, expected, rtol=1e-3, atol=1e-3)
    proxy = policy_gradient(policy, o, a, advantage, 'elbo', rng(), samples=256)
    assert torch.cosine_similarity(proxy, true, dim=0) > 0.99
    found = gradient_alignment(policy, o, a, advantage, rng(2))
    assert found.elbo.value == pytest.approx(1, abs=max(0.05, 4 * found.elbo.error))
    assert found.elbo.reliability_true > 0.9


def test_a_tight_network_is_aligned_and_signs_follow_the_advantage(tight):
    o, a = own_actions(tight, 512)
    advantage = torch.tanh(a[:, 0])
    found = gradient_alignment(tight, o, a, advantage, rng())
    assert found.elbo.value > 0.5 and found.cfm.value > 0.5
    assert found.elbo.reliability_true > 0.5 and found.elbo.note == ''
    # Both gradients turn round, so their cosine stays; against the other's it changes sign.
    negated = gradient_alignment(tight, o, a, -advantage, rng())
    assert negated.elbo.value == pytest.approx(found.elbo.value, abs=1e-4)
    for kind in ('elbo', 'cfm', 'true'):
        there, back = (
            policy_gradient(tight, o, a, x, kind, rng(3)) for x in (advantage, -advantage)
        )
        torch.testing.assert_close(back, -there)
        if kind == 'true':
            continue
        truth = torch.stack(
            [policy_gradient(tight, *half, 'true') for half in halves(o, a, advantage)]
        )
        proxy = torch.stack(
            [policy_gradient(tight, *half, kind, rng(4)) for half in halves(o, a, -advantage)]
        )
        assert corrected_cosine(proxy, truth).value < -0.5


def halves(*tensors):
    return list(zip(*(t.chunk(2) for t in tensors), strict=True))


def test_random_advantages_leave_no_signal(tight):
    """The raw cosine is high all the same: both gradients hold the same random numbers."""
    o, a = own_actions(tight, 1024)
    random = torch.randn(1024, generator=rng(9))
    found = gradient_alignment(tight, o, a, random, rng())
    real = gradient_alignment(tight, o, a, torch.tanh(a[:, 0]), rng())
    assert found.elbo.reliability_true < 0.5 < real.elbo.reliability_true
    assert found.elbo.raw > 0.5
    value = found.elbo.value
    assert math.isnan(value) or math.isnan(found.elbo.error) or abs(value) < 4 * found.elbo.error


def test_all_zero_advantages_are_flagged(tight):
    o, a = own_actions(tight, 32)
    found = gradient_alignment(tight, o, a, torch.zeros(32), rng())
    assert math.isnan(found.elbo.value) and math.isnan(found.cfm.raw)
    assert 'all advantages are zero' in found.elbo.note


def test_decisions_of_one_episode_stay_in_one_group(tight):
    """Copies of a decision are no independent evidence, unless one says they are."""
    o, a = (x.repeat_interleave(16, 0) for x in own_actions(tight, 16))
    random = torch.randn(16, generator=rng(5)).repeat_interleave(16)
    episodes = torch.arange(16).repeat_interleave(16)
    apart = gradient_alignment(tight, o, a, random, rng())
    together = gradient_alignment(tight, o, a, random, rng(), episodes=episodes)
    assert apart.elbo.reliability_true > 0.7 > together.elbo.reliability_true


def test_the_policy_is_left_as_it_was(tight, assert_same_weights):
    before = tight.clone()
    state = torch.get_rng_state()
    o, a = own_actions(before, 32)
    gradient_alignment(before, o, a, torch.ones(32), rng(), steps=3)
    assert_same_weights(before, tight)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(w.requires_grad for w in before.net.parameters())


@pytest.mark.parametrize(
    ('advantages', 'options', 'reason'),
    [
        (torch.full((32,), math.nan), {}, 'not finite'),
        (torch.zeros(31), {}, r'advantages must have shape \[32\], got \[31\]'),
        (torch.zeros(32, 1), {}, r'got \[32, 1\]'),
        (torch.zeros(32), {'episodes': torch.zeros(31)}, 'episodes must have shape'),
        (torch.zeros(32), {'episodes': torch.zeros(32)}, '8 groups of 1 episodes'),
        (torch.zeros(32), {'groups': 1}, 'at least 2 groups'),
    ],
)
def test_bad_input_is_one_clear_line(tight, advantages, options, reason):
    o, a = own_actions(tight, 32)
    with pytest.raises(UserError, match=reason):
        gradient_alignment(tight, o, a, advantages, rng(), **options)


def test_an_unknown_score_is_named(tight):
    o, a = own_actions(tight, 4)
    with pytest.raises(UserError, match='elbo, cfm or true'):
        policy_gradient(tight, o, a, torch.ones(4), 'likelihood')
