# SPDX-License-Identifier: Apache-2.0
"""What every backend must do, run on those that are here; the others say what they lack.

The GPU backends' own code runs as well where there is no GPU: PyTorch's without the capture on CPU
tensors, TensorRT's on fakes of TensorRT and the driver. `dipod gpu-check` runs the real ones.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import fake_gpu
import numpy as np
import pytest
from checkpoints import make_policy, save_checkpoint, save_lying_checkpoint

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import load
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.serving.engines.backends import BACKENDS
from dipod_ros.serving.engines.base import (
    PARITY_STD,
    PRECISIONS,
    EngineError,
    EngineOptions,
    check_golden,
)

STEP_RAD = 0.02  # the standard deviation of the test policies' actions
NETWORKS = {
    'mlp': {'kind': 'residual_mlp', 'width': 16, 'depth': 2},
    'dit': {'kind': 'dit', 'width': 16, 'depth': 1, 'heads': 2},
    'unet': {'kind': 'unet', 'width': 16, 'depth': 2},
}


@contextmanager
def real(name):
    backend = BACKENDS[name]
    missing = backend.missing()
    if missing:
        pytest.skip(f'{name}: {", ".join(missing)}; {backend.advice()}')
    yield backend.load().build


@contextmanager
def cuda_on_cpu():
    pytest.importorskip('torch')
    yield partial(BACKENDS['cuda'].load().build, device='cpu')


@contextmanager
def tensorrt_on_fakes(version):
    pytest.importorskip('onnxruntime')
    from dipod_ros.serving.engines import cuda_driver

    with pytest.MonkeyPatch.context() as patch:
        fake_gpu.install(patch, fake_gpu.fake_tensorrt(version))
        yield BACKENDS['tensorrt'].load().build
    cuda_driver.find_gpu.cache_clear()


BUILDERS = {
    **{name: partial(real, name) for name in BACKENDS},
    'cuda code on a CPU': cuda_on_cpu,
    'tensorrt code on a fake 10.3': partial(tensorrt_on_fakes, '10.3.0'),
    'tensorrt code on a fake 11.4': partial(tensorrt_on_fakes, '11.4.0'),
}
CASES = [
    (name, precision)
    for name in BUILDERS
    for precision in PRECISIONS
    if precision in BACKENDS[name.split(' ')[0]].precisions
]


@pytest.fixture(scope='module', params=CASES, ids=lambda case: f'{case[0]}-{case[1]}')
def build(request):
    """Return a function: checkpoint -> engine of one backend in one precision."""
    name, precision = request.param
    with BUILDERS[name]() as builder:
        yield lambda checkpoint: builder(checkpoint, EngineOptions(precision=precision))


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    for seed in (0, 1):
        save_checkpoint(folder / str(seed), seed=seed)
    save_lying_checkpoint(folder / 'lying')
    return {p.name: load(p) for p in folder.iterdir()}


@pytest.fixture(scope='module')
def engine(build, checkpoints):
    return build(checkpoints['0'])


def inputs(spec, seed=3):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=spec.observation_size).astype(np.float32),
        rng.normal(size=spec.noise_size).astype(np.float32),
    )


def assert_parity(engine, policy):
    allowed = PARITY_STD[engine.info().precision] * STEP_RAD
    for seed in range(5):
        o, z = inputs(policy.spec, seed)
        chunk = engine.run(o, z)
        expected = policy.act(o[None], z[None])[0]
        assert chunk.dtype == np.float32 and chunk.shape == expected.shape
        np.testing.assert_allclose(chunk, expected, rtol=0, atol=allowed)
    assert np.abs(expected).max() > 10 * allowed  # the comparison means something


def test_it_gives_what_training_gives(engine):
    assert_parity(engine, make_policy(0))


def test_the_same_input_gives_the_same_chunk_and_each_result_is_its_own(engine, checkpoints):
    o, z = inputs(checkpoints['0'].spec)
    first = engine.run(o, z)
    kept = first.copy()
    other = engine.run(o + 1, z)
    assert np.abs(other - kept).max() > 1e-4
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(engine.run(o, z), kept)


def test_a_refit_is_another_engine_and_the_old_one_goes_on(engine, checkpoints):
    o, z = inputs(checkpoints['0'].spec)
    before = engine.run(o, z)
    new = engine.refit(checkpoints['1'].weights)
    assert new.info().refitted
    new.golden_check(checkpoints['1'].manifest.golden)
    assert_parity(new, make_policy(1))
    np.testing.assert_array_equal(engine.run(o, z), before)
    assert_parity(new.refit(checkpoints['0'].weights), make_policy(0))


@pytest.mark.parametrize('change', ['shape', 'unknown', 'missing'])
def test_weights_of_another_network_are_refused_and_the_engine_goes_on(engine, checkpoints, change):
    weights = dict(checkpoints['0'].weights)
    if change == 'shape':
        weights['net.output.weight'] = np.zeros((2, 2), np.float32)
    elif change == 'unknown':
        weights['net.extra'] = np.zeros(1, np.float32)
    else:
        del weights['net.output.bias']
    o, z = inputs(checkpoints['0'].spec)
    before = engine.run(o, z)
    with pytest.raises(UserError, match='weight') as error:
        engine.refit(weights)
    assert '\n' not in str(error.value)
    np.testing.assert_array_equal(engine.run(o, z), before)


def test_golden_values_decide(engine, checkpoints):
    golden = checkpoints['0'].manifest.golden
    engine.golden_check(golden)
    with pytest.raises(EngineError, match='no golden values'):
        engine.golden_check(None)
    for wrong in (golden.chunk + 0.01, golden.chunk[:-1], golden.chunk * np.nan):
        with pytest.raises(EngineError, match='golden'):
            engine.golden_check(replace(golden, chunk=wrong))


def test_weights_that_give_nan_fail_the_golden_check_and_raise_nowhere_else(engine, checkpoints):
    weights = dict(checkpoints['0'].weights)
    weights['net.output.bias'] = np.full_like(weights['net.output.bias'], np.nan)
    sick = engine.refit(weights)
    assert not np.isfinite(sick.run(*inputs(checkpoints['0'].spec))).any()
    with pytest.raises(EngineError, match='not finite'):
        sick.golden_check(checkpoints['0'].manifest.golden)


def test_a_checkpoint_that_lies_about_itself_is_found_out(build, checkpoints):
    lying = checkpoints['lying']
    with pytest.raises(EngineError, match='golden check failed'):
        check_golden(build(lying), lying.manifest.golden)


def test_it_says_what_it_is(build, checkpoints):
    engine = build(checkpoints['0'])
    engine.golden_check(checkpoints['0'].manifest.golden)
    info = engine.info()
    assert info.name in BACKENDS and info.version and info.device
    assert info.precision in BACKENDS[info.name].precisions
    assert info.build_s > 0 and info.warm_up_s > 0 and info.memory_bytes >= 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize('network', NETWORKS)
def test_all_networks_run(build, tmp_path, network):
    def make(seed):
        # Two evaluations: the size of a graph goes with them, and so does the time of an export.
        policy = make_policy(seed, network=NETWORKS[network], sampler=SamplerSpec('euler', 2))
        for parameter in policy.net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        return policy

    policy = make(0)
    policy.save(tmp_path / 'a')
    checkpoint = load(tmp_path / 'a')
    engine = build(checkpoint)
    engine.golden_check(checkpoint.manifest.golden)
    assert_parity(engine, policy)
    other = make(1)
    assert_parity(engine.refit(other.weights()), other)
