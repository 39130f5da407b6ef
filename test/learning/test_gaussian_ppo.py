# SPDX-License-Identifier: Apache-2.0
"""Gaussian PPO against numbers worked out by hand, and a Gaussian as the flow that it is.

The example: log p - log p_old = (.1, -.3), A = (1.5, -2), clip .2, entropy 3, bonus .01.
    rho A = 1.1051709 * 1.5 = 1.6577564,  min(-.7408182 * 2, -.8 * 2) = -1.6, mean .0288782
    loss = -.0288782 - .03 = -.0588782
"""

import logging
import math
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from method_checks import (  # noqa: E402
    assert_resumes_bit_by_bit,
    bandit_success,
    finite_differences,
    first_pass,
    learner_config,
    run,
)

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms import gaussian_ppo  # noqa: E402
from dipod_ros.learning.algorithms.gaussian_ppo import (  # noqa: E402
    GaussianPolicy,
    GaussianPpoConfig,
    gaussian_ppo_loss,
    gaussian_start,
)
from dipod_ros.learning.health import elbo_gap_nats  # noqa: E402
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402


def test_the_loss_is_the_one_worked_out_by_hand():
    old = torch.tensor([-0.7, 0.2])
    new, advantages = old + torch.tensor([0.1, -0.3]), torch.tensor([1.5, -2.0])
    settings = GaussianPpoConfig(clip=0.2, entropy_bonus=0.01)
    loss, stats = gaussian_ppo_loss(new, old, torch.tensor(3.0), advantages, settings)
    assert loss.item() == pytest.approx(-0.0588782, abs=1e-6)
    assert stats['clip_fraction'] == 0.5 and stats['entropy'] == 3


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    old, change, advantages = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    new = (old + 0.3 * change).requires_grad_(True)
    settings = GaussianPpoConfig(clip=0.2)
    gaussian_ppo_loss(new, old, torch.zeros(()), advantages, settings)[0].backward()
    expected = finite_differences(
        lambda x: gaussian_ppo_loss(x, old, torch.zeros(()), advantages, settings)[0],
        new.detach(),
    )
    torch.testing.assert_close(new.grad, expected, rtol=0, atol=1e-8)
    assert 0 < int((new.grad == 0).sum()) < 8


@pytest.fixture
def gaussian(make_policy):
    """Return a Gaussian over three joints with different stds."""
    policy = GaussianPolicy(make_policy(size=3)).requires_grad_(False)
    policy.log_std.copy_(torch.tensor([0.1, 0.5, 1.5]).log())
    return policy


def test_the_density_is_that_of_what_it_samples(gaussian):
    o, noise = torch.randn(6, 2), torch.randn(6, 3)
    actions = gaussian.sample(o, noise)
    torch.testing.assert_close(actions, gaussian.mean(o) + torch.tensor([0.1, 0.5, 1.5]) * noise)
    exact = torch.distributions.Normal(gaussian.mean(o), torch.tensor([0.1, 0.5, 1.5]))
    torch.testing.assert_close(
        gaussian.log_prob(actions, o), exact.log_prob(actions).sum(-1), rtol=1e-4, atol=1e-4
    )


def test_it_is_as_large_as_the_flow_and_begins_about_its_mean(make_policy):
    """A flow that knows its marginals has v(x, 1; o) = x - E[a | o]; here, of any weights."""
    flow = make_policy(size=3)
    policy = GaussianPolicy(flow)
    counts = [sum(p.numel() for p in x.parameters()) for x in (policy, flow)]
    assert counts[0] == counts[1] + 3
    o = torch.randn(4, 2)
    torch.testing.assert_close(policy.mean(o), -flow.velocity(torch.zeros(4, 3), torch.ones(4), o))


def test_its_velocity_field_transports_noise_to_its_own_actions(gaussian):
    """The flow of a Gaussian maps z at t=1 to mu + sigma z at t=0."""
    o, noise = torch.randn(5, 2), torch.randn(5, 3)
    by_flow = gaussian.sample(o, noise, SamplerSpec('midpoint', 400))
    torch.testing.assert_close(by_flow, gaussian.sample(o, noise), rtol=0, atol=1e-3)
    ends = gaussian.velocity(
        noise.repeat(2, 1), torch.tensor([0.0] * 5 + [1.0] * 5), o.repeat(2, 1)
    )
    assert torch.isfinite(ends).all()


def test_the_bound_of_a_gaussian_is_tight(gaussian):
    observations = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    gap = elbo_gap_nats(
        gaussian, observations, torch.Generator().manual_seed(0), actions=1024, fit_steps=50
    )
    assert gap < 0.02


