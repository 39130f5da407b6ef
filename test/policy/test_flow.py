# SPDX-License-Identifier: Apache-2.0
"""The policy as a whole: normaliser, sampling, weights in and out."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.policy.checkpoint import CheckpointError, load  # noqa: E402
from dipod_ros.policy.flow import OBSERVATION_CLAMP, FlowPolicy, Normalizer, load_policy  # noqa: E402
from dipod_ros.policy.networks import build_network, time_features  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402


def test_the_normaliser_gives_mean_zero_and_std_one():
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(3, 2, (500, 4)), rng.normal(-1, 0.1, (500, 6))
    normalizer = Normalizer(4, 6)
    normalizer.fit(observations, actions)
    for scaled in (
        normalizer.observation(torch.tensor(observations, dtype=torch.float32)),
        normalizer.action(torch.tensor(actions, dtype=torch.float32)),
    ):
        torch.testing.assert_close(scaled.mean(0), torch.zeros(scaled.shape[1]), rtol=0, atol=1e-4)
        std = scaled.std(0, unbiased=False)
        torch.testing.assert_close(std, torch.ones(scaled.shape[1]), rtol=0, atol=1e-4)


def test_actions_come_back_from_normalisation():
    rng = np.random.default_rng(1)
    normalizer = Normalizer(2, 3)
    normalizer.fit(rng.normal(size=(50, 2)), rng.normal(5, 3, (50, 3)))
    raw = torch.randn(7, 3)
    torch.testing.assert_close(normalizer.action_inverse(normalizer.action(raw)), raw)


def test_a_constant_column_stays_finite_and_small():
    rng = np.random.default_rng(2)
    observations = np.column_stack([rng.normal(size=50), np.full(50, 0.3)])
    normalizer = Normalizer(2, 1)
    normalizer.fit(observations, rng.normal(size=(50, 1)))
    # A goal 1 mm from the only one ever seen is not a thousand standard deviations away.
    moved = normalizer.observation(torch.tensor([[0.0, 0.301]]))
    assert abs(moved[0, 1].item()) < 0.5


def test_a_single_demonstration_does_not_make_nan():
    normalizer = Normalizer(2, 1)
    normalizer.fit(np.ones((1, 2)), np.ones((1, 1)))
    assert torch.isfinite(normalizer.observation(torch.ones(1, 2))).all()
    assert torch.isfinite(normalizer.action(torch.ones(1, 1))).all()


def test_observations_far_outside_the_data_are_clamped(make_policy):
    policy = make_policy()
    scaled = policy.normalizer.observation(torch.tensor([[1e9, -1e9, 0.3, 0.3, 0.3]]))
    assert scaled[0, :2].tolist() == [OBSERVATION_CLAMP, -OBSERVATION_CLAMP]


def test_a_chunk_is_the_denormalised_sample_step_by_step(make_policy):
    policy = make_policy(size=2, horizon=3)
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(4, 5)).astype(np.float32)
    noise = rng.normal(size=(4, 6)).astype(np.float32)
    chunk = policy.act(observation, noise)
    assert chunk.shape == (4, 3, 2) and chunk.dtype == np.float32
    with torch.no_grad():
        x = policy.sample(
            policy.normalizer.observation(torch.from_numpy(observation)), torch.from_numpy(noise)
        )
    flat = x * policy.normalizer.action_std + policy.normalizer.action_mean
    # Row-major: the first A numbers are the first control step.
    np.testing.assert_allclose(chunk[:, 0], flat[:, :2], rtol=1e-6)
    np.testing.assert_allclose(chunk[:, 2], flat[:, 4:], rtol=1e-6)


def test_a_checkpoint_says_enough_to_compute_its_policy_without_torch(make_policy, tmp_path):
    """Normaliser, time features, network and midpoint steps written out in numpy.

    Other code that reads these files, or a later release, has to compute just this.
    """
    network = {'kind': 'residual_mlp', 'width': 8, 'depth': 4}
    make_policy(network=network, sampler=SamplerSpec('midpoint', 3)).save(tmp_path / 'model')
    checkpoint = load(tmp_path / 'model')
    golden, w = checkpoint.manifest.golden, checkpoint.weights

    def dense(name, x):
        return w[f'net.{name}.weight'] @ x + w[f'net.{name}.bias']

    def silu(x):
        return x / (1 + np.exp(-x))

    def velocity(x, t):
        angle = t * np.pi * 2.0 ** (np.arange(8) * 5 / 7)
        h = silu(dense('input', np.concatenate([x, np.cos(angle), np.sin(angle), o])))
        for k in range(3):
            h = h + silu(dense(f'blocks.{k}', h))
        return dense('output', h)

    o = golden.observation - w['normalizer.observation_mean']
    o = np.clip(o / w['normalizer.observation_std'], -8, 8)
    x = golden.noise
    for t in (1, 2 / 3, 1 / 3):
        x = x - velocity(x - velocity(x, t) / 6, t - 1 / 6) / 3
    chunk = x * w['normalizer.action_std'] + w['normalizer.action_mean']
    np.testing.assert_allclose(chunk.reshape(3, 2), golden.chunk, atol=1e-6)


def test_the_sampler_is_part_of_the_policy(make_policy):
    policy = make_policy(sampler=SamplerSpec('euler', 10))
    few = policy.with_sampler(SamplerSpec('euler', 1))
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(2, 5)).astype(np.float32)
    noise = rng.normal(size=(2, 6)).astype(np.float32)
    assert policy.spec.sampler.steps == 10 and few.spec.sampler.steps == 1
    np.testing.assert_array_equal(
        few.act(observation, noise), policy.act(observation, noise, SamplerSpec('euler', 1))
    )
    assert np.abs(few.act(observation, noise) - policy.act(observation, noise)).max() > 1e-4


def test_same_noise_gives_the_same_chunk_and_other_noise_another(make_policy):
    policy = make_policy()
    observation = np.zeros((1, 5), dtype=np.float32)
    noise = np.ones((1, 6), dtype=np.float32)
    first = policy.act(observation, noise)
    np.testing.assert_array_equal(policy.act(observation, noise), first)
    assert np.abs(policy.act(observation, -noise) - first).max() > 1e-3


def test_a_clone_is_frozen_and_independent(make_policy):
    policy = make_policy()
    copy = policy.clone()
    assert not any(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1)
    assert all(
        not torch.equal(p, q) for p, q in zip(policy.parameters(), copy.parameters(), strict=True)
    )


def test_a_policy_survives_its_checkpoint_bit_by_bit(make_policy, tmp_path):
    policy = make_policy(sampler=SamplerSpec('sde', 3))
    policy.save(tmp_path / 'model')
    again = load_policy(tmp_path / 'model')
    for name, value in policy.weights().items():
        np.testing.assert_array_equal(again.weights()[name], value)
    assert again.spec.to_dict() == policy.spec.to_dict()


def test_the_golden_chunk_of_a_checkpoint_is_what_the_policy_computes(make_policy, tmp_path):
    policy = make_policy()
    manifest = policy.save(tmp_path / 'model')
    golden = manifest.golden
    chunk = load_policy(tmp_path / 'model').act(golden.observation[None], golden.noise[None])[0]
    np.testing.assert_allclose(chunk, golden.chunk, atol=1e-6)
    other = make_policy(seed=1).act(golden.observation[None], golden.noise[None])[0]
    assert np.abs(other - golden.chunk).max() > 1e-4


@pytest.mark.parametrize('change', ['missing', 'unknown', 'shape'])
def test_weights_of_another_network_are_refused(make_policy, change):
    policy = make_policy()
    weights = policy.weights()
    if change == 'missing':
        del weights['net.output.bias']
    elif change == 'unknown':
        weights['net.extra'] = np.zeros(3, dtype=np.float32)
    else:
        weights['net.output.bias'] = np.zeros(9, dtype=np.float32)
    word = 'extra' if change == 'unknown' else 'net.output.bias'
    with pytest.raises(CheckpointError, match=word):
        policy.load_weights(weights)


def test_refused_weights_leave_the_policy_as_it_was(make_policy):
    policy = make_policy()
    before = policy.weights()
    wrong = {k: v + 1 for k, v in before.items()} | {'net.output.bias': np.zeros(9, np.float32)}
    with pytest.raises(CheckpointError):
        policy.load_weights(wrong)
    for name, value in policy.weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_time_features_tell_all_times_of_a_sampler_apart():
    t = torch.linspace(0, 1, 65)
    features = time_features(t)
    assert features.shape == (65, 16) and features.abs().max() <= 1
    distance = torch.cdist(features, features) + 9 * torch.eye(65)
    assert distance.min() > 0.1


def test_depth_counts_hidden_layers():
    for depth in (1, 3):
        network = build_network({'kind': 'residual_mlp', 'width': 8, 'depth': depth}, 2, 3)
        shapes = [tuple(p.shape) for n, p in network.named_parameters() if n.endswith('weight')]
        assert shapes == [(8, 2 + 16 + 3), *[(8, 8)] * (depth - 1), (2, 8)]


def test_the_golden_input_depends_on_nothing_but_its_seed(make_policy):
    policy = make_policy()
    torch.manual_seed(123)
    first = policy.golden()
    np.random.seed(5)
    again = policy.golden()
    np.testing.assert_array_equal(first.observation, again.observation)
    np.testing.assert_array_equal(first.chunk, again.chunk)
    assert np.abs(policy.golden(seed=1).noise - first.noise).max() > 0.1


def test_random_weights_come_from_the_global_seed(make_spec):
    nets = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        nets.append(FlowPolicy(make_spec()).weights())
    np.testing.assert_array_equal(nets[0]['net.input.weight'], nets[1]['net.input.weight'])
    assert np.abs(nets[0]['net.input.weight'] - nets[2]['net.input.weight']).max() > 0
