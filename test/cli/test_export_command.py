# SPDX-License-Identifier: Apache-2.0
"""`dipod export` writes a graph that another program can run, or nothing."""

import hashlib
import json

import numpy as np
import pytest
from checkpoints import make_policy, save_checkpoint

pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

import onnx  # noqa: E402

from dipod_ros.cli.main import main  # noqa: E402
from dipod_ros.policy.checkpoint import load  # noqa: E402

HALF = {'fp32': onnx.TensorProto.FLOAT, 'fp16': onnx.TensorProto.FLOAT16}


def export(*words):
    return main(['export', *map(str, words)])


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('export') / 'policy'
    save_checkpoint(folder)
    return folder


@pytest.mark.parametrize('precision', HALF)
def test_the_files_say_what_they_are_and_do_what_the_policy_does(checkpoint, tmp_path, precision):
    out = tmp_path / 'out'
    assert export(checkpoint, '--out', out, '--precision', precision) == 0
    graph = (out / 'policy.onnx').read_bytes()
    manifest = json.loads((out / 'policy.json').read_text())
    assert manifest['sha256'] == hashlib.sha256(graph).hexdigest()
    assert (manifest['bytes'], manifest['precision']) == (len(graph), precision)
    assert manifest['checkpoint']['sha256'] == load(checkpoint).manifest.sha256
    assert 0 < manifest['parity']['max_abs'] <= manifest['parity']['allowed']
    model = onnx.load_model_from_string(graph)
    assert model.opset_import[0].version == manifest['opset']
    slots = {i.name: i for i in model.graph.initializer}
    assert {k: list(slots[k].dims) for k in manifest['weights']} == manifest['weights']
    kinds = {n: slots[n].data_type for n in manifest['weights']}
    assert kinds['net.blocks.0.weight'] == HALF[precision]
    assert kinds['net.input.weight'] == kinds['net.output.weight'] == HALF['fp32']
    assert {k for n, k in kinds.items() if n.startswith('normalizer.')} == {HALF['fp32']}
    session = ort.InferenceSession(graph, providers=['CPUExecutionProvider'])
    rng = np.random.default_rng(1)
    feed = {
        name: rng.normal(size=value['shape']).astype(value['dtype'])
        for name, value in manifest['inputs'].items()
    }
    chunk = session.run(['chunk'], feed)[0]
    assert list(chunk.shape) == manifest['outputs']['chunk']['shape']
    expected = make_policy(0).act(feed['observation'], feed['noise'])
    np.testing.assert_allclose(chunk, expected, rtol=0, atol=0.02 * manifest['parity']['allowed'])


def test_a_graph_that_differs_is_refused_and_nothing_is_written(
    checkpoint, tmp_path, monkeypatch, capsys
):
    """Half a network that overflows: 1e5 is no number in float16."""
    policy = make_policy(0)
    policy.net.blocks[0].weight.mul_(1e6)
    policy.save(tmp_path / 'large')
    out = tmp_path / 'out'
    assert export(tmp_path / 'large', '--out', out, '--precision', 'fp16') == 2
    assert 'differs from PyTorch by' in capsys.readouterr().err
    assert not out.exists()


def test_an_export_is_not_overwritten_unasked(checkpoint, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'policy.onnx').write_text('mine')
    assert export(checkpoint, '--out', out) == 2
    assert 'add --overwrite' in capsys.readouterr().err
    assert (out / 'policy.onnx').read_text() == 'mine'
    assert export(checkpoint, '--out', out, '--overwrite', '--json', tmp_path / 'j.json') == 0
    assert json.loads((tmp_path / 'j.json').read_text())['bytes'] > 1000


def test_a_folder_that_cannot_be_written_is_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert export(checkpoint, '--out', tmp_path / 'file' / 'out') == 2
    assert 'cannot write' in capsys.readouterr().err
