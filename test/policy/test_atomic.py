# SPDX-License-Identifier: Apache-2.0
"""Files are replaced whole; for folders see the tests of checkpoints."""

import subprocess
import sys

import pytest

from dipod_ros.policy.atomic import write_file

WRITER = """
import os, signal, sys
from pathlib import Path
from dipod_ros.policy.atomic import write_file

path = Path(sys.argv[1])
write_file(path, b'old' * 5000)
for n in range(1, 50):
    child = os.fork()
    if child == 0:
        count = 0
        def hook(event, arguments):
            global count
            if event in ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.listdir', 'os.scandir'):
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write_file(path, b'new' * 5000)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    content = path.read_bytes()
    print(killed, {b'old' * 5000: 'old', b'new' * 5000: 'new'}[content])
    if not killed:
        break
"""


def test_a_kill_before_any_file_operation_leaves_a_whole_file(tmp_path):
    result = subprocess.run(
        [sys.executable, '-c', WRITER, str(tmp_path / 'state')],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [row.split() for row in result.stdout.splitlines()]
    assert len(rows) > 3 and all(killed == 'True' for killed, _ in rows[:-1])
    assert rows[-1] == ['False', 'new']
    versions = [version for _, version in rows]
    assert versions == sorted(versions, reverse=True) and versions[0] == 'old'
    # The writer that got through has cleared what the killed ones left.
    assert [p.name for p in tmp_path.iterdir()] == ['state']


def test_what_a_living_writer_prepares_is_left_alone(tmp_path):
    with subprocess.Popen(['cat'], stdin=subprocess.PIPE) as alive:
        other = tmp_path / f'.state.{alive.pid}-0123abcd'
        other.write_bytes(b'')
        write_file(tmp_path / 'state', b'x')
        assert other.exists()
        alive.stdin.close()
        alive.wait()
        write_file(tmp_path / 'state', b'y')
        assert not other.exists()


@pytest.mark.parametrize(
    'name', ['.state', '.state.1', '.state.old', '.state.12-zz', 'state.12-0123abcd']
)
def test_files_of_others_are_never_cleared(tmp_path, name):
    (tmp_path / name).write_text('precious')
    write_file(tmp_path / 'state', b'x')
    assert (tmp_path / name).read_text() == 'precious'


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError):
        write_file(tmp_path / 'folder', b'x')
    assert [p.name for p in tmp_path.iterdir()] == ['folder']
