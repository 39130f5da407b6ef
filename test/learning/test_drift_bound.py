# SPDX-License-Identifier: Apache-2.0
"""The bound in nats, against the density where it is tight and against its integral where not."""

import math

import pytest
from scipy.integrate import quad

torch = pytest.importorskip('torch')

from drift_flows import gaussian_policy, rng, train, two_modes  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.drift.bound import elbo, stratified_path_samples  # noqa: E402
from dipod_ros.learning.drift.likelihood import (  # noqa: E402
    executed_log_likelihood,
    ode_log_likelihood,
)
from dipod_ros.learning.drift.report import executed_gap  # noqa: E402
from dipod_ros.learning.health import elbo_gap_nats  # noqa: E402
from dipod_ros.policy.path import T_MAX, T_MIN  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

EXACT = SamplerSpec('midpoint', 40)


def drawn(mu, s, size, count=256):
    a = mu + s * torch.randn(count, size, generator=rng(), dtype=torch.float64)
    return torch.zeros(count, 2, dtype=torch.float64), a


def expected_gap(s, wrong):
    """int (1-t)/t wrong^2 E x_t^2 dt per dimension, mu = 0, actions of N(0, s^2)."""

    def integrand(t):
        return (1 - t) / t * wrong**2 * ((1 - t) ** 2 * s**2 + t**2)

    return quad(integrand, T_MIN, T_MAX, limit=200)[0]


@torch.no_grad()
@pytest.mark.parametrize(('mu', 's', 'size'), [(0.3, 0.5, 1), (-0.8, 0.2, 2), (0.0, 1.4, 5)])
def test_for_the_exact_flow_of_a_gaussian_the_bound_is_the_log_density(make_policy, mu, s, size):
    policy = gaussian_policy(make_policy, mu, s, size)
    o, a = drawn(mu, s, size)
    bound = sum(elbo(policy, o, a, 512, rng(i)) for i in range(4)) / 4
    density = torch.distributions.Normal(mu, s).log_prob(a).sum(-1)
    assert float((density - bound).mean()) == pytest.approx(0, abs=0.02)
    # The constants of each action too, not of the mean alone.
    assert (density - bound).abs().max() < 0.3 * size**0.5


@torch.no_grad()
@pytest.mark.parametrize('wrong', [0.2, 0.5, -0.5])
def test_a_wrong_velocity_lowers_the_bound_by_its_weighted_square(make_policy, wrong):
    s, size = 0.5, 2
    policy = gaussian_policy(make_policy, 0.0, s, size, wrong)
    o, a = drawn(0.0, s, size, count=16384)
    # Without the density: a ~ N(0, s^2) is not what the wrong flow samples.
    tight = torch.distributions.Normal(0, s).log_prob(a).sum(-1)
    gap = float((tight - elbo(policy, o, a, 64, rng())).mean())
    # The standard error of 16384 actions is below .01 nats (std 1.14 at wrong = .5).
    assert gap == pytest.approx(size * expected_gap(s, wrong), abs=0.03)


def test_the_gap_of_own_actions_is_zero_when_tight_and_grows_with_the_error(make_policy):
    o = torch.zeros(8, 2, dtype=torch.float64)
    gaps = []
    for wrong in (0.0, 0.3, 0.8):
        policy = gaussian_policy(make_policy, 0.0, 0.5, 1, wrong, sampler=EXACT)
        noise = torch.randn(1024, 1, generator=rng(3), dtype=torch.float64)
        wide = o[:1].expand(1024, 2)
        actions, log_prob = executed_log_likelihood(policy, wide, noise)
        with torch.no_grad():
            gaps.append(float((log_prob - elbo(policy, wide, actions, 256, rng())).mean()))
    assert gaps[0] == pytest.approx(0, abs=0.02)
    assert gaps[0] + 0.03 < gaps[1] < gaps[2] / 2


def test_on_own_samples_the_bound_is_below_the_likelihood(make_policy):
    """In expectation: the gap is a KL divergence plus an expected one, both >= 0."""
    policy = train(make_policy(size=1, sampler=EXACT), two_modes)
    o = torch.randn(1024, 2, generator=rng())
    a = policy.sample(o, torch.randn(1024, 1, generator=rng(2))).detach()
    gap = ode_log_likelihood(policy, o, a, 25) - elbo(policy, o, a, 128, rng(3)).detach()
    assert -0.02 < float(gap.mean()) < 0.5


