# SPDX-License-Identifier: Apache-2.0
"""The evidence bound holds for the stochastic sampler's density, action by action; not the ODE's.

One action, so that the density of the sampler is found by quadrature instead of samples.
"""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from drift_flows import rng, train, two_modes  # noqa: E402
from scipy.integrate import trapezoid  # noqa: E402
from scipy.interpolate import CubicSpline  # noqa: E402

from dipod_ros.learning.drift.bound import elbo  # noqa: E402
from dipod_ros.learning.drift.likelihood import ode_log_likelihood  # noqa: E402
from dipod_ros.policy.path import T_MAX, T_MIN  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

X = np.linspace(-7.0, 7.0, 1001)
NODES, SHARE = np.polynomial.hermite_e.hermegauss(11)
SHARE = SHARE / SHARE.sum()
REPEATS, SAMPLES = 48, 512


def pushed(density, centre, std):
    """Return the density of centre(x) + std z on X, of x with `density` on X and z ~ N(0, 1).

    `centre` [N] has to rise. Its image has the density over its slope; the noise is a quadrature.
    """
    slope = CubicSpline(X, centre)(X, 1)
    assert slope.min() > 0
    image = CubicSpline(centre, density / slope)
    at = X[:, None] - std * NODES
    inside = (at > centre[0]) & (at < centre[-1])
    return np.where(inside, image(at), 0.0) @ SHARE


@torch.no_grad()
def sde_density(policy, o, steps):
    """Return the density of the ancestral sampler's action on X, in state o [O].

    x_t1 ~ N(0, 1); from t to s < t a draw from q(x_s | x_t, a = x_t - t v), as in
    `test_toys.sde_return`; the action is N(x_t0 / (1-t0), (t0 / (1-t0))^2): the model whose bound
    is `elbo`, in steps even in logit(t) instead of infinitely many.
    """
    times = 1 / (1 + np.exp(-np.linspace(*(math.log(t / (1 - t)) for t in (T_MAX, T_MIN)), steps)))
    x = torch.from_numpy(X)[:, None]
    states = o.expand(len(X), -1)
    density = np.exp(-0.5 * X**2) / math.sqrt(2 * math.pi)
    for t, s in itertools.pairwise(times):
        v = policy.velocity(x, torch.full((len(X),), t, dtype=x.dtype), states)[:, 0].numpy()
        alpha = (1 - t) / (1 - s)
        variance = t**2 - alpha**2 * s**2
        centre = (alpha * s**2 * X + (1 - s) * variance * (X - t * v)) / t**2
        density = pushed(density, centre, math.sqrt(variance) * s / t)
    return pushed(density, X / (1 - T_MIN), T_MIN / (1 - T_MIN))


STATE = torch.tensor([0.5, 0.0], dtype=torch.float64)


def log_density(policy, few=100):
    """Return the log-density on X in infinitely many steps: the error is one over their number."""
    once, twice = (sde_density(policy, STATE, steps) for steps in (few, 2 * few))
    for density in (once, twice):
        assert trapezoid(density, X) == pytest.approx(1, abs=1e-6)
    with np.errstate(divide='ignore', invalid='ignore'):
        return 2 * np.log(twice) - np.log(once)


@torch.no_grad()
def bound_at(policy, actions):
    """Return the bound of actions [N] and its standard error."""
    rows = torch.from_numpy(actions).repeat(REPEATS)[:, None]
    found = elbo(policy, STATE.expand(len(rows), -1), rows, SAMPLES, rng()).unflatten(
        0, (REPEATS, -1)
    )
    return found.mean(0).numpy(), (found.std(0) / REPEATS**0.5).numpy()


@pytest.fixture(scope='module', params=[20, 60], ids='after {} steps'.format)
def flow(request, make_policy):
    """Return a flow that is fitted to two modes badly: its bound is not tight."""
    policy = make_policy(size=1, width=32, sampler=SamplerSpec('sde', 100))
    return train(policy, two_modes, steps=request.param).double()


@pytest.fixture(scope='module')
def density(flow):
    """Return the log-density of the SDE on X."""
    return log_density(flow)


@pytest.fixture(scope='module')
def found(flow, density):
    """Return actions on a grid, log-density of the SDE, bound and its standard error, [N] each."""
    # Where there is as good as no density its logarithm has errors of the quadrature.
    grid = np.flatnonzero(density > math.log(0.02))[::8]
    return X[grid], density[grid], *bound_at(flow, X[grid])


def test_the_density_is_that_of_the_sde_sampler(flow, density):
    """The sampler of policies: 100 steps, even in t, by 10 000 samples."""
    noise = torch.randn(10_000, flow.spec.noise_size, generator=rng(), dtype=torch.float64)
    with torch.no_grad():
        own = flow.sample(STATE.expand(len(noise), -1), noise)[:, 0].numpy()
    share = np.cumsum(np.exp(np.nan_to_num(density, nan=-np.inf))) * (X[1] - X[0])
    sampled = np.searchsorted(np.sort(own), X) / len(own)
    # Kolmogorov's distance of so many samples is below .0163 in 99 of 100 cases.
    assert np.abs(sampled - share).max() < 0.0163 + 0.02


def test_the_bound_is_below_the_log_density_of_the_sde_for_every_action(found):
    actions, density, bound, error = found
    assert len(actions) > 20 and error.max() < 0.02
    # 0.01 for what is left of the steps: less than that changes with twice as many.
    assert (density - bound + 4 * error + 0.01).min() > 0
    # It says something: it is far from the density for some, and near for others.
    gap = density - bound
    assert gap.max() > 0.5 and gap.min() < 0.3


def test_so_many_steps_are_enough(flow, density):
    fine = log_density(flow, 200)
    seen = fine > math.log(0.02)
    assert np.abs(density - fine)[seen].max() < 0.01


def test_the_density_of_the_ode_is_below_the_bound_for_some_actions(flow, found):
    """The bound is of another model: only in the mean over own actions must the ODE be above."""
    actions, _, bound, error = found
    rows = torch.from_numpy(actions)[:, None]
    ode = ode_log_likelihood(flow, STATE.expand(len(rows), -1), rows, 50).numpy()
    below = bound - ode
    assert (below - 4 * error).max() > 0
