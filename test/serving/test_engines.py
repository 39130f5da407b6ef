# SPDX-License-Identifier: Apache-2.0
"""Every engine gives what training's own code gives, before and after a refit."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import make_policy, save_checkpoint, save_fragile_checkpoint

from dipod_ros.policy.checkpoint import load
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.serving.engines import select
from dipod_ros.serving.engines.base import EngineError, check_golden
from dipod_ros.serving.engines.select import EngineFactory

PARITY_RAD = 1e-6
ENGINES = ['torch', pytest.param('onnx', marks=pytest.mark.timeout(240))]


@pytest.fixture(scope='module')
def factories():
    """One factory per engine for the whole file: exporting a graph takes seconds."""
    kept = {}

    def get(name):
        if name == 'onnx':
            pytest.importorskip('onnxruntime')
        return kept.setdefault(name, EngineFactory(name))

    return get


def inputs(spec, seed=3):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=spec.observation_size).astype(np.float32),
        rng.normal(size=spec.noise_size).astype(np.float32),
    )


def test_onnx_and_torch_give_what_training_gives(factories, tmp_path):
    save_checkpoint(tmp_path / 'a')
    checkpoint = load(tmp_path / 'a')
    expected = make_policy(0)
    for name in ('torch', 'onnx'):
        engine = factories(name).build(checkpoint)
        for seed in range(3):
            o, z = inputs(checkpoint.spec, seed)
            chunk = engine.run(o, z)
            assert chunk.dtype == np.float32
            np.testing.assert_allclose(chunk, expected.act(o[None], z[None])[0], atol=PARITY_RAD)


@pytest.mark.parametrize('name', ENGINES)
def test_the_next_checkpoint_of_the_same_graph_is_refitted(factories, tmp_path, name):
    save_checkpoint(tmp_path / 'a', seed=0)
    save_checkpoint(tmp_path / 'b', seed=1)
    first, second = load(tmp_path / 'a'), load(tmp_path / 'b')
    old = factories(name).build(first)
    o, z = inputs(first.spec)
    before = old.run(o, z)
    new = factories(name).build(second)
    assert new.info().refitted
    check_golden(new, second.manifest.golden)
    np.testing.assert_allclose(new.run(o, z), make_policy(1).act(o[None], z[None])[0], atol=1e-6)
    # The one that is acting goes on as it was.
    np.testing.assert_array_equal(old.run(o, z), before)


@pytest.mark.parametrize('name', ENGINES)
def test_weights_of_another_network_are_refused_by_a_refit(factories, tmp_path, name):
    from dipod_ros.errors import UserError

    save_checkpoint(tmp_path / 'a')
    engine = factories(name).build(load(tmp_path / 'a'))
    other = make_policy(0, network={'kind': 'residual_mlp', 'width': 24, 'depth': 2})
    with pytest.raises(UserError, match='weight'):
        engine.refit(other.weights())
    with pytest.raises(UserError, match='weight'):
        engine.refit(make_policy(0).weights() | {'net.extra': np.zeros(1, np.float32)})


@pytest.mark.parametrize('name', ENGINES)
def test_another_sampler_is_another_graph(factories, tmp_path, name):
    save_checkpoint(tmp_path / 'a')
    factories(name).build(load(tmp_path / 'a'))
    save_checkpoint(tmp_path / 'sde', sampler=SamplerSpec('sde', 3))
    checkpoint = load(tmp_path / 'sde')
    engine = factories(name).build(checkpoint)
    assert not engine.info().refitted
    check_golden(engine, checkpoint.manifest.golden)


def test_auto_prefers_onnx_and_says_why():
    pytest.importorskip('onnxruntime')
    factory = EngineFactory('auto')
    assert factory.name == 'onnx'
    assert 'fastest' in factory.reason


def test_auto_falls_back_to_torch_and_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(select._NEEDS, 'onnx', ('no_such_runtime',))
    factory = EngineFactory('auto')
    assert factory.name == 'torch'
    assert 'no_such_runtime' in factory.reason and 'pip install' in factory.reason


def test_an_engine_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(select._NEEDS, 'tensorrt', ('no_such_tensorrt',))
    with pytest.raises(EngineError, match='NVIDIA GPU'):
        EngineFactory('tensorrt')
    with pytest.raises(EngineError, match='one of'):
        EngineFactory('abacus')


def test_a_policy_that_overflows_does_so_in_every_engine_alike(factories, tmp_path):
    """What reaches the safety filter is NaN or infinity, not an exception or a plausible number."""
    save_fragile_checkpoint(tmp_path / 'fragile')
    checkpoint = load(tmp_path / 'fragile')
    o, z = inputs(checkpoint.spec)
    for name in ('torch', 'onnx'):
        engine = factories(name).build(checkpoint)
        check_golden(engine, checkpoint.manifest.golden)
        assert not np.isfinite(engine.run(o, z)).all()


def test_a_chunk_that_is_not_finite_fails_the_golden_check(factories, tmp_path):
    save_checkpoint(tmp_path / 'a')
    checkpoint = load(tmp_path / 'a')
    engine = factories('torch').build(checkpoint)
    golden = replace(checkpoint.manifest.golden, chunk=checkpoint.manifest.golden.chunk * np.nan)
    with pytest.raises(EngineError, match='golden check failed'):
        check_golden(engine, golden)


def test_the_golden_check_needs_golden_values(factories, tmp_path):
    save_checkpoint(tmp_path / 'a')
    engine = factories('torch').build(load(tmp_path / 'a'))
    with pytest.raises(EngineError, match='no golden values'):
        check_golden(engine, None)
