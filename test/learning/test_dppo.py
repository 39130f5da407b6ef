# SPDX-License-Identifier: Apache-2.0
"""DPPO against numbers worked out by hand, torch.distributions, and through a real Learner.

The example: two trained steps, discount .5, clip .2, clip_base .1, A = (1.5, -2),
    log p - log p_old = ((.05, .5), (-.3, .1)).
    A_k = ((.75, 1.5), (-1, -2)), c = (.1, .2), rho = 1.0512711, 1.6487213, .7408182, 1.1051709
    A=1.5: .75 * 1.0512711 = .7884533,  min(2.4730819, 1.2 * 1.5) = 1.8
    A=-2:  min(-.7408182, -.9) = -.9,   -2 * 1.1051709 = -2.2103418
    mean = (.7884533 + 1.8 - .9 - 2.2103418) / 4 = -.1304721
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
from dipod_ros.learning.algorithms.dppo import (  # noqa: E402
    DppoConfig,
    LateFlow,
    chain_states,
    clips,
    discounts,
    dppo_loss,
    log_prob_of_step,
)
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

EXAMPLE = DppoConfig(steps=3, fine_tuned_steps=2, clip=0.2, clip_base=0.1, denoising_discount=0.5)
OLD = torch.tensor([[-0.4, 0.2], [0.9, -1.1]])
NEW = OLD + torch.tensor([[0.05, 0.5], [-0.3, 0.1]])
ADVANTAGES = torch.tensor([1.5, -2.0])


def test_the_loss_is_the_one_worked_out_by_hand():
    loss, stats = dppo_loss(NEW, OLD, ADVANTAGES, EXAMPLE)
    assert loss.item() == pytest.approx(0.1304721, abs=1e-6)
    # 1.65 > 1.2 at A > 0 and .74 < .9 at A < 0.
    assert stats['clip_fraction'] == 0.5
    assert stats['log_prob'] == pytest.approx(NEW.mean().item())


def test_the_clip_opens_exponentially_and_the_discount_closes_towards_the_start():
    settings = DppoConfig(steps=3, clip_base=0.01, clip=0.11, denoising_discount=0.9)
    middle = 0.01 + 0.1 * (math.exp(1.5) - 1) / (math.exp(3) - 1)
    assert clips(settings).tolist() == pytest.approx([0.01, middle, 0.11])
    assert discounts(settings).tolist() == pytest.approx([0.81, 0.9, 1.0])
    alone = DppoConfig(steps=4, fine_tuned_steps=1, clip_base=0.01, clip=0.11)
    assert clips(alone).tolist() == pytest.approx([0.11])
    assert discounts(alone).tolist() == [1.0]


def test_a_log_probability_is_clamped_per_dimension_and_averaged():
    """std .5: z = (1, -4), log p = (-.7257914, -8.2257914 -> -5), mean -2.8628957."""
    actual = log_prob_of_step(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0]), 0.5)
    assert actual.item() == pytest.approx(-2.8628957, abs=1e-6)
    narrow = log_prob_of_step(torch.zeros(3), torch.zeros(3), 0.01)
    assert narrow.item() == 2.0  # log N = 3.69 without the clamp


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old, advantages = normal(6, 2), normal(6)
    new = (old + 0.2 * normal(6, 2)).requires_grad_(True)
    dppo_loss(new, old, advantages, EXAMPLE)[0].backward()
    expected = finite_differences(lambda x: dppo_loss(x, old, advantages, EXAMPLE)[0], new.detach())
    torch.testing.assert_close(new.grad, expected, rtol=0, atol=1e-8)
    assert 0 < int((new.grad == 0).sum()) < 12

    following, mean = normal(5), normal(5).requires_grad_(True)
    log_prob_of_step(following, mean, 0.7).backward()
    expected = finite_differences(lambda m: log_prob_of_step(following, m, 0.7), mean.detach())
    torch.testing.assert_close(mean.grad, expected, rtol=0, atol=1e-8)


def batch_of(policy, count=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    o = torch.randn(count, policy.spec.observation_size, generator=generator)
    noise = torch.randn(count, policy.spec.noise_size, generator=generator)
    with torch.no_grad():
        actions = policy.sample(o, noise)
    return Batch(o, actions, noise, torch.randn(count, generator=generator), {})


@pytest.mark.parametrize(('std', 'used'), [(0.15, 0.15), (0.05, 0.1)])
def test_log_probabilities_are_those_of_the_steps_of_the_chain(make_policy, std, used):
    """Written out step by step; below its floor the std of the density is not that of the noise."""
    method = DppoConfig(steps=3, noise_std=std).build()
    policy = method.start(make_policy()).requires_grad_(False)
    batch = batch_of(policy)
    memory = method.remember(policy, batch, torch.Generator())
    x = batch.noise[:, :2]
    for k in range(3):
        torch.testing.assert_close(memory['x'][:, k], x)
        mean = x - policy.velocity(x, torch.full((16,), 1 - k / 3), batch.observations) / 3
        following = mean + std * batch.noise[:, 2 * (k + 1) : 2 * (k + 2)]
        density = torch.distributions.Normal(mean, used).log_prob(following)
        expected = density.clamp(-5, 2).mean(-1)
        torch.testing.assert_close(memory['log_prob_old'][:, k], expected, rtol=1e-4, atol=1e-5)
        x = following
    assert torch.equal(memory['following'][:, :-1], memory['x'][:, 1:])


@pytest.mark.parametrize('trained', [0, 2])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_chain_of_recorded_noise_ends_in_the_executed_action(
    make_policy, make_rollout, trained, precision
):
    """Learning in bfloat16 must not move the states that were visited in float32."""
    policy = DppoConfig(fine_tuned_steps=trained).build().start(make_policy(size=3, horizon=2))
    rollout = make_rollout(policy.clone(), episodes=8)
    executed = torch.from_numpy(rollout.chunks).flatten(1)
    o, noise = torch.from_numpy(rollout.observations), torch.from_numpy(rollout.noise)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
        x, following = chain_states(policy, policy.normalizer.observation(o), noise)
    assert torch.equal(following[:, -1], executed)
    assert torch.equal(x[:, 0], noise[:, :6])


def test_the_noise_of_another_sampler_is_refused(make_policy):
    policy = DppoConfig().build().start(make_policy())
    with pytest.raises(UserError, match='2 numbers of noise per decision'):
        chain_states(policy, torch.zeros(3, 2), torch.zeros(3, 2))


@pytest.mark.parametrize('trained', [0, 2])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_first_pass_is_on_policy(make_policy, make_rollout, trained, precision):
    settings = DppoConfig(fine_tuned_steps=trained, precision=precision)
    row = first_pass(make_rollout, make_policy(), settings)
    assert row['ratio_mean'] == pytest.approx(1.0, abs=1e-5)
    assert row['clip_fraction'] == 0 and row['gradient_norm'] > 0
    assert 'elbo_gap_nats' not in row and row['collapsed'] == 0


def test_good_actions_become_likelier_and_bad_ones_less_so(make_policy, make_rollout):
    settings = DppoConfig(epochs=10, clip=0.05, clip_base=0.05, learning_rate=1e-3)
    learner = Learner(make_policy(), learner_config(settings))
    rollout = make_rollout(learner.behaviour(0), episodes=64)
    batch = learner._batch(rollout, learner.critic.advantages(learner.policy, rollout)[0])
    with torch.no_grad():
        memory = learner.algorithm.remember(learner.behaviour(0), batch, torch.Generator())
    learner.update(rollout)
    with torch.no_grad():
        new = learner.algorithm._log_prob(
            learner.policy, batch.observations, memory['x'], memory['following']
        )
    change = (new - memory['log_prob_old']).mean(1)
    good = torch.from_numpy(rollout.rewards) > 0
    assert change[good].mean() > 0.005 and change[~good].mean() < -0.005


def test_only_the_last_steps_learn_and_the_first_stay_as_they_were(make_policy, make_rollout):
    learner = Learner(make_policy(), learner_config(DppoConfig(steps=4, fine_tuned_steps=2)))
    before = learner.policy.clone()
    assert isinstance(before, LateFlow)
    run(learner, make_rollout, 2)
    after = learner.policy.clone()
    batch = batch_of(after)
    x, _ = chain_states(before, batch.observations, batch.noise)
    moved, _ = chain_states(after, batch.observations, batch.noise)
    # x_0, x_1 and x_2 come from the frozen network, x_3 from the one that learns.
    assert torch.equal(moved[:, :3], x[:, :3])
    assert not torch.equal(moved[:, 3], x[:, 3])
    memory = learner.algorithm.remember(after, batch, torch.Generator())
    assert torch.equal(memory['x'], moved[:, 2:])


def test_a_late_flow_asks_each_network_in_its_own_steps(make_policy):
    """Times 1, .75 are the frozen network's, .5, .25 the other's; a mixed batch is told apart."""
    late = LateFlow(make_policy(sampler=SamplerSpec('chain', 4)), 2).requires_grad_(False)
    late.net.output.bias += 1.0
    flow = make_policy()
    t = torch.tensor([1.0, 0.75, 0.5, 0.25])
    x, o = torch.randn(2, 4, 2)
    added = late.velocity(x, t, o) - flow.velocity(x, t, o).detach()
    torch.testing.assert_close(added, torch.tensor([[0.0], [0.0], [1.0], [1.0]]).expand(4, 2))
    with pytest.raises(UserError, match='fine_tuned_steps'):
        late.save('anywhere')


def test_the_policy_that_learns_is_served_like_any_other(make_policy, tmp_path):
    """The checkpoint of a chain acts as the policy does, and so does its exported graph."""
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from dipod_ros.policy.export import export_onnx
    from dipod_ros.policy.flow import load_policy

    policy = DppoConfig(steps=3, noise_std=0.2).build().start(make_policy()).clone()
    policy.save(tmp_path / 'chain')
    loaded = load_policy(tmp_path / 'chain')
    assert loaded.spec.sampler == SamplerSpec('chain', 3, noise_std=0.2)
    session = onnxruntime.InferenceSession(export_onnx(loaded))
    rng = np.random.default_rng(0)
    o, noise = (rng.normal(size=(1, n)).astype(np.float32) for n in (2, 8))
    chunk = session.run(None, {'observation': o, 'noise': noise})[0]
    np.testing.assert_allclose(chunk, policy.act(o, noise), atol=1e-5)


def test_start_copies_and_replaces_the_sampler(make_policy, assert_same_weights):
    given = make_policy()
    policy = DppoConfig(steps=4, noise_std=0.12).build().start(given)
    assert type(policy) is FlowPolicy and policy.spec.sampler.noise_std == 0.12
    assert given.spec.sampler.solver == 'midpoint'
    with torch.no_grad():
        policy.net.output.bias += 1
    assert_same_weights(given, make_policy())


@pytest.mark.parametrize('trained', [0, 2])
def test_learning_raises_the_probability_of_the_rewarded_action(make_policy, make_rollout, trained):
    settings = DppoConfig(
        epochs=10,
        steps=3,
        noise_std=0.3,
        fine_tuned_steps=trained,
        clip=0.2,
        clip_base=0.2,
        learning_rate=3e-3,
    )
    start, end = bandit_success(make_rollout, make_policy(observed=1), settings)
    assert start < 0.6 and end > 0.85


@pytest.mark.parametrize('trained', [0, 2])
def test_a_resumed_run_goes_on_bit_by_bit(make_policy, make_rollout, tmp_path, trained):
    settings = DppoConfig(epochs=3, minibatches=2, fine_tuned_steps=trained)
    assert_resumes_bit_by_bit(make_rollout, make_policy, settings, tmp_path / 'state')


@pytest.mark.parametrize(
    'options',
    [
        {'epochs': 0},
        {'steps': 0},
        {'noise_std': 0.0},
        {'log_prob_std_min': math.nan},
        {'fine_tuned_steps': 5},
        {'fine_tuned_steps': -1},
        {'clip': 0.0},
        {'clip_base': 0.0},
        {'denoising_discount': 1.1},
        {'denoising_discount': 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        DppoConfig(**options)