def test_the_start_imitates_mean_and_spread_of_the_flow(make_policy, make_rollout):
    flow = make_policy(size=3, observed=2)
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(500, 2, generator=generator)
    start = gaussian_start(flow, observations, steps=300)
    o = observations[:8].repeat_interleave(2000, 0)
    with torch.no_grad():
        actions = flow.sample(o, torch.randn(len(o), 3, generator=generator)).reshape(8, 2000, 3)
        mean, before = start.mean(observations[:8]), GaussianPolicy(flow).mean(observations[:8])
    error = (mean - actions.mean(1)).square().mean().sqrt()
    assert error < 0.05 and error < (before - actions.mean(1)).square().mean().sqrt()
    spread = (actions - actions.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    torch.testing.assert_close(start.log_std.exp(), spread, rtol=0.1, atol=0.0)


def test_the_start_depends_on_its_seed_alone(make_policy, assert_same_weights):
    flow, observations = make_policy(), torch.randn(50, 2)
    first = gaussian_start(flow, observations, 3, steps=5)
    torch.manual_seed(11)
    assert_same_weights(first, gaussian_start(flow, observations, 3, steps=5))
    with pytest.raises(AssertionError):
        assert_same_weights(first, gaussian_start(flow, observations, 4, steps=5))


def test_a_flow_given_to_the_learner_is_imitated_and_said_so(
    make_policy, gaussian, caplog, monkeypatch
):
    monkeypatch.setattr(gaussian_ppo, 'gaussian_start', partial(gaussian_start, steps=3))
    method = GaussianPpoConfig().build()
    own = method.start(gaussian)
    assert own is not gaussian and torch.equal(own.log_std, gaussian.log_std)
    assert own.log_std.requires_grad and not gaussian.log_std.requires_grad
    with caplog.at_level(logging.WARNING):
        converted = method.start(make_policy())
    assert isinstance(converted, GaussianPolicy) and 'gaussian_start' in caplog.text


def test_it_acts_and_is_copied_like_a_flow_but_has_no_checkpoint(gaussian, tmp_path):
    o, noise = (np.random.default_rng(0).normal(size=(4, n)).astype(np.float32) for n in (2, 3))
    chunks = gaussian.act(o, noise)
    assert chunks.shape == (4, 1, 3)
    np.testing.assert_array_equal(gaussian.clone().act(o, noise), chunks)
    with pytest.raises(UserError, match='no checkpoint'):
        gaussian.save(tmp_path / 'policy')


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_first_pass_is_on_policy(gaussian, make_rollout, precision):
    row = first_pass(make_rollout, gaussian, GaussianPpoConfig(precision=precision))
    assert row['ratio_mean'] == pytest.approx(1.0, abs=1e-5)
    assert row['clip_fraction'] == 0 and row['gradient_norm'] > 0
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * s * s) for s in (0.1, 0.5, 1.5))
    assert row['entropy'] == pytest.approx(entropy, abs=1e-5)
    assert math.isfinite(row['cfm_own']) and row['collapsed'] == 0
    assert 'elbo_gap_nats' not in row


def test_an_entropy_bonus_widens_it(gaussian, make_rollout):
    change = []
    for bonus in (0.0, 1.0):
        settings = GaussianPpoConfig(epochs=10, learning_rate=3e-3, entropy_bonus=bonus)
        rows = run(Learner(gaussian, learner_config(settings)), make_rollout, 3)
        change.append(rows[-1]['entropy'] - rows[0]['entropy'])
    assert change[1] > change[0] + 0.3


def test_learning_raises_the_probability_of_the_rewarded_action(make_policy, make_rollout):
    policy = GaussianPolicy(make_policy(observed=1))
    settings = GaussianPpoConfig(epochs=10, learning_rate=2e-3)
    start, end = bandit_success(make_rollout, policy, settings)
    assert start < 0.6 and end > 0.85


def test_a_resumed_run_goes_on_bit_by_bit(make_policy, make_rollout, tmp_path):
    def make_start(seed):
        return GaussianPolicy(make_policy(seed))

    settings = GaussianPpoConfig(epochs=3, minibatches=2, entropy_bonus=0.01)
    assert_resumes_bit_by_bit(make_rollout, make_start, settings, tmp_path / 'state')


@pytest.mark.parametrize(
    'options', [{'clip': 0.0}, {'entropy_bonus': -0.1}, {'entropy_bonus': math.nan}, {'epochs': 0}]
)
def test_settings_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        GaussianPpoConfig(**options)
