# SPDX-License-Identifier: Apache-2.0
"""The flow-noise method against numbers worked out by hand, and through a real Learner.

The example: log p - log p_old = (.1, -.3), A = (1.5, -2), clip .2, entropies (.4, .6), bonus .1.
    rho A = 1.1051709 * 1.5 = 1.6577564,  min(-.7408182 * 2, -.8 * 2) = -1.6, mean .0288782
    loss = -.0288782 - .1 * .5 = -.0788782
"""

import math

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
from dipod_ros.learning.algorithms.base import Batch  # noqa: E402
from dipod_ros.learning.algorithms.reinflow import (  # noqa: E402
    ReinFlowConfig,
    ReinFlowPolicy,
    chain_log_prob,
    reinflow_loss,
)
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy, load_policy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

ADVANTAGES = torch.tensor([1.5, -2.0])


def test_the_loss_is_the_one_worked_out_by_hand():
    old = torch.tensor([-0.7, 0.2])
    new, entropy = old + torch.tensor([0.1, -0.3]), torch.tensor([0.4, 0.6])
    settings = ReinFlowConfig(clip=0.2, entropy_bonus=0.1)
    loss, stats = reinflow_loss(new, old, entropy, ADVANTAGES, settings)
    assert loss.item() == pytest.approx(-0.0788782, abs=1e-6)
    assert stats['clip_fraction'] == 0.5 and stats['entropy'] == pytest.approx(0.5)


def test_the_density_of_a_chain_is_a_mean_over_steps_and_dimensions():
    """z = (1, -1.5) at sigma (.5, .2): (-.7257914 - .4345006) / 2 = -.5801460."""
    following, mean, sigma = (
        torch.tensor([[[a], [b]]]) for a, b in ((1.0, 0.0), (0.5, 0.3), (0.5, 0.2))
    )
    assert chain_log_prob(following, mean, sigma).item() == pytest.approx(-0.5801460, abs=1e-6)


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    settings = ReinFlowConfig(clip=0.2, entropy_bonus=0.3)
    old, entropy, advantages = normal(8), normal(8), normal(8)
    new = (old + 0.3 * normal(8)).requires_grad_(True)
    reinflow_loss(new, old, entropy, advantages, settings)[0].backward()
    expected = finite_differences(
        lambda x: reinflow_loss(x, old, entropy, advantages, settings)[0], new.detach()
    )
    torch.testing.assert_close(new.grad, expected, rtol=0, atol=1e-8)
    assert 0 < int((new.grad == 0).sum()) < 8

    following, mean, raw = (normal(2, 3, 2) for _ in range(3))
    sigma = (0.2 + raw.square()).requires_grad_(True)
    chain_log_prob(following, mean, sigma).sum().backward()
    expected = finite_differences(
        lambda s: chain_log_prob(following, mean, s).sum(), sigma.detach()
    )
    torch.testing.assert_close(sigma.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.fixture
def noisy(make_policy):
    """Return a policy of 3 steps whose noise depends on everything that it may depend on."""
    policy = ReinFlowPolicy(make_policy(size=3), ReinFlowConfig(steps=3)).requires_grad_(False)
    torch.manual_seed(7)
    torch.nn.init.normal_(policy.noise_net.output.weight)
    return policy


def test_the_density_is_that_of_the_steps_taken(noisy):
    """Written out step by step with torch.distributions, and so is the entropy."""
    generator = torch.Generator().manual_seed(0)
    o, noise = torch.randn(9, 2, generator=generator), torch.randn(9, 12, generator=generator)
    batch = Batch(o, noisy.sample(o, noise), noise, torch.zeros(9), {})
    method = ReinFlowConfig(steps=3).build()
    memory = method.remember(noisy, batch, generator)
    x, log_prob, entropy = noise[:, :3], torch.zeros(9), torch.zeros(9)
    for k in range(3):
        t = torch.full((9,), 1 - k / 3)
        sigma = noisy.step(x, t, o)[1]
        assert 0.1 < sigma.min() < 0.13 and 0.2 < sigma.max() < 0.24
        step = torch.distributions.Normal(x - noisy.velocity(x, t, o) / 3, sigma)
        x = step.mean + sigma * noise[:, 3 * (k + 1) : 3 * (k + 2)]
        log_prob, entropy = log_prob + step.log_prob(x).sum(-1), entropy + step.entropy().sum(-1)
        torch.testing.assert_close(memory['chain'][:, k + 1], x)
    torch.testing.assert_close(memory['log_prob_old'], log_prob / 9, rtol=1e-4, atol=1e-5)
    actual = method._log_prob(noisy, o, memory['chain'])[1]
    torch.testing.assert_close(actual, entropy / 9, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_chain_of_recorded_noise_ends_in_the_executed_action(noisy, make_rollout, precision):
    """Learning in bfloat16 must not move the states that were visited in float32."""
    rollout = make_rollout(noisy, episodes=8)
    executed = torch.from_numpy(rollout.chunks).flatten(1)
    o, noise = torch.from_numpy(rollout.observations), torch.from_numpy(rollout.noise)
    batch = Batch(noisy.normalizer.observation(o), executed, noise, torch.zeros(16), {})
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
        memory = ReinFlowConfig(steps=3).build().remember(noisy, batch, torch.Generator())
    assert torch.equal(memory['chain'][:, -1], executed)
    assert torch.equal(memory['chain'][:, 0], noise[:, :3])


def test_the_noise_begins_in_the_middle_of_its_bounds(make_policy):
    policy = ReinFlowPolicy(make_policy(), ReinFlowConfig(sigma_min=0.1, sigma_max=0.4))
    sigma = policy.step(torch.randn(5, 2), torch.rand(5), torch.randn(5, 2))[1]
    torch.testing.assert_close(sigma, torch.full((5, 2), 0.2))
    # So it acts as a chain of that fixed noise does.
    noise, o = torch.randn(5, 10), torch.randn(5, 2)
    fixed = make_policy(sampler=SamplerSpec('chain', 4, noise_std=0.2))
    torch.testing.assert_close(policy.sample(o, noise), fixed.sample(o, noise))


def test_the_noise_net_is_dropped_at_deployment(noisy, tmp_path):
    """Without noise after the start, the chain is the flow with as many Euler steps."""
    o, start = torch.randn(5, 2), torch.randn(5, 3)
    silent = torch.cat([start, torch.zeros(5, 9)], 1)
    flow = noisy.to_flow()
    assert type(flow) is FlowPolicy and flow.spec.sampler == SamplerSpec('euler', 3)
    torch.testing.assert_close(flow.sample(o, start), noisy.sample(o, silent))
    finer = SamplerSpec('midpoint', 5)
    expected = noisy.to_flow(finer).sample(o, start)
    torch.testing.assert_close(noisy.with_sampler(finer).sample(o, start), expected)
    torch.testing.assert_close(noisy.sample(o, start, finer), expected)
    noisy.save(tmp_path / 'flow')
    loaded = load_policy(tmp_path / 'flow')
    np.testing.assert_array_equal(
        loaded.act(o.numpy(), start.numpy()), flow.act(o.numpy(), start.numpy())
    )


def test_the_noise_of_another_sampler_is_refused(noisy):
    with pytest.raises(UserError, match='3 numbers of noise per decision'):
        noisy.chain(torch.zeros(4, 2), torch.zeros(4, 3))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_first_pass_is_on_policy(make_policy, make_rollout, precision):
    row = first_pass(make_rollout, make_policy(), ReinFlowConfig(precision=precision))
    assert row['ratio_mean'] == pytest.approx(1.0, abs=1e-5)
    assert row['clip_fraction'] == 0 and row['gradient_norm'] > 0
    assert row['entropy'] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.024), abs=1e-3)
    assert 'elbo_gap_nats' not in row and row['collapsed'] == 0


