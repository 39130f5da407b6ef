# SPDX-License-Identifier: Apache-2.0
"""`dipod bench learn` runs jobs, survives what happens to them, and says what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip('torch')

from dipod_ros.cli.main import main  # noqa: E402
from dipod_ros.learning.bench.experiment_pool import ATTEMPTS, run_jobs  # noqa: E402
from dipod_ros.learning.bench.jobs import Job  # noqa: E402
from dipod_ros.learning.bench.methods import METHODS  # noqa: E402
from dipod_ros.learning.bench.regimes import REGIMES, TASKS  # noqa: E402
from dipod_ros.learning.bench.suites import SUITES  # noqa: E402

TIMEOUT_S = 240.0  # far above anything but a machine that is swamped
JOB = Job('reach', 'fpo++', 0, 'smoke')
SMOKE = ('--suite', 'smoke', '--tasks', 'reach', '--methods', 'fpo++')
WORKER = 'dipod_ros.learning.bench.experiment_pool'
pytestmark = pytest.mark.timeout(TIMEOUT_S)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return (folder, text) of a smoke run through the command line, with its report."""
    folder = tmp_path_factory.mktemp('whole')
    out = subprocess.run(
        command(
            folder, *SMOKE, '--json', str(folder / 'all.json'), '--report', str(folder / 'report')
        ),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert out.returncode == 0, out.stderr
    return folder, out.stdout


def command(folder, *arguments):
    run_dir = ('--run-dir', str(folder / 'runs'))
    return [sys.executable, '-m', 'dipod_ros.cli', 'bench', 'learn', *arguments, *run_dir]


def workers_of(pid):
    """Return the pids of the workers that a process has started and that still run."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            parent = int((folder / 'stat').read_text().rsplit(')', 1)[1].split()[1])
            if parent == pid and WORKER in (folder / 'cmdline').read_text():
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def score(folder):
    """Return what must not depend on how often a job was disturbed."""
    result = json.loads(JOB.file(folder).read_text())
    return [result[k] for k in ('curve', 'gap_curve', 'score', 'sweep', 'student', 'gap_nats')]


def test_a_smoke_run_reports(whole):
    folder, text = whole
    assert '### reach, smoke' in text and 'ONE seed' in text and 'reach/smoke/fpo++' in text
    results = json.loads((folder / 'all.json').read_text())
    (row,) = results['rows']
    assert (row['task'], row['method'], row['seeds'], row['failed']) == ('reach', 'fpo++', 1, 0)
    assert row['iqm'] == row['scores'][0] == score(folder / 'runs')[2]
    assert results['machine']['cores'] >= 1
    assert json.loads((folder / 'report/learn.json').read_text()) == [row]
    assert (folder / 'report/curve_reach_smoke.png').is_file()


def test_what_is_there_is_not_made_again(whole, capsys):
    folder, _ = whole
    file = JOB.file(folder / 'runs')
    before = file.stat().st_mtime_ns
    assert main(['bench', 'learn', *SMOKE, '--run-dir', str(folder / 'runs')]) == 0
    assert file.stat().st_mtime_ns == before
    assert '### reach, smoke' in capsys.readouterr().out


def test_a_killed_worker_goes_on_and_nothing_changes(whole, tmp_path):
    folder, _ = whole
    killed = []

    def show(finished, text):
        if 'success' in text and not killed:
            (pid,) = workers_of(os.getpid())
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    outcome = run_jobs([JOB], tmp_path, show=show)
    assert killed and outcome.done == [JOB] and not outcome.failed
    assert score(tmp_path) == score(folder / 'runs')


def test_ctrl_c_saves_and_leaves_no_worker(whole, tmp_path):
    folder, _ = whole
    process = subprocess.Popen(command(tmp_path, *SMOKE), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + TIMEOUT_S
    # Its log is there once the worker has been started; then it needs seconds for its imports.
    while not workers_of(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    (worker,) = workers_of(process.pid)
    lock = JOB.file(tmp_path / 'runs', '.lock')
    while not lock.is_file() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130 and 'Traceback' not in stderr
    assert not alive(worker)
    assert not JOB.file(tmp_path / 'runs').exists()
    # It goes on from what was saved.
    assert run_jobs([JOB], tmp_path / 'runs').done == [JOB]
    assert score(tmp_path / 'runs') == score(folder / 'runs')


def test_a_failing_job_is_a_row_and_is_tried_again(tmp_path, capsys):
    broken = JOB.file(tmp_path, '.run.json')
    broken.parent.mkdir(parents=True)
    broken.write_text('{')
    JOB.file(tmp_path, '.state.safetensors').write_bytes(b'')
    assert main(['bench', 'learn', *SMOKE, '--run-dir', str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert 'failed: reach/smoke/fpo++/seed0' in out and 'delete it to begin this job again' in out
    assert '| failed |' in out
    assert JOB.file(tmp_path, '.error.json').is_file()
    # Only reporting leaves the error where it is.
    assert main(['bench', 'learn', *SMOKE, '--run-dir', str(tmp_path), '--minutes', '0']) == 0
    assert '| failed |' in capsys.readouterr().out


def test_a_worker_that_always_dies_is_given_up(tmp_path):
    killed = []
    ended = threading.Event()

    def kill():
        while not ended.wait(0.05):
            for pid in workers_of(os.getpid()):
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        outcome = run_jobs([JOB], tmp_path)
    finally:
        ended.set()
        thread.join()
    assert len(killed) == ATTEMPTS
    assert 'the worker ended with -9' in outcome.failed[JOB]


def test_a_job_of_another_benchmark_is_left_to_it(tmp_path):
    import fcntl

    lock = JOB.file(tmp_path, '.lock')
    lock.parent.mkdir(parents=True)
    with open(lock, 'w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = run_jobs([JOB], tmp_path)
    assert outcome.elsewhere == [JOB] and not outcome.done
    assert lock.is_file()


def test_the_time_is_kept(tmp_path, capsys):
    arguments = ['bench', 'learn', *SMOKE, '--run-dir', str(tmp_path)]
    assert main([*arguments, '--minutes', '0.01']) == 0
    out = capsys.readouterr().out
    assert 'left: 1 jobs, first reach/smoke/fpo++/seed0' in out and '1 of 1 jobs' in out
    assert not workers_of(os.getpid())


def test_the_list_names_everything(capsys):
    assert main(['bench', 'learn', '--list']) == 0
    words = set(re.findall(r'\S+', capsys.readouterr().out))
    for table in (SUITES, TASKS, METHODS, REGIMES):
        assert set(table) <= words


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['learn', '--suite', 'mian'], "unknown suite 'mian': use one of"),
        (['learn', '--tasks', 'push'], "unknown task 'push'"),
        (['learn', '--methods', 'ppo'], "unknown method 'ppo'"),
        (['learn', '--seeds', '0'], 'seeds must be within 1..100'),
        (['learn', '--jobs', '0'], '--jobs must be at least 1'),
        (['learn', '--minutes', '-1'], '--minutes must not be negative'),
        (['learn', '--minutes', 'nan'], '--minutes must be a finite number'),
        (['engine', '--seeds', '2'], '--seeds belongs to `dipod bench learn`'),
        (['--suite', 'main'], '--suite belongs to `dipod bench learn`'),
        (['learn', '--suite', 'smoke', '--run-dir', '/proc/none'], 'cannot write /proc/none'),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys):
    assert main(['bench', *arguments]) == 2
    assert says in capsys.readouterr().err


def test_all_does_not_include_learning():
    from dipod_ros.cli import bench

    assert 'learn' not in bench.BENCHES
