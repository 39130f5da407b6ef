# SPDX-License-Identifier: Apache-2.0
"""A node's process ends cleanly, with the right exit code, and says why in one line."""

import signal
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip('rclpy')

PROGRAM = """
import sys, threading
from rclpy.node import Node
from dipod_ros.errors import UserError
from dipod_ros.ros import runtime

class Case(Node):
    def __init__(self):
        super().__init__('case')
        self.ticks = 0
        {construct}
        self.create_timer(0.01, self.tick, clock=runtime.steady_clock())

    def tick(self):
        self.ticks += 1
        if self.ticks == 3:
            print('ticking', flush=True)
        {tick}

    def close(self):
        print('closed', flush=True)

{before}
sys.exit(runtime.run_node(Case))
"""


def start(construct='pass', tick='pass', before='', arguments=()):
    program = textwrap.dedent(PROGRAM).format(construct=construct, tick=tick, before=before)
    return subprocess.Popen(
        [sys.executable, '-c', program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('before', ['', 'runtime.EventsExecutor = None'])
def test_signals_end_it_with_exit_code_zero_after_close(number, before):
    process = start(before=before)
    assert process.stdout.readline() == 'ticking\n'
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out, err) == (0, 'closed\n', '')


def stuck(same_signal_s):
    """Start a node whose close() never ends, and interrupt it once."""
    close = "lambda self: (print('closing', flush=True), threading.Event().wait(5.0))"
    process = start(before=f'Case.close = {close}; runtime.SAME_SIGNAL_S = {same_signal_s}')
    assert process.stdout.readline() == 'ticking\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'closing\n'
    return process


def test_a_further_ctrl_c_leaves_a_node_that_does_not_close_without_a_core_dump():
    process = stuck(same_signal_s=0.0)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 128 + signal.SIGINT


def test_one_ctrl_c_that_arrives_twice_is_one():
    process = stuck(same_signal_s=60.0)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[::2] == (0, '')


def test_user_error_while_starting_is_one_line_and_exit_code_two():
    code, out, err = finish(start(construct="raise UserError('limits are missing')"))
    assert code == 2
    assert err.strip().endswith('limits are missing')
    assert len(err.strip().splitlines()) == 1


def end_badly(error, tick='pass'):
    """Interrupt a node whose close() raises `error`; return exit code and stderr."""
    lines = ['def close(self):', f'    raise {error}', '', 'Case.close = close']
    process = start(before='\n'.join(lines), tick=tick)
    if tick == 'pass':
        assert process.stdout.readline() == 'ticking\n'
        process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    return code, err


def test_user_error_while_closing_is_one_line_and_exit_code_two():
    assert end_badly("UserError('the disk is full')") == (2, 'case: the disk is full\n')


def test_a_bug_while_closing_shows_its_traceback_and_exits_with_one():
    code, err = end_badly("RuntimeError('upside down')")
    assert code == 1
    assert 'Traceback' in err and err.endswith('case: RuntimeError: upside down\n')


def test_what_ended_a_node_is_told_before_what_its_end_broke():
    code, err = end_badly("UserError('the disk is full')", tick="raise UserError('no more arm')")
    assert code == 2 and 'disk' not in err
    assert err.splitlines()[-1] == 'case: no more arm'


def test_user_error_in_a_callback_closes_the_node_first():
    code, out, err = finish(start(tick="raise UserError('gone wrong')"))
    assert code == 2
    assert out.endswith('closed\n')
    assert err.splitlines()[-1] == 'case: gone wrong'
    assert 'Traceback' not in err


def test_a_thread_may_end_the_process_with_a_code_of_its_own():
    thread = "threading.Timer(0.05, runtime.request_exit, (5, 'done here')).start()"
    code, out, err = finish(start(construct=thread))
    assert code == 5
    assert err == 'case: done here\n'


def test_a_bug_shows_its_traceback_and_exits_with_one():
    code, _, err = finish(start(tick='1 / 0'))
    assert code == 1
    assert 'ZeroDivisionError' in err
    assert 'Traceback' in err


def test_help_says_where_to_read_on_and_starts_nothing():
    for word in ('--help', '-h'):
        code, output, error = finish(start(construct='raise AssertionError', arguments=(word,)))
        assert (code, error) == (0, '') and 'usage: -c --ros-args [--params-file FILE]' in output


def test_bad_ros_arguments_are_the_users_mistake():
    code, _, err = finish(start(arguments=('--ros-args', '-p', '[')))
    assert code == 2
    assert 'Traceback' not in err
