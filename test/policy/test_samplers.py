# SPDX-License-Identifier: Apache-2.0
"""Samplers against closed forms: the exact velocity field of a Gaussian is linear in x.

For actions N(0, sigma^2) on the path x_t = (1-t) a + t eps the velocity E[eps - a | x_t] is c(t) x,
c(t) = (t - (1-t) sigma^2) / ((1-t)^2 sigma^2 + t^2). Every sampler is linear in its noise then, and
feeding it unit vectors gives the standard deviation of its output without any sampling.
"""

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.policy.samplers import ancestral_std, evaluation_times, sample  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402


def gaussian_field(sigma):
    def field(x, t):
        return x * (t - (1 - t) * sigma**2) / ((1 - t) ** 2 * sigma**2 + t**2)

    return field


def std_ratio(spec, sigma):
    """Return std(sampled) / sigma for the exact field of N(0, sigma^2)."""
    noise = torch.eye(spec.noise_size(1), dtype=torch.float64)
    gains = sample(gaussian_field(sigma), noise, spec)
    return float(gains.square().sum().sqrt()) / sigma


@pytest.mark.parametrize(
    ('sigma', 'steps', 'ratio'),
    [
        (0.5, 4, 0.68), (0.5, 10, 0.86), (0.5, 20, 0.93), (0.5, 64, 0.98),
        (1.0, 4, 0.72), (1.0, 10, 0.88), (1.0, 20, 0.94), (1.0, 64, 0.98),
        (0.1, 4, 0.28), (0.1, 10, 0.62), (0.1, 20, 0.80), (0.1, 64, 0.93),
    ],
)  # fmt: skip
def test_euler_shrinks_a_gaussian_as_much_as_predicted(sigma, steps, ratio):
    assert std_ratio(SamplerSpec('euler', steps), sigma) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(
    ('sigma', 'steps', 'ratio'),
    [(0.5, 2, 0.989), (0.5, 5, 0.998), (0.1, 2, 0.464), (0.1, 5, 0.882), (0.1, 10, 0.988)],
)
def test_midpoint_hardly_shrinks_it_with_as_many_evaluations(sigma, steps, ratio):
    assert std_ratio(SamplerSpec('midpoint', steps), sigma) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize('sigma', [0.1, 0.5, 1.0])
@pytest.mark.parametrize('scale', [0.5, 1.0])
def test_the_ancestral_sampler_reproduces_the_std_with_many_steps(sigma, scale):
    many = std_ratio(SamplerSpec('sde', 800, scale), sigma)
    assert many == pytest.approx(1, abs=0.02)
    fewer = std_ratio(SamplerSpec('sde', 200, scale), sigma)
    assert abs(many - 1) < abs(fewer - 1)


def test_ancestral_noise_is_the_posterior_of_the_forward_process():
    """Var(x_s | x_t, a) from the joint Gaussian: x_t is x_s rescaled plus fresh noise.

    x_t = k x_s + sqrt(t^2 - k^2 s^2) z with k = (1-t)/(1-s), hence var = s^2 - (k s^2)^2 / t^2.
    """
    for s in (0.0, 0.1, 0.5, 0.8):
        for t in (0.85, 0.95, 1.0):
            k = (1 - t) / (1 - s)
            assert ancestral_std(t, s) ** 2 == pytest.approx(s**2 - (k * s**2) ** 2 / t**2)


@pytest.mark.parametrize('scale', [0.0, 0.3, 1.0])
def test_the_scale_is_the_share_of_the_ancestral_noise(scale):
    """Without any velocity: from t=1 to s=.5 the ancestral std is .5, to s=0 nothing is added."""
    noise = torch.eye(2, dtype=torch.float64)
    gains = sample(lambda x, t: torch.zeros_like(x), noise, SamplerSpec('sde', 2, scale))
    assert gains[1].item() == pytest.approx(0.5 * scale)
    assert gains[0].item() == pytest.approx(0.5 + 0.5 * (1 - scale**2) ** 0.5)


