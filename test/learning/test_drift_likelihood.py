# SPDX-License-Identifier: Apache-2.0
"""Likelihoods against closed forms, numerical integrals and finite differences."""

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from drift_flows import gaussian_policy, rng, train, two_modes  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.drift.likelihood import (  # noqa: E402
    executed_log_likelihood,
    ode_log_likelihood,
    velocity_and_divergence,
)
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

EULER, MIDPOINT = SamplerSpec('euler', 4), SamplerSpec('midpoint', 3)


def lively(make_policy, **options):
    """Random weights large enough for a curved flow, in double precision."""
    policy = make_policy(**options).double()
    with torch.no_grad():
        for weight in policy.net.parameters():
            weight.mul_(1.7)
    return policy


def gaussian_log_density(a, mu, s):
    return (-0.5 * ((a - mu) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)).sum(-1)


@pytest.mark.parametrize(('mu', 's', 'size'), [(0.3, 0.5, 1), (-0.8, 0.15, 2), (0.0, 1.4, 3)])
def test_the_exact_flow_of_a_gaussian_has_its_density(make_policy, mu, s, size):
    policy = gaussian_policy(make_policy, mu, s, size)
    a = mu + s * torch.randn(20, size, generator=rng(), dtype=torch.float64)
    found = ode_log_likelihood(policy, torch.zeros(20, 2, dtype=torch.float64), a, steps=100)
    torch.testing.assert_close(found, gaussian_log_density(a, mu, s), atol=1e-4, rtol=0)


def test_a_density_in_one_dimension_integrates_to_one(make_policy):
    policy = train(make_policy(size=1), two_modes)
    grid = torch.linspace(-5, 5, 501)[:, None]
    for o in (-1.0, 0.5):
        density = ode_log_likelihood(policy, torch.full((501, 2), o), grid, 25).exp()
        assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, rel=1e-2)
        # Two modes, each with about half of the mass.
        upper = grid[:, 0] > 0.3 * o
        right = float(torch.trapezoid(density[upper], grid[upper, 0]))
        assert 0.3 < right < 0.7
        assert density[upper].max() > 2 * density[250 + round(15 * o)]


