# SPDX-License-Identifier: Apache-2.0
"""The runner with real processes; small programs stand for the nodes."""

import os
import re
import signal
import subprocess
import sys

import pytest

from dipod_ros.ros.launch_runner import LaunchRunner
from dipod_ros.ros.launch_runner.text import LaunchError

# Says its pid, then waits; ends by itself with 0 when asked politely.
PATIENT = """
    import os, signal
    def end(*_):
        print('ending', flush=True)
        sys.exit(0)
    signal.signal(signal.SIGINT, end)
    print('pid', os.getpid(), flush=True)
    while True:
        signal.pause()
"""
# Has to be killed.
STUBBORN = """
    import os, signal
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: print('heard', n, flush=True))
    print('pid', os.getpid(), flush=True)
    while True:
        signal.pause()
"""


@pytest.fixture
def launch(workspace, wait_until):
    """Start a launch file of `nodes` and wait until the waiting ones say their pid."""
    workspace.node('patient', PATIENT)
    workspace.node('stubborn', STUBBORN)
    runners = []

    def start(*nodes, before='', **options):
        text = 'launch:\n' + before + ''.join(f'- node: {{pkg: toy, {node}}}\n' for node in nodes)
        log = workspace.root / 'nodes.log'
        runner = LaunchRunner(workspace.file(text), log_file=log, **options)
        runners.append(runner)
        runner.start()
        runner.log = log.read_text
        waiting = sum('patient' in n or 'stubborn' in n for n in nodes)
        wait_until(lambda: len(pids(runner)) == waiting, 'all pids')
        return runner

    yield start
    for runner in runners:
        while runner.poll() is None:
            runner.escalate()
            runner.pause()


def pids(runner):
    return [int(n) for n in re.findall(r'pid (\d+)', runner.log())]


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_nodes_end_well(launch, workspace):
    workspace.node('short', "print('done')")
    runner = launch('exec: short', 'exec: short, name: other')
    assert runner.wait() == 0
    assert sorted(runner.log().splitlines()) == [
        '[other] done',
        '[other] ended',
        '[short] done',
        '[short] ended',
    ]


def test_output_of_both_streams_goes_to_stdout_with_the_nodes_name(workspace, capfd):
    workspace.node(
        'noisy', "print('out', flush=True); sys.stderr.write('bytes \\\\xff no newline')"
    )
    runner = LaunchRunner(workspace.file('launch:\n- node: {pkg: toy, exec: noisy, name: a}'))
    runner.start()
    assert runner.wait() == 0
    assert capfd.readouterr().out.splitlines() == [
        '[a] out',
        '[a] bytes \\xff no newline',
        '[a] ended',
    ]


def test_stop_ends_every_node_politely(launch):
    runner = launch('exec: patient, name: a', 'exec: patient, name: b')
    running = pids(runner)
    assert runner.poll() is None
    assert runner.stop() == 0
    assert not any(map(lives, running))
    assert runner.log().count('ending') == 2
    assert runner.stop() == 0  # again is no harm


def test_the_first_failure_ends_the_others_and_is_the_exit_code(launch, workspace):
    workspace.node('failing', 'sys.exit(7)')
    # On its way out, the second one fails too, with another code.
    workspace.node('sore', PATIENT.replace('sys.exit(0)', 'sys.exit(9)').replace("'pid'", "'id'"))
    runner = launch('exec: patient', 'exec: sore', 'exec: failing')
    assert runner.wait() == 7
    assert '[failing] failed with exit code 7' in runner.log()
    assert '[patient] ending' in runner.log()


def test_a_node_killed_by_a_signal_has_failed(launch):
    runner = launch('exec: patient, name: a', 'exec: patient, name: b')
    os.kill(pids(runner)[0], signal.SIGSEGV)
    assert runner.wait() == 128 + signal.SIGSEGV


def test_a_node_that_ends_well_does_not_end_the_others(launch, workspace, wait_until):
    workspace.node('short', '')
    runner = launch('exec: patient', 'exec: short')
    wait_until(lambda: runner.poll() is None and '[short] ended' in runner.log(), 'the short one')
    assert lives(pids(runner)[0])
    assert runner.stop() == 0