def test_the_likelihood_free_gap_agrees_with_the_exact_one_in_one_dimension(linear_flow):
    """v = k x, far from the exact velocity of its own samples: both find the same nats."""
    policy = linear_flow(torch.tensor([[-0.8]]), steps=40)
    o = torch.randn(256, 2, generator=rng())
    exact = executed_gap(policy, o, rng(2), actions=2048)
    assert exact.error < 0.05 * exact.mean
    fitted = elbo_gap_nats(policy, o, rng(3), actions=4096, fit_steps=600)
    assert fitted == pytest.approx(exact.mean, rel=0.2)
    assert fitted < exact.mean + 3 * exact.error + 0.02  # from below


@torch.no_grad()
def test_stratified_draws_are_unbiased_and_less_noisy_than_plain_ones(make_policy):
    policy = gaussian_policy(make_policy, 0.0, 0.5, 3, wrong=0.4)
    o, a = drawn(0.0, 0.5, 3, count=64)
    estimates = torch.stack([elbo(policy, o, a, 16, rng(i)) for i in range(200)])
    truth = sum(elbo(policy, o, a, 1024, rng(1000 + i)) for i in range(8)) / 8
    error = estimates.mean(0) - truth
    assert float(error.mean()) == pytest.approx(0, abs=0.03)
    # One plain draw has std span * sqrt(2 D) ~ 26 near the action, so 16 have about 5.
    assert estimates.std(0).mean() < 2.5


def test_draws_cover_every_stratum_with_a_pair_of_either_sign():
    draws = stratified_path_samples(5, 8, 3, rng())
    assert draws.t.shape == (5, 8) and draws.eps.shape == (5, 8, 3)
    torch.testing.assert_close(draws.eps[:, ::2], -draws.eps[:, 1::2])
    torch.testing.assert_close(draws.t[:, ::2], draws.t[:, 1::2])
    share = (torch.logit(draws.t) - math.log(T_MIN / (1 - T_MIN))) / (
        2 * math.log(T_MAX / (1 - T_MAX))
    )
    assert torch.equal((share[:, ::2] * 4).floor().long(), torch.arange(4).expand(5, 4))
    even = stratified_path_samples(5, 8, 3, rng(), logit=False).t
    assert torch.equal(
        ((even[:, ::2] - T_MIN) / (T_MAX - T_MIN) * 4).floor().long(), torch.arange(4).expand(5, 4)
    )


def test_the_same_generator_gives_the_same_bound_and_chunks_do_not_matter(make_policy, monkeypatch):
    policy = make_policy()
    o, a = torch.randn(40, 2, generator=rng()), torch.randn(40, 2, generator=rng(2))
    with torch.no_grad():
        whole = elbo(policy, o, a, 16, rng(5))
        monkeypatch.setattr('dipod_ros.learning.drift.bound.EVALUATIONS', 48)
        torch.testing.assert_close(elbo(policy, o, a, 16, rng(5)), whole)
    torch.testing.assert_close(elbo(policy, o, a, 16, rng(5)).detach(), whole)


def test_the_gradient_of_the_bound_is_that_of_the_loss_it_holds(make_policy):
    """Constants and control variates do not reach the weights."""
    policy = make_policy().double()
    o = torch.randn(40, 2, generator=rng(), dtype=torch.float64)
    a = torch.randn(40, 2, generator=rng(2), dtype=torch.float64)
    weights = list(policy.net.parameters())
    found = torch.autograd.grad(elbo(policy, o, a, 8, rng(3)).sum(), weights)
    draws = stratified_path_samples(40, 8, 2, rng(3), torch.float64)
    x_t = (1 - draws.t[..., None]) * a[:, None] + draws.t[..., None] * draws.eps
    v = policy.velocity(x_t.reshape(-1, 2), draws.t.reshape(-1), o.repeat_interleave(8, 0))
    square = (v.reshape(40, 8, 2) - (draws.eps - a[:, None])).square().sum(-1)
    span = 2 * math.log(T_MAX / (1 - T_MAX))
    plain = -(span * (1 - draws.t) ** 2 * square).mean(-1).sum()
    for g, h in zip(found, torch.autograd.grad(plain, weights), strict=True):
        torch.testing.assert_close(g, h)


@pytest.mark.parametrize('samples', [0, 1, 7])
def test_an_odd_number_of_samples_is_refused(make_policy, samples):
    with pytest.raises(UserError, match='even number'):
        elbo(make_policy(), torch.zeros(1, 2), torch.zeros(1, 2), samples)


def test_wrong_shapes_are_named(make_policy):
    with pytest.raises(UserError, match=r'actions must have shape \[B, 2\]'):
        elbo(make_policy(), torch.zeros(1, 2), torch.zeros(1, 3))