def test_a_density_in_two_dimensions_integrates_to_one(make_policy):
    policy = lively(make_policy, seed=3)
    axis = torch.linspace(-6, 6, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    o = torch.tensor([0.4, -1.0], dtype=torch.float64).expand(len(grid), 2)
    density = ode_log_likelihood(policy, o, grid, steps=16).exp().reshape(61, 61)
    total = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert float(total) == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize('sampler', [EULER, MIDPOINT, SamplerSpec('euler', 1)], ids=str)
def test_the_executed_likelihood_is_the_change_of_variables_by_finite_differences(
    make_policy, sampler
):
    policy = lively(make_policy, size=3, sampler=sampler)
    o = torch.randn(40, 2, generator=rng(), dtype=torch.float64)
    z = torch.randn(40, 3, generator=rng(2), dtype=torch.float64)
    actions, log_prob = executed_log_likelihood(policy, o, z)
    with torch.no_grad():
        torch.testing.assert_close(actions, policy.sample(o, z))
        h = 1e-5
        columns = [
            (policy.sample(o, z + h * e) - policy.sample(o, z - h * e)) / (2 * h)
            for e in torch.eye(3, dtype=torch.float64)
        ]
    jacobian = torch.stack(columns, dim=-1).numpy()
    volume = np.log(np.abs(np.linalg.det(jacobian)))
    density = gaussian_log_density(z, 0.0, 1.0).numpy()
    np.testing.assert_allclose(log_prob.numpy(), density - volume, atol=1e-6)


@pytest.mark.parametrize('sampler', [EULER, MIDPOINT], ids=str)
def test_in_one_dimension_the_executed_density_integrates_to_one_over_its_own_actions(
    make_policy, sampler
):
    """The actions of a fine grid of noise are a grid of actions: no histogram is needed."""
    policy = train(make_policy(size=1, sampler=sampler), two_modes)
    z = torch.linspace(-6, 6, 1501)[:, None]
    actions, log_prob = executed_log_likelihood(policy, torch.full((1501, 2), 0.5), z)
    # A sampler with few steps may fold: then a stretch counts with its length, as its share does.
    length = actions[:, 0].diff().abs()
    density = log_prob.exp()
    total = float((length * (density[1:] + density[:-1]) / 2).sum())
    assert total == pytest.approx(1, rel=1e-2)


def test_many_executed_steps_agree_with_the_ode(make_policy):
    policy = lively(make_policy, seed=2, sampler=SamplerSpec('euler', 300))
    o = torch.randn(16, 2, generator=rng(), dtype=torch.float64)
    z = torch.randn(16, 2, generator=rng(2), dtype=torch.float64)
    actions, executed = executed_log_likelihood(policy, o, z)
    exact = ode_log_likelihood(policy, o, actions, steps=60)
    torch.testing.assert_close(executed, exact, atol=0.03, rtol=0)
    few = policy.with_sampler(SamplerSpec('euler', 4))
    actions, executed = executed_log_likelihood(few, o, z)
    # Few steps are another policy: its own density is not that of the ODE.
    assert (executed - ode_log_likelihood(policy, o, actions)).abs().max() > 0.1


def test_the_divergence_is_the_trace_of_the_jacobian(make_policy):
    policy = lively(make_policy, size=4)
    x = torch.randn(5, 4, generator=rng(), dtype=torch.float64)
    o = torch.randn(5, 2, generator=rng(2), dtype=torch.float64)
    v, divergence = velocity_and_divergence(policy, x, 0.3, o)
    t = torch.full((5,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(v, policy.velocity(x, t, o))
    full = torch.autograd.functional.jacobian(lambda y: policy.velocity(y, t, o), x)
    expected = torch.stack([full[i, :, i].trace() for i in range(5)])
    torch.testing.assert_close(divergence, expected)


def test_the_gradient_in_the_weights_is_that_of_finite_differences(make_policy):
    policy = lively(make_policy, size=2, width=6)
    o = torch.randn(3, 2, generator=rng(), dtype=torch.float64)
    a = torch.randn(3, 2, generator=rng(2), dtype=torch.float64)
    weights = list(policy.net.parameters())

    def total():
        return float(ode_log_likelihood(policy, o, a, steps=6).sum())

    score = ode_log_likelihood(policy, o, a, steps=6, differentiable=True).sum()
    h = 1e-5
    for weight, gradient in zip(weights, torch.autograd.grad(score, weights), strict=True):
        for i in range(0, weight.numel(), 17):
            with torch.no_grad():
                weight.view(-1)[i] += h
                above = total()
                weight.view(-1)[i] -= 2 * h
                below = total()
                weight.view(-1)[i] += h
            expected = (above - below) / (2 * h)
            assert float(gradient.reshape(-1)[i]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_being_asked_for_no_graph_is_kept(make_policy):
    policy = make_policy()
    o, a = torch.zeros(2, 2), torch.zeros(2, 2)
    assert not ode_log_likelihood(policy, o, a, 3).requires_grad
    assert ode_log_likelihood(policy, o, a, 3, differentiable=True).requires_grad
    assert not executed_log_likelihood(policy, o, a)[1].requires_grad


def test_a_sampler_that_draws_noise_on_its_way_is_refused(make_policy):
    policy = make_policy(sampler=SamplerSpec('sde', 4))
    with pytest.raises(UserError, match='use a deterministic sampler'):
        executed_log_likelihood(policy, torch.zeros(1, 2), torch.zeros(1, 8))


@pytest.mark.parametrize(
    ('o', 'a', 'reason'),
    [
        ((3, 1), (3, 2), r'observations must have shape \[B, 2\]'),
        ((3, 2), (3, 5), r'must have shape \[B, 2\], got \[3, 5\]'),
        ((3, 2), (2, 2), '3 and 2'),
        ((0, 2), (0, 2), 'at least one'),
        ((2,), (3, 2), r'got \[2\]'),
    ],
)
def test_wrong_shapes_are_named(make_policy, o, a, reason):
    policy = make_policy()
    for function in (executed_log_likelihood, ode_log_likelihood):
        with pytest.raises(UserError, match=reason):
            function(policy, torch.zeros(o), torch.zeros(a))


def test_no_step_is_too_few(make_policy):
    with pytest.raises(UserError, match='steps must be at least 1'):
        ode_log_likelihood(make_policy(), torch.zeros(1, 2), torch.zeros(1, 2), 0)
