# SPDX-License-Identifier: Apache-2.0
"""A writer that dies, at any moment, leaves whole checkpoints and nothing else under their names.

The writer is a process of its own that sends itself SIGKILL when it is about to do its n-th file
operation (an audit hook sees each of them), for every n.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from dipod_ros.policy import checkpoint as ckpt

WRITER = """
import os, signal, sys, json
import numpy as np
from pathlib import Path
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import PolicySpec, Stream

root, overwrite = Path(sys.argv[1]), sys.argv[2] == 'overwrite'
one = np.ones(1)
spec = PolicySpec('t', 'r', ('j',), JointLimits(('j',), -one, one, one, one),
                  (Stream('c', 'command', 1),), 1, 0.04)
OPERATIONS = ('open', 'os.mkdir', 'os.rename', 'os.rmdir', 'os.remove', 'os.scandir',
              'os.listdir', 'shutil.rmtree', 'ctypes.dlopen', 'ctypes.dlsym')

def write(folder, value):
    weights = {'w': np.full(5000, value, dtype=np.float32)}
    ckpt.save(folder, spec, weights, kind='flow', version=value, overwrite=overwrite)

report = []
for n in range(1, 100):
    folder = root / f'run{n}' / 'model'
    if overwrite:
        write(folder, 1)
    child = os.fork()
    if child == 0:
        count = 0
        def hook(event, arguments):
            global count
            if event in OPERATIONS:
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write(folder, 2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    report.append(os.WIFSIGNALED(status))
    if not os.WIFSIGNALED(status):
        break
print(json.dumps(report))
"""


def run(script, *arguments):
    result = subprocess.run(
        [sys.executable, '-c', script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('mode', ['new', 'overwrite'])
def test_a_kill_before_any_file_operation_leaves_whole_checkpoints_only(tmp_path, mode):
    killed = json.loads(run(WRITER, tmp_path, mode))
    # Killed at each operation in turn, until a run got through: the test saw them all.
    assert killed[-1] is False and all(killed[:-1]) and len(killed) > 5
    seen = []
    for n in range(1, len(killed) + 1):
        folder = tmp_path / f'run{n}' / 'model'
        if mode == 'new' and not folder.exists():
            seen.append(0)
            continue
        checkpoint = ckpt.load(folder)  # raises unless it is whole
        assert set(checkpoint.weights['w']) == {checkpoint.manifest.version}
        seen.append(checkpoint.manifest.version)
    # The old one (or none) until some moment, and from then on the new one.
    assert seen == sorted(seen)
    assert seen[0] == (0 if mode == 'new' else 1) and seen[-1] == 2


def test_the_next_writer_clears_what_a_killed_one_left(tmp_path, make_spec):
    run(WRITER, tmp_path, 'new')
    for folder in tmp_path.iterdir():
        weights = {'w': np.zeros(2, dtype=np.float32)}
        ckpt.save(folder / 'model', make_spec(), weights, kind='flow', overwrite=True)
        assert [p.name for p in folder.iterdir()] == ['model']


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import numpy as np
from dipod_ros.policy import checkpoint as ckpt
manifest = ckpt.read_manifest(sys.argv[1])
try:
    ckpt.save(sys.argv[1], manifest.spec, {'w': np.ones(5000, dtype=np.float32)}, kind='flow',
              overwrite=True)
except ckpt.CheckpointError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_of_one_line_and_keeps_the_old_checkpoint(tmp_path, make_spec):
    folder = tmp_path / 'model'
    ckpt.save(folder, make_spec(), {'w': np.zeros(3, np.float32)}, kind='flow', version=1)
    message = run(FULL_DISK, folder)
    assert message.count('\n') == 1 and str(folder) in message
    assert ckpt.load(folder).manifest.version == 1
    assert [p.name for p in tmp_path.iterdir()] == ['model']


NO_EXCHANGE = """
import sys
import numpy as np
from dipod_ros.policy import atomic, checkpoint as ckpt

def unsupported(first, second):
    raise OSError(22, 'Invalid argument')  # what NFS says

atomic._exchange = unsupported
folder = sys.argv[1]
spec = ckpt.read_manifest(folder).spec
renames = 0

def hook(event, arguments):
    global renames
    if event == 'os.rename':
        renames += 1
        if renames == int(sys.argv[2]):
            raise OSError(5, 'Input/output error')

sys.addaudithook(hook)
try:
    ckpt.save(folder, spec, {'w': np.ones(3, np.float32)}, kind='flow', version=2, overwrite=True)
except ckpt.CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize(('failing_rename', 'version'), [(1, 1), (2, 1), (9, 2)])
def test_without_an_atomic_exchange_a_failed_rename_brings_the_old_one_back(
    tmp_path, make_spec, failing_rename, version
):
    folder = tmp_path / 'model'
    ckpt.save(folder, make_spec(), {'w': np.zeros(3, np.float32)}, kind='flow', version=1)
    message = run(NO_EXCHANGE, folder, failing_rename)
    assert ('Input/output error' in message) == (version == 1)
    assert ckpt.load(folder).manifest.version == version
    assert [p.name for p in tmp_path.iterdir()] == ['model']