def test_a_node_that_others_depend_on_ends_them_however_it_ends(launch, workspace):
    workspace.node('short', '')
    runner = launch('exec: patient', 'exec: short, on_exit: shutdown')
    assert runner.wait() == 0
    assert '[patient] ending' in runner.log()


def test_keep_going_outlives_a_failure_and_reports_it(launch, workspace, wait_until):
    workspace.node('failing', 'sys.exit(7)')
    runner = launch('exec: patient', 'exec: failing', keep_going=True)
    wait_until(lambda: runner.poll() is None and 'exit code 7' in runner.log(), 'the failure')
    assert lives(pids(runner)[0])
    assert runner.stop() == 7


def test_a_stubborn_node_is_killed_after_the_patience_of_the_file(launch):
    patience = "- let: {name: sigterm_timeout, value: '0.05'}\n"
    patience += "- let: {name: sigkill_timeout, value: '0.05'}\n"
    runner = launch('exec: stubborn', before=patience)
    (pid,) = pids(runner)
    assert runner.stop() == 128 + signal.SIGKILL
    assert not lives(pid)
    heard = re.findall(r'heard (\d+)', runner.log())
    assert heard == [str(int(signal.SIGINT)), str(int(signal.SIGTERM))]
    assert 'did not end in time and is killed' in runner.log()


def test_escalation_can_be_hurried(launch, wait_until):
    runner = launch('exec: stubborn')  # the default patience is 5 s per signal
    runner.escalate()
    wait_until(lambda: 'heard 2' in runner.log(), 'SIGINT')
    runner.escalate()
    wait_until(lambda: 'heard 15' in runner.log(), 'SIGTERM')
    runner.escalate()
    assert runner.wait() == 128 + signal.SIGKILL


def test_a_failed_start_leaves_nothing_running(launch, workspace):
    (workspace.prefix / 'lib/toy/odd').write_text('#!/no/such/interpreter\n')
    (workspace.prefix / 'lib/toy/odd').chmod(0o755)
    runner = launch('exec: patient', 'exec: odd')
    assert runner.wait() == 1
    assert 'cannot start' in runner.log()
    assert not lives(pids(runner)[0])


def test_an_unwritable_log_is_a_user_error(workspace):
    workspace.node('short', '')
    path = workspace.file('launch:\n- node: {pkg: toy, exec: short}')
    runner = LaunchRunner(path, log_file=path / 'inside-a-file')
    with pytest.raises(LaunchError, match='cannot start the nodes'):
        runner.start()


def test_parameter_files_are_there_while_it_runs_and_gone_afterwards(launch, workspace):
    workspace.node('show', 'print(sys.argv[-1]); print(open(sys.argv[-1]).read())')
    runner = launch('exec: show, param: [{name: x, value: [1.5, 2.0]}]')
    assert runner.wait() == 0
    path = re.search(r'\[show\] (/\S+)', runner.log()).group(1)
    assert 'ros__parameters' in runner.log()
    assert not os.path.exists(path)


def test_nodes_get_their_environment(launch, workspace):
    workspace.node('show', "import os; print(os.environ['WHO'], os.environ['PATH'] != '')")
    runner = launch('exec: show, env: [{name: WHO, value: me}]')
    assert runner.wait() == 0
    assert '[show] me True' in runner.log()


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells a child of the death')
def test_nodes_do_not_outlive_a_killed_launch(workspace, wait_until):
    workspace.node('patient', PATIENT)
    path = workspace.file('launch:\n- node: {pkg: toy, exec: patient}')
    code = f"""
from dipod_ros.ros.launch_runner import LaunchRunner
runner = LaunchRunner({str(path)!r})
runner.start()
runner.wait()
"""
    launch = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    with launch:
        pid = int(re.search(r'pid (\d+)', launch.stdout.readline()).group(1))
        assert lives(pid)
        launch.kill()
        launch.wait()
        wait_until(lambda: not lives(pid), 'the node to end')


def test_ctrl_c_reaches_nodes_that_a_background_job_of_a_shell_starts(launch, workspace):
    workspace.node('deaf', 'import signal\nprint(signal.getsignal(signal.SIGINT).__name__)')
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what such a job inherits
    try:
        runner = launch('exec: deaf')
    finally:
        signal.signal(signal.SIGINT, before)
    assert runner.wait() == 0
    assert runner.log().splitlines()[0] == '[deaf] default_int_handler'
