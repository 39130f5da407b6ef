# SPDX-License-Identifier: Apache-2.0
"""The transformer and the U-Net: shapes, conditioning, gradients, learning, and their graphs."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.policy.networks import TIME_FEATURES, build_network, time_features  # noqa: E402
from dipod_ros.policy.path import cfm_loss, draw_path_samples  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec, SpecError  # noqa: E402

DIT = {'kind': 'dit', 'width': 16, 'depth': 2, 'heads': 2}
UNET = {'kind': 'unet', 'width': 8, 'depth': 2}
NETWORKS = pytest.mark.parametrize('network', [DIT, UNET], ids=['dit', 'unet'])
JOINTS, OBSERVED = 3, 7


def build(network, horizon):
    torch.manual_seed(0)
    return build_network(network, JOINTS * horizon, OBSERVED, horizon)


def randomised(network, horizon):
    """Return a network in which nothing is zero, as after training."""
    net = build(network, horizon)
    for parameter in net.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def inputs(horizon, batch):
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator)
    features = time_features(torch.rand(batch, generator=generator))
    return draw(batch, JOINTS * horizon), features, draw(batch, OBSERVED)


@NETWORKS
@pytest.mark.parametrize('horizon', [1, 2, 5, 8, 16])
def test_any_horizon_and_batch_fit(network, horizon):
    net = randomised(network, horizon)
    for batch in (1, 4):
        x, features, observation = inputs(horizon, batch)
        assert net(x, features, observation).shape == x.shape
    # Rows of a batch know nothing of each other.
    with torch.no_grad():
        whole = net(x, features, observation)
        alone = net(x[2:3], features[2:3], observation[2:3])
    torch.testing.assert_close(whole[2:3], alone, rtol=0, atol=1e-5)


@NETWORKS
def test_a_forward_pass_is_a_step_under_a_condition(network):
    net = randomised(network, 4)
    x, features, observation = inputs(4, 3)
    # One observation serves all times, as in a sampler's graph.
    condition = net.condition(features, observation[:1])
    expected = net(x, features, observation[:1].expand(3, -1))
    torch.testing.assert_close(net.step(x, condition), expected, rtol=0, atol=1e-6)


@NETWORKS
@pytest.mark.parametrize('which', [0, 1, 2], ids=['x', 'time', 'observation'])
def test_every_input_matters_to_every_step_of_the_chunk(network, which):
    net = randomised(network, 6)
    given = list(inputs(6, 1))
    before = net(*given).reshape(6, JOINTS)
    given[which] = given[which] + 0.5
    change = (net(*given).reshape(6, JOINTS) - before).abs()
    assert (change.amax(1) > 1e-5).all()


@NETWORKS
def test_every_parameter_gets_a_gradient(network):
    net = randomised(network, 5)
    net(*inputs(5, 4)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_new_transformer_is_silent_and_its_blocks_are_the_identity():
    """adaLN-zero, arXiv 2212.09748 section 3.2."""
    net = build(DIT, 4)
    x, features, observation = inputs(4, 2)
    assert not net(x, features, observation).any()
    h = torch.randn(2, 4, 16)
    rows = net.condition(features, observation).reshape(2, -1, 16)
    m = [rows[:, i : i + 1] for i in range(rows.shape[1])]
    torch.testing.assert_close(net.blocks[0](h, m[:6]), h)
    torch.testing.assert_close(net.blocks[1](h, m[6:12]), h)


def test_group_normalisation_is_torchs_in_both_of_its_forms(monkeypatch):
    from dipod_ros.policy.unet import _GroupNorm

    for affine in (True, False):
        norm = _GroupNorm(16, affine)
        if affine:
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
        x = 3 * torch.randn(2, 16, 5) + 1
        native = norm(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
            torch.testing.assert_close(norm(x), native, rtol=0, atol=1e-5)


@NETWORKS
def test_a_few_training_steps_lower_the_loss(network, make_policy):
    policy = make_policy(network=network, horizon=4)
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(64, policy.spec.observation_size, generator=generator)
    # What to do follows from what is seen.
    mix = torch.randn(policy.spec.observation_size, policy.spec.action_size, generator=generator)
    actions = torch.tanh(observations @ mix)

    samples = draw_path_samples(64, 4, policy.spec.action_size, torch.Generator().manual_seed(5))

    def loss():
        return cfm_loss(policy, actions, observations, samples).mean()

    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    before = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * before


@pytest.mark.parametrize(
    ('network', 'word'),
    [
        ({**DIT, 'heads': 3}, 'multiple of heads'),
        ({**UNET, 'width': 12}, 'multiple of 8'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(network, word):
    with pytest.raises(UserError, match=word):
        build(network, 4)


def test_sizes_that_are_missing_are_refused(make_spec):
    with pytest.raises(SpecError, match='heads'):
        make_spec(network={'kind': 'dit', 'width': 16, 'depth': 2})
    with pytest.raises(SpecError, match='depth'):
        make_spec(network={'kind': 'unet', 'width': 16})


@pytest.fixture(scope='module', params=[DIT, UNET], ids=['dit', 'unet'])
def exported(request, make_policy):
    """Return a function that makes a policy from a seed, and the graph of seed 0."""
    pytest.importorskip('onnx')
    from dipod_ros.policy.export import export_onnx

    def make(seed):
        policy = make_policy(
            seed, network=request.param, horizon=5, sampler=SamplerSpec('midpoint', 1)
        )
        for parameter in policy.net.parameters():
            if not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.1)
        return policy

    return make, export_onnx(make(0))


class TestGraph:
    """What an export of these networks holds, and that it can be refitted."""

    # Sequences, loops and branches: none of them has a place in a static graph for TensorRT.
    FORBIDDEN = {'SplitToSequence', 'SequenceAt', 'ConcatFromSequence', 'Loop', 'If', 'Scan'}

    def test_it_is_valid_and_without_sequences(self, exported):
        import onnx

        proto = onnx.load_from_string(exported[1])
        onnx.checker.check_model(proto, full_check=True)
        assert not {n.op_type for n in proto.graph.node} & self.FORBIDDEN
        assert not any(i.name.endswith('neutral') for i in proto.graph.input)

    def test_refitted_weights_give_what_torch_gives(self, exported):
        onnx = pytest.importorskip('onnx')
        ort = pytest.importorskip('onnxruntime')
        make, model = exported
        for seed in (0, 1):
            policy, proto = make(seed), onnx.load_from_string(model)
            weights = policy.weights()
            slots = {i.name: i for i in proto.graph.initializer}
            assert weights.keys() <= slots.keys()
            for name, value in weights.items():
                slots[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
            session = ort.InferenceSession(
                proto.SerializeToString(), providers=['CPUExecutionProvider']
            )
            rng = np.random.default_rng(2)
            for _ in range(5):
                o = rng.normal(size=(1, policy.spec.observation_size)).astype(np.float32)
                z = rng.normal(size=(1, policy.spec.noise_size)).astype(np.float32)
                chunk = session.run(None, {'observation': o, 'noise': z})[0]
                expected = policy.act(o, z)
                np.testing.assert_allclose(chunk, expected, rtol=0, atol=1e-6)
            assert np.abs(expected).max() > 1e-3


def test_time_features_have_the_size_that_networks_are_built_for():
    assert time_features(torch.zeros(2)).shape == (2, TIME_FEATURES)
