# SPDX-License-Identifier: Apache-2.0
"""The toys are exact, their mathematics holds, and double drift shows in them as described."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from scipy.integrate import trapezoid  # noqa: E402
from scipy.interpolate import CubicSpline  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.seeding import numpy_rng, torch_rng  # noqa: E402
from dipod_ros.learning.toys import two_token as tt  # noqa: E402
from dipod_ros.learning.toys.bandit import (  # noqa: E402
    MODE_STD,
    Arm,
    Bandit,
    BanditConfig,
    mixture_density,
    reward,
)
from dipod_ros.learning.toys.flow1d import GRID, Bound, at, onto_grid  # noqa: E402

# ------------------------------------------------------------------------------- two tokens


def random_logits(count):
    return torch.randn(count, 6, generator=torch_rng(0, 'logits'), dtype=torch.float64)


def test_probabilities_are_those_of_decoding_in_either_order():
    a, b, c, d, e, f = torch.sigmoid(random_logits(1)[0]).tolist()
    by_hand = [
        (b * c + d * a) / 2,
        (b * (1 - c) + (1 - d) * e) / 2,
        ((1 - b) * f + d * (1 - a)) / 2,
        ((1 - b) * (1 - f) + (1 - d) * (1 - e)) / 2,
    ]
    np.testing.assert_allclose(tt.log_prob(random_logits(1))[0].exp(), by_hand, rtol=1e-12)
    np.testing.assert_allclose(tt.log_prob(random_logits(99)).exp().sum(-1), 1, rtol=1e-12)


def test_the_gap_of_the_bound_is_log_cosh_of_the_orders_disagreement():
    logits = random_logits(50)
    f = tt.log_factors(logits)
    half = (f[..., 0] + f[..., 1] - f[..., 2] - f[..., 3]) / 2
    gap = tt.log_prob(logits) - tt.elbo(logits)
    np.testing.assert_allclose(gap, torch.log(torch.cosh(half)), atol=1e-12)
    assert gap.min() >= 0 and gap.max() > 0.1


def test_the_true_gradient_is_that_of_the_expected_reward():
    rewards = torch.tensor(tt.PAPER_REWARD, dtype=torch.float64).expand(5, 4)
    logits = random_logits(5).requires_grad_()
    expected = (tt.log_prob(logits).exp() * rewards).sum()
    (gradient,) = torch.autograd.grad(expected, logits)
    true, *_ = tt._gradients(rewards, logits, 'true', 1.5)
    np.testing.assert_allclose(true, gradient, atol=1e-14)


@pytest.mark.parametrize('score', ['fpo', 'spg'])
def test_every_score_is_adequate_where_tokens_are_independent(score):
    # Definition 2.1 of arXiv 2606.13795: A grad log pi wherever the bound is tight.
    first, second = random_logits(20)[:, 0], random_logits(20)[:, 1]
    logits = torch.stack([first, first, second, second, first, second], -1)
    rewards = torch.rand(20, 4, generator=torch_rng(1, 'rewards'), dtype=torch.float64)
    true, proxy, _, (_, gap, _) = tt._gradients(rewards, logits, score, 1.5)
    assert gap.abs().max() < 1e-12
    np.testing.assert_allclose(proxy, true, atol=1e-12)


def test_the_upper_bound_leaves_the_gradient_where_tokens_depend_on_each_other():
    # Tight (both orders give x1 = x2 nine times in ten), yet the EUBO mixes contexts that differ:
    # SPG is adequate on independent tokens only. The ELBO has no such exception.
    x = float(torch.logit(torch.tensor(0.9, dtype=torch.float64)))
    logits = torch.tensor([[x, 0.0, x, 0.0, -x, -x]], dtype=torch.float64)
    rewards = torch.tensor([tt.PAPER_REWARD], dtype=torch.float64)
    true, fpo, _, (_, gap, _) = tt._gradients(rewards, logits, 'fpo', 1.5)
    _, spg, _, _ = tt._gradients(rewards, logits, 'spg', 1.5)
    assert gap.abs().max() < 1e-12
    np.testing.assert_allclose(fpo, true, atol=1e-12)
    assert (spg - true).norm() > 0.2 * true.norm()


def test_the_papers_problem_gives_the_published_numbers():
    # An independent reproduction of section 4.1 has these figures, at these digits.
    runs = tt.paper_runs('fpo', (0.0, 0.2))
    end = [x[-1].tolist() for x in (runs.gap_aa, runs.gap, runs.cosine, runs.reward)]
    expected = [[0.2375, 0.0443], [0.0291, 0.0059], [0.842, 0.961], [0.9733, 0.9741]]
    np.testing.assert_allclose(end, expected, atol=6e-4)
    assert runs.gap[0].max() == 0 and runs.cosine[0].min() > 1 - 1e-12


def test_spg_drifts_less_than_fpo_and_even_the_true_gradient_loosens_the_bound():
    config = tt.TwoTokenConfig(steps=800)
    gap = {score: float(tt.paper_runs(score, (0.0,), config).gap_aa[-1]) for score in tt.SCORES}
    assert gap['spg'] < 0.75 * gap['true'] and gap['true'] < 0.75 * gap['fpo']
    assert gap['spg'] > 0.03


def test_beta_orders_gap_and_cosine_in_every_random_problem():
    runs = tt.random_runs('fpo', problems=12, config=tt.TwoTokenConfig(steps=600))
    gap, cosine, mean_reward = (
        x[-1].view(len(tt.BETAS), 12) for x in (runs.gap, runs.cosine, runs.reward)
    )
    assert (gap.diff(dim=0) < 0).all() and (cosine.diff(dim=0) > 0).all()
    # The toy shows a mechanism, not a benefit: the reward hardly moves.
    assert (mean_reward.mean(1) - mean_reward.mean()).abs().max() < 0.005


# ------------------------------------------------------------------------------- the bandit


@pytest.fixture(scope='module')
def bandit():
    return Bandit(BanditConfig(stop_return=0.5))


@pytest.fixture(scope='module')
def trained(bandit):
    arms = {
        'fpo': Arm('elbo'),
        'beta': Arm('elbo', 3.0),
        'distil': Arm('elbo', distillation_steps=3),
        'true': Arm('true'),
    }
    return {name: bandit.train(arm) for name, arm in arms.items()}


def test_the_policys_density_integrates_to_one(bandit, trained):
    for theta in (bandit.start, trained['fpo'].thetas[-1], trained['beta'].thetas[-1]):
        policy = bandit.policy(theta)
        fine = bandit.policy(theta, np.linspace(-6, 6, 2001))
        assert trapezoid(np.exp(fine.log_prob), fine.actions) == pytest.approx(1, abs=1e-3)
        # and 161 points say the same about the entropy as 2001
        share = np.exp(-0.5 * fine.noise**2)
        entropy = -(share / share.sum()) @ fine.log_prob
        assert -bandit.noise_share @ policy.log_prob == pytest.approx(entropy, abs=2e-3)


def test_the_start_is_tight_and_is_the_mixture(bandit):
    row, _, regulariser = bandit.measure(bandit.start, 'elbo')
    assert 0 < row['gap'] < 0.01
    # Pointwise, not only on average: bound and density are those of the mixture on its modes.
    policy = bandit.policy(bandit.start)
    on_modes = np.abs(np.abs(policy.actions) - 1) < MODE_STD
    exact = np.log(mixture_density(policy.actions))
    bound = at(policy.actions, bandit.bounds['elbo'].value(bandit.start))
    for values in (bound, policy.log_prob):
        np.testing.assert_allclose(values[on_modes], exact[on_modes], atol=0.06)
    # Nothing is left for self-distillation to improve.
    assert np.linalg.norm(regulariser) < 0.05


def test_the_bound_is_its_own_definition_by_monte_carlo(bandit):
    # Independent of tables and quadrature: draws of (logit t, eps), at actions off the grid.
    rng = numpy_rng(0, 'monte carlo')
    theta = bandit.start + rng.normal(scale=0.05, size=bandit.start.shape)
    count, (low, high) = 200_000, (-7.0, 6.0)
    t = 1 / (1 + np.exp(-rng.uniform(low, high, count)))
    eps = rng.normal(size=count)
    t0, t1 = 1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))
    for a in (-1.234, 0.321, 1.777):
        x = (1 - t) * a + t * eps
        velocity = np.einsum(
            'ni,ij,nj->n',
            bandit.basis.space(x),
            theta.reshape(bandit.basis.shape),
            bandit.basis.time(t),
            optimize=True,
        )
        for weight, scale in (('elbo', (1 - t) ** 2), ('cfm', t * (1 - t))):
            loss = (high - low) * scale * (velocity - (eps - a)) ** 2
            expected = -loss.mean()
            if weight == 'elbo':
                expected -= 0.5 * np.log(2 * np.pi * (t0 / (1 - t0)) ** 2) + 0.5
                expected -= 0.5 * (t1**2 - 1 - np.log(t1**2) + (1 - t1) ** 2 * a**2)
            got = at(np.array([a]), bandit.bounds[weight].value(theta))[0]
            assert abs(got - expected) < 4 * loss.std() / np.sqrt(count)


def test_gradients_agree_with_finite_differences(bandit):
    rng = numpy_rng(0, 'directions')
    theta = bandit.start + rng.normal(scale=0.02, size=bandit.start.shape)
    policy, h = bandit.policy(theta), 1e-5

    def expected_reward(at_theta):
        return bandit.noise_share @ reward(bandit.policy(at_theta).actions)[0]

    pathwise = policy.pullback(bandit.noise_share * reward(policy.actions)[1])
    shares = onto_grid(policy.actions, bandit.noise_share)
    of_bound = bandit.bounds['elbo'].gradient(theta, shares)
    for direction in rng.normal(size=(5, len(theta))):
        up, down = theta + h * direction, theta - h * direction
        slope = (expected_reward(up) - expected_reward(down)) / (2 * h)
        assert pathwise @ direction == pytest.approx(slope, rel=1e-5, abs=1e-8)
        values = [shares @ bandit.bounds['elbo'].value(x) for x in (up, down)]
        slope = (values[0] - values[1]) / (2 * h)
        assert of_bound @ direction == pytest.approx(slope, rel=1e-5, abs=1e-6)
    x = np.linspace(-4, 4, 17)
    p, q = bandit.basis.derivative_coefficients(np.eye(bandit.basis.shape[0]))
    features = bandit.basis.space(x)
    slope = (bandit.basis.space(x + h) - bandit.basis.space(x - h)) / (2 * h)
    np.testing.assert_allclose(features @ p + x[:, None] * (features @ q), slope, atol=1e-8)
    slope = (reward(x + h)[0] - reward(x - h)[0]) / (2 * h)
    np.testing.assert_allclose(reward(x)[1], slope, atol=1e-8)


def sde_return(bandit, theta, steps=200):
    """Expected reward of the ancestral (stochastic) sampler, by value iteration: no sampling.

    From t to s < t the sampler draws from q(x_s | x_t, a = x_t - t v), a normal distribution with

        alpha = (1-t)/(1-s), sigma^2 = t^2 - alpha^2 s^2
        mean = (alpha s^2 x_t + (1-s) sigma^2 a) / t^2,  variance = sigma^2 s^2 / t^2.
    """
    x = np.linspace(-6, 6, 241)
    nodes, share = np.polynomial.hermite_e.hermegauss(9)
    share = share / share.sum()
    times = 1 / (1 + np.exp(-np.linspace(-7, 6, steps + 1)))
    basis, coefficients = bandit.basis.space(x), theta.reshape(bandit.basis.shape)
    value = reward(x / (1 - times[0]))[0]
    for s, t in itertools.pairwise(times):
        velocity = basis @ (coefficients @ bandit.basis.time(np.array([t]))[0])
        alpha = (1 - t) / (1 - s)
        variance = t**2 - alpha**2 * s**2
        mean = (alpha * s**2 * x + (1 - s) * variance * (x - t * velocity)) / t**2
        ahead = mean[:, None] + np.sqrt(variance) * s / t * nodes
        value = CubicSpline(x, value)(np.clip(ahead, -6, 6)) @ share
    density = np.exp(-0.5 * x**2)
    return density @ value / density.sum()


def test_at_a_tight_point_the_bounds_gradient_is_that_of_the_stochastic_sampler(bandit):
    policy = bandit.policy(bandit.start)
    value, slope = reward(policy.actions)
    advantage = value - bandit.noise_share @ value
    shares = onto_grid(policy.actions, bandit.noise_share * advantage)
    of_bound = bandit.bounds['elbo'].gradient(bandit.start, shares)
    of_ode = policy.pullback(bandit.noise_share * slope)
    apart = of_bound - of_ode
    rng = numpy_rng(0, 'sde')
    directions = [of_bound, of_ode, apart, *rng.normal(size=(3, len(apart)))]
    directions = np.array([d / np.linalg.norm(d) for d in directions])
    h = 1e-3
    of_sde = np.array(
        [
            (sde_return(bandit, bandit.start + h * d) - sde_return(bandit, bandit.start - h * d))
            / (2 * h)
            for d in directions
        ]
    )
    scale = np.linalg.norm(of_bound)
    assert np.abs(directions @ of_bound - of_sde).max() < 0.05 * scale
    assert np.abs(directions @ of_ode - of_sde).max() > 0.3 * scale


def test_double_drift_appears_without_the_regulariser(trained):
    columns = trained['fpo'].columns
    assert columns['gap'][0] < 0.01 and columns['cosine'][0] > 0.8
    assert columns['gap'][-1] > 1 and columns['cosine'][-1] < 0.5


@pytest.mark.parametrize('remedy', ['beta', 'distil'])
def test_the_remedies_keep_the_bound_tight_at_equal_return(trained, remedy):
    for value in (0.3, 0.4, 0.5):
        fpo, kept = trained['fpo'], trained[remedy]
        i, k = fpo.step_at_return(value), kept.step_at_return(value)
        assert kept.columns['return'][k] >= value
        assert kept.columns['gap'][k] < fpo.columns['gap'][i] / 3
        assert kept.columns['cosine'][k] > fpo.columns['cosine'][i] + 0.1
    # They pay in updates.
    assert len(kept.thetas) > 2 * len(fpo.thetas)


def test_bad_actions_are_made_unlikely_by_spoiling_their_bound(trained):
    fpo, true = trained['fpo'].columns, trained['true'].columns
    early = slice(6, 25)
    assert (fpo['gap_negative'][early] > 5 * np.abs(fpo['gap_positive'][early])).mean() > 0.5
    assert fpo['gap_negative'][24] > 1 > 5 * abs(fpo['gap_positive'][24])
    # The policy gradient itself loosens the bound too, but on good actions.
    step = trained['true'].step_at_return(0.4)
    assert true['gap_positive'][step] > 3 * abs(true['gap_negative'][step])


def test_beta_tightens_the_bound_at_equal_return_for_the_loss_that_fpo_uses(bandit):
    config = replace(bandit.config, stop_return=0.6)
    fpo, kept = (bandit.train(Arm('cfm', beta), config).columns for beta in (0.0, 3.0))
    assert min(fpo['return'][-1], kept['return'][-1]) >= 0.6
    assert fpo['gap'][-1] > 3 * kept['gap'][-1]


def test_half_the_step_twice_as_often_is_the_same_curve(bandit, trained):
    config = replace(bandit.config, learning_rate=0.01, steps=80)
    for name, arm, returns in (('fpo', Arm(), (0.3, 0.4, 0.45)), ('beta', Arm(beta=3.0), (0.2,))):
        again, before = bandit.train(arm, config).columns, trained[name].columns
        for column in ('gap', 'cosine'):
            curves = [np.interp(returns, c['return'], c[column]) for c in (again, before)]
            np.testing.assert_allclose(*curves, rtol=0.15)


def test_training_is_repeatable(bandit):
    short = replace(bandit.config, steps=3)
    first, second = (bandit.train(Arm('cfm', 1.0), short) for _ in range(2))
    assert (first.thetas == second.thetas).all()
    assert len(first.thetas) == 4


def test_bad_settings_say_what_to_change(bandit):
    for bad, word in (
        (lambda: Arm('l2'), 'weight'),
        (lambda: Arm(beta=-1), 'beta'),
        (lambda: Arm('true', beta=1), 'neither'),
        (lambda: Arm(distillation_steps=-1), 'distillation_steps'),
        (lambda: BanditConfig(learning_rate=0), 'learning_rate'),
        (lambda: BanditConfig(euler_steps=0), 'euler_steps'),
        (lambda: Bound.integrate(bandit.basis, 'l2'), 'weight'),
        (lambda: at(np.array([9.0]), GRID), 'learning_rate'),
        (lambda: bandit.policy(30 * bandit.start), 'folds'),
        (lambda: tt.paper_runs('ppo'), 'score'),
        (lambda: tt.TwoTokenConfig(steps=0), 'steps'),
        (lambda: tt.TwoTokenConfig(eubo_power=0.5), 'eubo_power'),
    ):
        with pytest.raises(UserError, match=word):
            bad()


# ------------------------------------------------------------------------------- the command


def test_the_command_reports_and_draws_what_it_ran(tmp_path, capsys, trained, bandit):
    from matplotlib import image

    from dipod_ros.cli import toys
    from dipod_ros.cli.output import write_json
    from dipod_ros.learning.toys.pictures import draw_bandit, draw_two_token

    runs, tokens = toys._two_token(tt.TwoTokenConfig(steps=30))
    _, histories, arms = toys._bandit(BanditConfig(steps=2))
    written = json.loads(write_json(tmp_path / 'r.json', {'t': tokens, 'b': arms}).read_text())
    assert [row['beta'] for row in written['t']['random']] == list(tt.BETAS)
    assert len(written['t']['paper']) == 15 and len(written['b']['arms']) == len(histories) == 11
    assert written['b']['arms'][0]['history']['return'] == list(histories[0].columns['return'])
    printed = capsys.readouterr().out
    assert printed.count('fpo ') == 5 and printed.count('(not reached)') == 11
    for path in (
        draw_two_token(tmp_path / 'two_token.png', runs),
        draw_bandit(tmp_path / 'bandit.png', bandit, list(trained.values())),
    ):
        assert image.imread(path).std() > 0.01
    with pytest.raises(UserError, match='beta 3'):
        draw_bandit(tmp_path / 'x.png', bandit, [trained['fpo']])
    with pytest.raises(UserError, match='cannot write'):
        draw_two_token(tmp_path / 'none' / 'x.png', runs)


def test_a_folder_that_cannot_be_made_ends_the_command_before_it_computes(tmp_path, capsys):
    from dipod_ros.cli.main import main

    (tmp_path / 'file').write_text('')
    assert main(['toys', '--plot-dir', str(tmp_path / 'file')]) == 2
    assert '--plot-dir' in capsys.readouterr().err
