# SPDX-License-Identifier: Apache-2.0
"""`dipod gpu-check` without a GPU, and on fakes of TensorRT and the driver (fake_gpu.py)."""

import json
import subprocess
import sys

import pytest
from fake_gpu import FakeCuda, fake_tensorrt, install

pytest.importorskip('onnxruntime')
torch = pytest.importorskip('torch')

from dipod_ros.cli.gpu_check import trusted  # noqa: E402
from dipod_ros.cli.main import main  # noqa: E402
from dipod_ros.serving.engines import cuda_driver, verified  # noqa: E402


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    if cuda_driver.find_gpu() is not None:
        pytest.skip('there is a GPU here')
    done = subprocess.run(
        [sys.executable, '-m', 'dipod_ros.cli', 'gpu-check', '--out', str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'dipod: gpu-check: no NVIDIA GPU with its driver found on this machine'
    ]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('a real GPU beside a fake one would mix the two')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    yield lambda *faults: install(monkeypatch, fake_tensorrt('10.3.0', faults), FakeCuda())
    monkeypatch.undo()
    cuda_driver.find_gpu.cache_clear()


@pytest.mark.timeout(400)
def test_the_report_says_what_passed_and_what_did_not(fakes, tmp_path, capsys):
    fakes()
    # torch is here and finds no GPU: the driver does, so `cuda` is tried, and says what it lacks.
    assert main(['gpu-check', '--quick', '--out', str(tmp_path / 'out')]) == 1
    text = (tmp_path / 'out' / 'gpu-fake-orin.md').read_text()
    results = json.loads((tmp_path / 'out' / 'gpu-fake-orin.json').read_text())
    assert text in capsys.readouterr().out
    assert 'QUICK' in text and 'sm_87' in text and 'Not here: torch_tensorrt' in text
    assert results['networks'].keys() == {'mlp', 'dit', 'unet'}
    for network in results['networks'].values():
        rows = {(r['backend'], r['precision']): r for r in network['engines']}
        assert rows['onnx', 'fp32']['passed']
        for precision in ('fp32', 'fp16'):
            row = rows['tensorrt', precision]
            assert row['passed'], row['failures']
            assert 0 < row['run_us'] <= row['run_us_p99'] and row['refit_ms'] > 0
        assert 'finds no GPU' in rows['cuda', 'fp32']['failures'][0]
        # 204.8 GB/s, one reading of all weights per evaluation.
        floor = network['weight_bytes'] * network['evaluations'] / 204.8e9 * 1e6
        assert network['weight_floor_us'] == pytest.approx(floor)
    assert trusted(results).keys() == {'tensorrt'}
    # A quick run is no reason to trust anything.
    assert verified.read(cuda_driver.find_gpu()) == {}


def test_one_network_that_fails_is_enough_not_to_be_trusted():
    def row(backend, passed, precision='fp32'):
        return {'backend': backend, 'precision': precision, 'passed': passed, 'run_us': 5.0}

    networks = {
        'mlp': {'engines': [row('cuda', True), row('tensorrt', True), row('onnx', True)]},
        'dit': {'engines': [row('cuda', True), row('tensorrt', False), row('onnx', True)]},
    }
    networks['dit']['engines'].append(row('cuda', False, 'fp16'))
    assert trusted({'networks': networks}) == {'cuda': 5.0}