def curved_field(x, t):
    return torch.sin(3 * x + t) + x.roll(1, -1) * t


@pytest.mark.parametrize(('solver', 'order'), [('euler', 1), ('midpoint', 2)])
def test_ode_samplers_converge_with_their_order(solver, order):
    start = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = sample(curved_field, start, SamplerSpec('midpoint', 1000))
    error = [
        (sample(curved_field, start, SamplerSpec(solver, k)) - exact).abs().max() for k in (40, 80)
    ]
    assert float(error[0] / error[1]) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize('steps', [1, 2, 7])
def test_an_sde_without_noise_is_euler(steps):
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rest = torch.randn(5, 3 * (steps - 1), dtype=torch.float64) * 100
    silent = sample(curved_field, torch.cat([start, rest], 1), SamplerSpec('sde', steps, 0.0))
    euler = sample(curved_field, start, SamplerSpec('euler', steps))
    torch.testing.assert_close(silent, euler, rtol=0, atol=1e-12)


def test_every_draw_of_the_sde_matters_and_the_last_step_adds_none():
    spec = SamplerSpec('sde', 4, 0.7)
    noise = torch.zeros(5, spec.noise_size(2), dtype=torch.float64)
    for k in range(4):
        noise[k + 1, 2 * k] = 1.0
    out = sample(gaussian_field(0.5), noise, spec)
    assert torch.all((out[1:, 0] - out[0, 0]).abs() > 1e-3)
    assert torch.all(out[:, 1] == out[0, 1])


def test_a_chain_is_euler_with_noise_after_every_step_the_last_included():
    """By hand, v = 2 x and K = 2: x <- 0 * x + .3 z each time, so only the last draw is left."""
    spec = SamplerSpec('chain', 2, noise_std=0.3)
    out = sample(lambda x, t: 2 * x, torch.tensor([[5.0, 1.0, -1.0]]), spec)
    assert out.item() == pytest.approx(-0.3)
    # v = x: x1 = 5 / 2 + .3 = 2.8, x2 = 2.8 / 2 - .3 = 1.1
    out = sample(lambda x, t: x, torch.tensor([[5.0, 1.0, -1.0]]), spec)
    assert out.item() == pytest.approx(1.1)


@pytest.mark.parametrize('steps', [1, 4])
def test_a_chain_without_noise_is_euler(steps):
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    silent = torch.cat([start, torch.zeros(5, 3 * steps, dtype=torch.float64)], 1)
    chain = sample(curved_field, silent, SamplerSpec('chain', steps))
    assert torch.equal(chain, sample(curved_field, start, SamplerSpec('euler', steps)))


@pytest.mark.parametrize('solver', ['euler', 'midpoint', 'sde', 'chain'])
@pytest.mark.parametrize('steps', [1, 3, 10])
def test_the_field_is_asked_at_the_announced_times(solver, steps):
    spec = SamplerSpec(solver, steps)
    asked = []

    def field(x, t):
        asked.append(t)
        return x

    sample(field, torch.zeros(1, spec.noise_size(2)), spec)
    assert asked == pytest.approx(evaluation_times(spec))
    assert len(asked) == spec.evaluations == steps * (2 if solver == 'midpoint' else 1)
    assert asked[0] == 1.0 and all(0 < t <= 1 for t in asked)


@pytest.mark.parametrize(
    ('solver', 'draws'), [('euler', 1), ('midpoint', 1), ('sde', 5), ('chain', 6)]
)
def test_noise_per_chunk(solver, draws):
    assert SamplerSpec(solver, 5).noise_size(35) == 35 * draws


@pytest.mark.parametrize('solver', ['euler', 'midpoint', 'sde', 'chain'])
def test_rows_of_a_batch_do_not_meet(solver):
    spec = SamplerSpec(solver, 3)
    noise = torch.randn(4, spec.noise_size(3), generator=torch.Generator().manual_seed(1))
    together = sample(curved_field, noise, spec)
    alone = torch.cat([sample(curved_field, row[None], spec) for row in noise])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
