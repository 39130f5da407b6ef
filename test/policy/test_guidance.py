# SPDX-License-Identifier: Apache-2.0
"""A guided sampler continues known steps; without weights it is the plain sampler."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `checkpoints`

from checkpoints import HORIZON, JOINTS, make_policy  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.policy.export import export_onnx  # noqa: E402
from dipod_ros.policy.guidance import guided_sample, strength  # noqa: E402
from dipod_ros.policy.networks import time_features  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

SAMPLERS = [
    SamplerSpec('euler', 1),
    SamplerSpec('euler', 5),
    SamplerSpec('midpoint', 3),
    SamplerSpec('sde', 4),
    SamplerSpec('chain', 2),
]


def inputs(policy, seed=0, batch=1):
    g = torch.Generator().manual_seed(seed)
    spec = policy.spec
    return (
        torch.randn(batch, spec.observation_size, generator=g),
        torch.randn(batch, spec.noise_size, generator=g),
        0.03 * torch.randn(batch, HORIZON, len(JOINTS), generator=g),
        torch.rand(batch, HORIZON, generator=g),
    )


@pytest.mark.parametrize('depth', [1, 3])
def test_the_pullback_is_the_derivative(depth):
    network = {'kind': 'residual_mlp', 'width': 12, 'depth': depth}
    policy = make_policy(1, network=network)
    g = torch.Generator().manual_seed(2)
    x, c = (torch.randn(4, policy.spec.action_size, generator=g) for _ in range(2))
    o = torch.randn(4, policy.spec.observation_size, generator=g)
    features = time_features(torch.tensor([0.1, 0.4, 0.7, 1.0]))
    x.requires_grad_(True)
    v = policy.net(x, features, o)
    (expected,) = torch.autograd.grad(v, x, c)
    velocity, pull = policy.net.with_pullback(x.detach(), features, o)
    np.testing.assert_array_equal(velocity.numpy(), v.detach().numpy())
    np.testing.assert_allclose(pull(c).numpy(), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_without_weights_it_is_the_plain_sampler(sampler):
    policy = make_policy(0, sampler=sampler)
    o, z, prefix, weights = inputs(policy, batch=3)
    plain = policy.chunk(o, z)
    free = guided_sample(policy, o, z, 100 * prefix, torch.zeros_like(weights))
    np.testing.assert_allclose(free.numpy(), plain.numpy(), atol=1e-7)
    assert not np.allclose(guided_sample(policy, o, z, prefix, weights).numpy(), plain.numpy())


def test_guidance_brings_the_chunk_near_the_known_steps_and_less_where_they_weigh_less():
    policy = make_policy(0, sampler=SamplerSpec('midpoint', 5))
    o, z, prefix, _ = inputs(policy, batch=32)
    weights = torch.zeros(32, HORIZON)
    weights[:, :2] = 1.0
    plain, guided = policy.chunk(o, z), guided_sample(policy, o, z, prefix, weights)
    before, after = ((c - prefix).abs().mean((0, 2)) for c in (plain, guided))
    assert torch.all(after[:2] < 0.4 * before[:2])
    assert torch.all(after[2:] > 0.8 * before[2:])


def test_the_strength_is_bounded_by_the_paper_and_by_the_steps():
    assert strength(1.0, SamplerSpec('euler', 10)) == 5.0
    assert strength(1.0, SamplerSpec('euler', 2)) == 2.0
    assert strength(0.5, SamplerSpec('euler', 10)) == pytest.approx(2.0)
    assert strength(0.9, SamplerSpec('euler', 10)) == pytest.approx((0.01 + 0.81) / 0.09, abs=5)


def test_a_network_without_a_pullback_is_refused():
    policy = make_policy(0)
    policy.net = torch.nn.Identity()
    with pytest.raises(UserError, match='seam replace or ensemble'):
        guided_sample(policy, *inputs(policy))
    with pytest.raises(UserError, match='cannot be guided'):
        export_onnx(policy, guided=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize('sampler', [SAMPLERS[2], SAMPLERS[3]], ids=str)
def test_the_exported_graph_is_the_guided_sampler(sampler):
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    policy = make_policy(0, sampler=sampler)
    session = ort.InferenceSession(export_onnx(policy, guided=True))
    names = [i.name for i in session.get_inputs()]
    assert names == ['observation', 'noise', 'prefix', 'weights']
    for seed in range(3):
        given = inputs(policy, seed)
        for tensors in (given, (*given[:3], torch.zeros_like(given[3]))):
            feed = dict(zip(names, (t.numpy() for t in tensors), strict=True))
            expected = guided_sample(policy, *tensors).numpy()
            np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-6)
        plain = policy.chunk(*given[:2]).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], plain, atol=1e-5)
