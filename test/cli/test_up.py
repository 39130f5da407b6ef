# SPDX-License-Identifier: Apache-2.0
import os
import re
import signal
import subprocess
import sys

import pytest

from dipod_ros.cli.main import main
from dipod_ros.cli.up import find_launch_file, parse_arguments
from dipod_ros.errors import UserError
from dipod_ros.resources import resource

NODE = """#!{python} -S
import os, signal, sys
def end(*_):
    print('ending', flush=True)
    sys.exit(0)
signal.signal(signal.SIGINT, end)
print('pid', os.getpid(), flush=True)
if 'fail' in sys.argv:
    sys.exit(5)
while True:
    signal.pause()
"""


@pytest.fixture
def launch_file(tmp_path, monkeypatch):
    """A launch file of one node that waits, and one that fails if asked."""
    folder = tmp_path / 'install/lib/toy'
    folder.mkdir(parents=True)
    (folder / 'run').write_text(NODE.format(python=sys.executable))
    (folder / 'run').chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'install'))
    path = tmp_path / 'toy.launch.yaml'
    path.write_text(
        'launch:\n'
        "- arg: {name: fail, default: 'false', description: whether one fails}\n"
        '- node: {pkg: toy, exec: run, name: waits}\n'
        '- node: {pkg: toy, exec: run, name: fails, args: fail, if: $(var fail)}\n'
    )
    return path


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_nodes_and_is_no_failure(launch_file, number):
    command = [sys.executable, '-m', 'dipod_ros.cli', 'up', str(launch_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pid = int(re.search(r'\[waits\] pid (\d+)', process.stdout.readline()).group(1))
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == 0
    assert rest == '[waits] ending\n'
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_exit_code_is_that_of_the_first_failure(launch_file, capfd):
    assert main(['up', str(launch_file), 'fail:=true']) == 5
    out = capfd.readouterr().out
    assert '[fails] failed with exit code 5' in out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as it was


def test_arguments_are_shown(launch_file, capsys):
    assert main(['up', str(launch_file), '--show-args']) == 0
    out = capsys.readouterr().out
    assert 'fail\n        whether one fails\n' in out
    assert "(default: 'false')" in out


def test_arguments_of_a_file_that_needs_some_are_shown_without_them(capsys):
    assert main(['up', 'robot', '--show-args']) == 0
    out = capsys.readouterr().out
    assert '(required)' in out
    assert '(one of: LOCALHOST, SUBNET, SYSTEM_DEFAULT)' in out


def test_a_dry_run_prints_commands_and_starts_nothing(launch_file, capsys):
    assert main(['up', str(launch_file), '-n']) == 0
    out = capsys.readouterr().out
    assert out.startswith('# waits\n')
    assert '__node:=waits' in out
    assert 'pid' not in out


def test_a_file_is_found_by_path_or_as_a_shipped_one(launch_file, monkeypatch):
    shipped = resource('launch/sim.launch.yaml')
    assert find_launch_file('sim') == find_launch_file('sim.launch.yaml') == shipped
    monkeypatch.chdir(launch_file.parent)
    assert find_launch_file('toy.launch.yaml').samefile(launch_file)
    with pytest.raises(UserError, match=r"'toy'.*online.launch.yaml, record.launch.yaml, robot"):
        find_launch_file('toy')


def test_arguments_are_split_at_the_first_sign():
    assert parse_arguments(['a:=b', 'c:=', 'd:=x:=y', 'a:=z']) == {'a': 'z', 'c': '', 'd': 'x:=y'}
    for word in ('a=b', ':=b', 'a'):
        with pytest.raises(UserError, match='write NAME:=VALUE'):
            parse_arguments([word])


def test_what_is_optional_is_not_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(['up'])
    assert capsys.readouterr().err.rstrip().endswith('required: FILE')


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['up', 'nowhere'], 'no launch file'),
        (['up', 'sim', 'worlds'], 'write NAME:=VALUE'),
        (['up', 'sim', 'wrlds:=2'], 'did you mean worlds'),
        (['up', 'robot', 'checkpoint:=reach_flow'], 'give robot:='),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1
