# SPDX-License-Identifier: Apache-2.0
"""Every engine gives what training's own code gives, before and after a refit."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import make_policy, make_spec, save_checkpoint, save_fragile_checkpoint

from dipod_ros.policy.checkpoint import load
from dipod_ros.policy.guidance import guided_sample
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.serving.engines import graph_cache
from dipod_ros.serving.engines.backends import BACKENDS
from dipod_ros.serving.engines.base import EngineError, check_golden
from dipod_ros.serving.engines.select import EngineFactory

onnx = pytest.importorskip('onnx')

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
    some = make_policy(0).weights()
    some.pop('net.output.bias')
    with pytest.raises(UserError, match='missing'):
        engine.refit(some)


@pytest.mark.parametrize('name', ENGINES)
def test_another_sampler_is_another_graph(factories, tmp_path, name):
    save_checkpoint(tmp_path / 'a')
    factories(name).build(load(tmp_path / 'a'))
    save_checkpoint(tmp_path / 'sde', sampler=SamplerSpec('sde', 3))
    checkpoint = load(tmp_path / 'sde')
    engine = factories(name).build(checkpoint)
    assert not engine.info().refitted
    check_golden(engine, checkpoint.manifest.golden)


@pytest.mark.parametrize('name', ENGINES)
def test_a_guided_engine_is_plain_without_a_prefix_and_stays_guided_when_refitted(tmp_path, name):
    if name == 'onnx':
        pytest.importorskip('onnxruntime')
    save_checkpoint(tmp_path / 'a', seed=0)
    save_checkpoint(tmp_path / 'b', seed=1)
    factory = EngineFactory(name, guided=True)
    for seed, folder in enumerate(('a', 'b')):
        checkpoint = load(tmp_path / folder)
        engine = factory.build(checkpoint)
        assert engine.info().refitted == (folder == 'b')
        check_golden(engine, checkpoint.manifest.golden)
        policy, (o, z) = make_policy(seed), inputs(checkpoint.spec)
        plain = policy.act(o[None], z[None])[0]
        prefix = np.full_like(plain, 0.01)
        weights = np.linspace(1, 0, len(plain), dtype=np.float32)
        given = [torch.from_numpy(a[None]) for a in (o, z, prefix, weights)]
        guided = guided_sample(policy, *given)[0].numpy()
        assert np.abs(guided - plain).max() > 1e-3
        np.testing.assert_allclose(engine.run(o, z, prefix, weights), guided, atol=1e-6)
        free = engine.run(o, z, prefix, np.zeros_like(weights))
        np.testing.assert_allclose(free, plain, atol=1e-5)
        # What was given once is not remembered.
        np.testing.assert_allclose(engine.run(o, z), plain, atol=1e-5)


@pytest.mark.parametrize('name', ENGINES)
def test_an_engine_that_was_not_built_guided_refuses_a_prefix(factories, tmp_path, name):
    save_checkpoint(tmp_path / 'a')
    engine = factories(name).build(load(tmp_path / 'a'))
    o, z = inputs(make_spec())
    with pytest.raises(EngineError, match='without guidance'):
        engine.run(o, z, np.zeros((6, 3), np.float32), np.zeros(6, np.float32))


def test_an_engine_that_cannot_be_guided_is_refused_at_once(monkeypatch):
    unable = replace(BACKENDS['torch'], guided=False)
    monkeypatch.setitem(BACKENDS, 'torch', unable)
    with pytest.raises(EngineError, match=r"'onnx'.*seam replace or ensemble"):
        EngineFactory('torch', guided=True)


def test_auto_prefers_onnx_and_says_why():
    pytest.importorskip('onnxruntime')
    factory = EngineFactory('auto')
    assert factory.name == 'onnx'
    assert 'fastest' in factory.reason


def test_auto_falls_back_to_torch_and_says_what_is_missing(monkeypatch):
    lacking = replace(BACKENDS['onnx'], needs=('no_such_runtime',))
    monkeypatch.setitem(BACKENDS, 'onnx', lacking)
    factory = EngineFactory('auto')
    assert factory.name == 'torch'
    assert 'no_such_runtime' in factory.reason and 'pip install' in factory.reason


def test_an_engine_that_is_not_there_says_how_to_get_it(monkeypatch):
    lacking = replace(BACKENDS['tensorrt'], needs=('no_such_tensorrt',))
    monkeypatch.setitem(BACKENDS, 'tensorrt', lacking)
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


class TestGraphsKeptOnDisk:
    """A second process needs no export; whatever is wrong with the graph, the policy is right."""

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        pytest.importorskip('onnxruntime')
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
        save_checkpoint(tmp_path / 'a', seed=0)
        save_checkpoint(tmp_path / 'b', seed=1)
        self.first, self.second = load(tmp_path / 'a'), load(tmp_path / 'b')

    def kept(self):
        return graph_cache.cache_dir() / f'{graph_cache.graph_key(self.first.spec)}.onnx'

    def assert_right(self, engine, seed):
        o, z = inputs(self.first.spec)
        expected = make_policy(seed).act(o[None], z[None])[0]
        np.testing.assert_allclose(engine.run(o, z), expected, atol=PARITY_RAD)

    def test_the_second_start_needs_no_torch(self, tmp_path):
        self.assert_right(EngineFactory('onnx').build(self.first), 0)
        program = (
            'import sys\n'
            'from dipod_ros.policy.checkpoint import load\n'
            'from dipod_ros.serving.engines.base import check_golden\n'
            'from dipod_ros.serving.engines.select import EngineFactory\n'
            f'checkpoint = load({str(tmp_path / "b")!r})\n'
            "engine = EngineFactory('onnx').build(checkpoint)\n"
            'check_golden(engine, checkpoint.manifest.golden)\n'
            "assert 'torch' not in sys.modules\n"
        )
        subprocess.run([sys.executable, '-c', program], check=True, timeout=60)

    def test_no_weights_are_kept(self):
        EngineFactory('onnx').build(self.first)
        graph = onnx.load(self.kept()).graph
        values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        assert self.first.weights.keys() <= values.keys()
        assert not any(values[name].any() for name in self.first.weights)

    @pytest.mark.parametrize('damage', ['cut', 'noise', 'empty', 'other'])
    def test_a_damaged_graph_is_exported_again(self, damage):
        EngineFactory('onnx').build(self.first)
        good = self.kept().read_bytes()
        if damage == 'other':  # a valid graph of another policy
            model = onnx.load_model_from_string(good)
            for node in model.graph.node:
                if node.op_type == 'Sigmoid':
                    node.op_type = 'Tanh'
            bad = model.SerializeToString()
        else:
            bad = {'cut': good[: len(good) // 2], 'noise': b'\xff' * 999, 'empty': b''}[damage]
        assert bad != good
        self.kept().write_bytes(bad)
        self.assert_right(EngineFactory('onnx').build(self.second), 1)
        assert self.kept().read_bytes() != bad
        assert self.kept().with_suffix('.onnx.bad').read_bytes() == bad

    def test_a_cache_that_cannot_be_written_is_no_obstacle(self, tmp_path):
        (tmp_path / 'cache').write_text('a file where a folder should be')
        self.assert_right(EngineFactory('onnx').build(self.first), 0)

    def test_limits_and_weights_share_a_graph_and_the_sampler_does_not(self):
        key = graph_cache.graph_key(self.first.spec)
        assert graph_cache.graph_key(self.second.spec) == key
        assert graph_cache.graph_key(make_spec(task='other')) == key
        assert graph_cache.graph_key(self.first.spec, guided=True) != key
        for other in (
            make_spec(sampler=SamplerSpec('euler', 2)),
            make_spec(horizon=7),
            make_spec(network={'kind': 'residual_mlp', 'width': 17, 'depth': 2}),
        ):
            assert graph_cache.graph_key(other) != key


def test_no_more_engines_are_kept_than_a_few_and_those_used_last(tmp_path):
    from dipod_ros.serving.engines.select import MAX_GRAPHS

    def checkpoint(width):
        name = f'w{width}'
        if not (tmp_path / name).exists():
            save_checkpoint(
                tmp_path / name, network={'kind': 'residual_mlp', 'width': width, 'depth': 1}
            )
        return load(tmp_path / name)

    factory = EngineFactory('torch')
    for width in range(8, 8 + 2 * MAX_GRAPHS):
        factory.build(checkpoint(8))  # the acting one, refitted again and again
        factory.build(checkpoint(width))
    assert len(factory._by_graph) == MAX_GRAPHS
    assert factory.build(checkpoint(8)).info().refitted
    assert factory.build(checkpoint(width)).info().refitted
    assert not factory.build(checkpoint(9)).info().refitted


def test_kept_graphs_make_way_for_the_newest(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(graph_cache, 'MAX_BYTES', 250)
    for key in ('a', 'b'):
        graph_cache.write(key, b'x' * 100)
    for path in (graph_cache.cache_dir()).iterdir():
        os.utime(path, (path.stem == 'b', path.stem == 'b'))  # a is the older one
    assert graph_cache.read('a') == b'x' * 100  # and now the one used last
    graph_cache.write('c', b'x' * 100)
    assert [graph_cache.read(key) is None for key in 'abc'] == [False, True, False]
    graph_cache.write('d', b'x' * 1000)  # larger than all may be together: it alone is left
    assert [p.name for p in graph_cache.cache_dir().iterdir()] == ['d.onnx']
    for key in 'efghi':
        graph_cache.write(key, b'x')
        graph_cache.set_aside(key)
    assert len(list(graph_cache.cache_dir().glob('*.bad'))) == graph_cache.MAX_BAD
