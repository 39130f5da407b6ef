# SPDX-License-Identifier: Apache-2.0
"""The exported graph: valid, the same numbers as torch, and fit for a weight swap."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.policy.export import OPSET, export_onnx  # noqa: E402
from dipod_ros.policy.flow import OBSERVATION_CLAMP, FlowPolicy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec, Stream  # noqa: E402
from dipod_ros.serving.engines.graph_cache import graph_key  # noqa: E402

TOLERANCE_RAD = 1e-5
SAMPLERS = {
    'euler': SamplerSpec('euler', 3),
    'midpoint': SamplerSpec('midpoint', 2),
    'sde': SamplerSpec('sde', 3, 0.8),
    'one_step': SamplerSpec('euler', 1),
}


@pytest.fixture(scope='module')
def exported(make_policy):
    """Return a function: name of a sampler -> (policy, ONNX bytes), each exported once."""
    done = {}

    def export(name):
        if name not in done:
            policy = make_policy(sampler=SAMPLERS[name])
            done[name] = policy, export_onnx(policy)
        return done[name]

    return export


def runner(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    return lambda o, z: session.run(None, {'observation': o[None], 'noise': z[None]})[0][0]


def inputs(policy, count=20):
    rng = np.random.default_rng(3)
    spec = policy.spec
    observations = rng.normal(0.3, 0.7, (count, spec.observation_size)).astype(np.float32)
    observations[0] = 1e4  # where the clamp of the normaliser is at work
    return observations, rng.normal(size=(count, spec.noise_size)).astype(np.float32)


@pytest.mark.parametrize('name', SAMPLERS)
def test_the_graph_computes_what_torch_computes(exported, name):
    policy, model = exported(name)
    run = runner(model)
    for observation, noise in zip(*inputs(policy), strict=True):
        chunk = run(observation, noise)
        expected = policy.act(observation[None], noise[None])[0]
        assert chunk.shape == expected.shape == (3, 2)
        np.testing.assert_allclose(chunk, expected, rtol=0, atol=TOLERANCE_RAD)
    # The comparison above means something: chunks differ by much more than the tolerance.
    assert np.ptp(policy.act(*inputs(policy)), axis=0).min() > 1000 * TOLERANCE_RAD


@pytest.mark.parametrize('name', SAMPLERS)
def test_the_graph_is_valid_and_static(exported, name):
    policy, model = exported(name)
    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {o.domain: o.version for o in proto.opset_import}[''] == OPSET

    def described(values):
        return {
            v.name: (
                v.type.tensor_type.elem_type,
                [d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
        }

    float32 = onnx.TensorProto.FLOAT
    assert described(proto.graph.input) == {
        'observation': (float32, [1, policy.spec.observation_size]),
        'noise': (float32, [1, policy.spec.noise_size]),
    }
    assert described(proto.graph.output) == {'chunk': (float32, [1, 3, 2])}


@pytest.mark.parametrize('name', SAMPLERS)
def test_weights_keep_their_names_and_nothing_else_has_one_of_them(exported, name):
    policy, model = exported(name)
    initializers = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in onnx.load_from_string(model).graph.initializer
    }
    weights = policy.weights()
    assert weights.keys() <= initializers.keys()
    for key, value in weights.items():
        assert initializers[key].dtype == np.float32
        np.testing.assert_array_equal(initializers[key], value)


@pytest.mark.parametrize('name', ['midpoint', 'sde'])
def test_new_weights_put_in_by_name_equal_a_fresh_export(exported, make_policy, name):
    """What a server does when a checkpoint of the same graph arrives."""
    policy, model = exported(name)
    other = make_policy(seed=1, sampler=SAMPLERS[name])
    proto = onnx.load_from_string(model)
    weights = other.weights()
    for initializer in proto.graph.initializer:
        if initializer.name in weights:
            value = onnx.numpy_helper.from_array(weights[initializer.name], initializer.name)
            initializer.CopyFrom(value)
    refitted, fresh = runner(proto.SerializeToString()), runner(export_onnx(other))
    worst = 0.0
    for observation, noise in zip(*inputs(policy), strict=True):
        chunk = refitted(observation, noise)
        np.testing.assert_array_equal(chunk, fresh(observation, noise))
        worst = max(worst, np.abs(chunk - policy.act(observation[None], noise[None])[0]).max())
    assert worst > 1000 * TOLERANCE_RAD


def test_an_export_leaves_the_policy_alone(make_policy, exported):
    policy, _ = exported('euler')
    twin = make_policy(sampler=SAMPLERS['euler'])
    for key, value in twin.weights().items():
        np.testing.assert_array_equal(policy.weights()[key], value)
    assert all(p.requires_grad for p in policy.net.parameters())
    assert policy.training


def test_the_graph_clamps_far_observations(exported):
    """Beyond the clamp another observation makes no difference."""
    policy, model = exported('euler')
    run = runner(model)
    noise = np.zeros(policy.spec.noise_size, dtype=np.float32)
    far = np.full(policy.spec.observation_size, 1e4, dtype=np.float32)
    np.testing.assert_array_equal(run(far, noise), run(far * 7, noise))
    assert OBSERVATION_CLAMP * policy.normalizer.observation_std.max() < 1e4


def test_one_graph_serves_all_weights_limits_and_names(make_spec, make_limits):
    base = make_spec()
    same = [
        make_spec(task='other', robot='other_arm'),
        make_spec(limits=make_limits(2, velocity=9.0)),
        make_spec(control_period_s=0.02),
        make_spec(streams=(Stream('all', 'vector', 5, 'all'),)),
        make_spec(network={'depth': 2, 'width': 16, 'kind': 'residual_mlp'}),
    ]
    assert {graph_key(s) for s in same} == {graph_key(base)}


def test_whatever_shapes_the_graph_changes_its_key(make_spec):
    network = {'kind': 'residual_mlp', 'width': 16, 'depth': 2}
    specs = [
        make_spec(),
        make_spec(horizon=4),
        make_spec(size=3),
        make_spec(size=3, horizon=2),
        make_spec(streams=(Stream('all', 'vector', 6, 'all'),)),
        make_spec(network=network | {'width': 17}),
        make_spec(network=network | {'depth': 3}),
        make_spec(sampler=SamplerSpec('midpoint', 6)),
        make_spec(sampler=SamplerSpec('euler', 5)),
        make_spec(sampler=SamplerSpec('sde', 5)),
        make_spec(sampler=SamplerSpec('sde', 5, 0.5)),
    ]
    keys = {graph_key(s) for s in specs}
    assert len(keys) == len(specs)
    assert all(len(k) == 64 for k in keys)


def test_a_sampler_of_endless_steps_is_not_unrolled(make_spec, monkeypatch):
    spec = make_spec(sampler=SamplerSpec('midpoint', 1000))
    begun = []
    monkeypatch.setattr(torch.onnx, 'export', lambda *a, **k: begun.append(a))
    with pytest.raises(UserError, match='distil it to fewer steps, or use engine: torch'):
        export_onnx(FlowPolicy(spec))
    assert not begun