@pytest.mark.parametrize(('bonus', 'moved'), [(0.0, False), (3.0, True)])
def test_an_entropy_bonus_raises_the_noise_within_its_bounds(
    make_policy, make_rollout, bonus, moved
):
    settings = ReinFlowConfig(epochs=10, learning_rate=3e-3, entropy_bonus=bonus)
    rows = run(Learner(make_policy(), learner_config(settings)), make_rollout, 4)
    top = math.log(0.24) + 0.5 * math.log(2 * math.pi * math.e)
    assert (rows[-1]['entropy'] > top - 0.15) == moved
    assert all(r['entropy'] < top for r in rows)


def test_both_networks_learn_and_the_policy_given_is_not_touched(
    make_policy, make_rollout, assert_same_weights
):
    given = make_policy()
    learner = Learner(given, learner_config(ReinFlowConfig(epochs=2)))
    before = learner.policy.weights()
    run(learner, make_rollout, 1)
    after = learner.policy.weights()
    for name in ('net.output.weight', 'noise_net.output.weight'):
        assert not np.array_equal(after[name], before[name])
    assert_same_weights(given, make_policy())


def test_learning_raises_the_probability_of_the_rewarded_action(make_policy, make_rollout):
    settings = ReinFlowConfig(
        epochs=10, steps=3, sigma_min=0.2, sigma_max=0.5, clip=0.2, learning_rate=3e-3
    )
    start, end = bandit_success(make_rollout, make_policy(observed=1), settings)
    assert start < 0.6 and end > 0.85


def test_a_resumed_run_goes_on_bit_by_bit(make_policy, make_rollout, tmp_path):
    settings = ReinFlowConfig(epochs=3, minibatches=2, entropy_bonus=0.01)
    assert_resumes_bit_by_bit(make_rollout, make_policy, settings, tmp_path / 'state')


@pytest.mark.parametrize(
    'options',
    [
        {'steps': 0},
        {'noise_width': 0},
        {'clip': 0.0},
        {'sigma_min': 0.0},
        {'sigma_max': 0.05},
        {'sigma_max': 1.5},
        {'entropy_bonus': -0.1},
        {'entropy_bonus': math.nan},
        {'epochs': 0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ReinFlowConfig(**options)
