# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from dipod_ros.cli import doctor
from dipod_ros.cli.main import main


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """Run the whole of it once, in a folder of its own, with a TensorRT that crashes."""
    folder = tmp_path_factory.mktemp('doctor')
    (folder / 'tensorrt.py').write_text('import os\nos.abort()\n')
    done = subprocess.run(
        [sys.executable, '-m', 'dipod_ros.cli', 'doctor', '--json', 'report.json'],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(folder)},
        capture_output=True,
        text=True,
    )
    data = json.loads((folder / 'report.json').read_text())
    return done, {c['name']: c for c in data['checks']}, data


def test_what_is_here_works(report):
    done, checks, data = report
    assert checks['MuJoCo']['status'] == checks['torch']['status'] == 'ok'
    assert checks['results']['status'] == 'ok'
    assert ' models' in checks['data files']['found']
    assert done.returncode == (0 if data['ready'] else 1)
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.ros
def test_two_nodes_talk(report):
    _, checks, data = report
    assert checks['rclpy']['status'] == 'ok'
    assert checks['two nodes talk']['status'] == 'ok'
    assert data['ready']


def test_a_library_that_crashes_is_a_line_of_the_report(report):
    done, checks, _ = report
    assert checks['TensorRT']['status'] == 'broken'
    assert 'it crashed while loading (signal 6)' in checks['TensorRT']['found']
    assert '(broken)  TensorRT' in done.stdout


def test_every_engine_is_listed_with_how_to_get_it(report):
    from dipod_ros.serving.engines.backends import BACKENDS

    _, checks, _ = report
    for backend in BACKENDS.values():
        check = checks[f'engine {backend.name}']
        assert check['status'] != 'ok' or not backend.missing()
        assert check['status'] == 'ok' or check['advice'] == backend.advice()
    assert checks['engine torch']['status'] == 'ok'


def test_everything_that_is_missing_comes_with_advice(report):
    _, checks, _ = report
    for check in checks.values():
        assert check['status'] == 'ok' or check['advice'], check


def test_without_rclpy_the_nodes_will_not_run(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *a: None if name == 'rclpy' else real(name, *a)
    )
    # The slow checks are the same as above.
    monkeypatch.setattr(doctor, 'probe', lambda *_: {'error': 'not asked'})
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert 'absent  rclpy' in out
    assert 'pip install ros-jazzy-rclpy' in out
    assert 'before this is mended: rclpy' in out


def test_a_folder_without_write_access_is_found_out(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs').mkdir()
    assert doctor._writable().status == 'ok'
    if os.geteuid() == 0:  # root may write anywhere; a file in the way stops root, too
        monkeypatch.chdir('/proc')
    else:
        (tmp_path / 'runs').chmod(0o500)
    check = doctor._writable()
    assert (check.status, check.required) == ('broken', True)


def test_a_probe_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, 'PROBE_TIMEOUT_S', 0.01)
    assert doctor.probe('version', 'json') == {'error': 'no answer within 0 s'}
