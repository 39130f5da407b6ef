# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from dipod_ros.cli import inspect as a_command
from dipod_ros.cli.main import available, main
from dipod_ros.cli.output import write_json
from dipod_ros.errors import UserError

HEAVY = ('torch', 'mujoco', 'rclpy', 'onnxruntime', 'cv2', 'matplotlib')


def run_python(code, *, timeout=60, **options):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=timeout, **options
    )


def test_help_lists_every_command_and_loads_nothing_heavy():
    done = run_python(
        'import sys\n'
        'from dipod_ros.cli.main import main\n'
        'try: main(["--help"])\n'
        f'finally: print("loaded", [m for m in {HEAVY} if m in sys.modules])'
    )
    assert 'loaded []' in done.stdout
    for name in available():
        assert re.search(rf'\n    {name}\s', done.stdout)  # help of a long name comes below it


@pytest.mark.parametrize('name', available())
def test_help_of_a_command_loads_nothing_heavy(name):
    done = run_python(
        'import sys\n'
        'from dipod_ros.cli.main import main\n'
        f'try: main([{name!r}, "--help"])\n'
        f'finally: print("loaded", [m for m in {HEAVY} if m in sys.modules])'
    )
    assert f'usage: dipod {name}' in done.stdout
    assert 'loaded []' in done.stdout, done.stdout


def test_the_doctor_comes_where_nothing_is_installed():
    done = run_python(
        'import sys\n'
        'for name in ("numpy", "yaml", "safetensors", "torch"): sys.modules[name] = None\n'
        'from dipod_ros.cli.main import main\n'
        'main(["doctor", "--help"])'
    )
    assert done.returncode == 0 and 'usage: dipod doctor' in done.stdout, done.stderr


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        main(['bench', 'learn', '--seed', '3'])
    assert 'unrecognized arguments: --seed 3' in capsys.readouterr().err


def test_without_a_command_there_is_help_and_an_error_code(capsys):
    assert main([]) == 2
    assert 'usage: dipod' in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['fly'])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'fly'" in error
    assert 'up' in error


def test_options_may_stand_between_words(capsys):
    assert main(['up', 'sim', '--dry-run', 'task:=reach', 'seed:=3']) == 0
    assert 'seed:=3' in capsys.readouterr().out


@pytest.fixture
def raising(monkeypatch):
    """Let `dipod inspect` raise something."""

    def let(error):
        def run(_args):
            raise error

        monkeypatch.delenv('DIPOD_DEBUG', raising=False)
        monkeypatch.setattr(a_command, 'run', run)

    return let


def test_a_users_mistake_is_one_line_and_exit_code_2(raising, capsys):
    raising(UserError('write X instead of Y'))
    assert main(['inspect', 'x']) == 2
    assert capsys.readouterr().err == 'dipod: write X instead of Y\n'


def test_debugging_shows_the_traceback(raising, monkeypatch):
    raising(UserError('write X'))
    monkeypatch.setenv('DIPOD_DEBUG', '1')
    with pytest.raises(UserError):
        main(['inspect', 'x'])


def test_a_bug_is_not_hidden(raising):
    raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(['inspect', 'x'])


def test_ctrl_c_ends_quietly_with_130(raising, capsys):
    raising(KeyboardInterrupt())
    assert main(['inspect', 'x']) == 130
    assert 'Traceback' not in capsys.readouterr().err


def test_sigterm_runs_the_cleanup_of_a_command():
    code = (
        'import signal, os\n'
        'from dipod_ros.cli import inspect\n'
        'from dipod_ros.cli.main import main\n'
        'def run(args):\n'
        '    try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n'
        '    finally: print("cleaned up")\n'
        'inspect.run = run\n'
        'raise SystemExit(main(["inspect", "x"]))\n'
    )
    done = run_python(code)
    assert done.stdout == 'cleaned up\n'
    assert done.returncode == 128 + signal.SIGTERM


def test_a_reader_that_leaves_is_no_error():
    code = (
        'from dipod_ros.cli import inspect\n'
        'from dipod_ros.cli.main import main\n'
        'def run(args):\n'
        '    while True: print("x" * 1000)\n'
        'inspect.run = run\n'
        'raise SystemExit(main(["inspect", "x"]))\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ''
    process.stderr.close()


def test_results_become_plain_json(tmp_path):
    path = tmp_path / 'deep/result.json'
    write_json(
        path,
        {
            'array': np.arange(3, dtype=np.float32),
            'scalar': np.int64(4),
            'nan': float('nan'),
            'nested': [{'inf': np.array([np.inf, 1.0])}],
            'path': tmp_path,
            'none': None,
            'flag': np.bool_(True),
        },
    )
    assert json.loads(path.read_text()) == {
        'array': [0.0, 1.0, 2.0],
        'scalar': 4,
        'nan': None,
        'nested': [{'inf': [None, 1.0]}],
        'path': str(tmp_path),
        'none': None,
        'flag': True,
    }
    assert [p.name for p in path.parent.iterdir()] == ['result.json']


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path):
    path = tmp_path / 'result.json'
    write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    assert json.loads(path.read_text()) == {'a': 1}
    with pytest.raises(UserError, match='cannot write'):
        write_json(path / 'below-a-file.json', {'a': 1})
    assert os.listdir(tmp_path) == ['result.json']
