# SPDX-License-Identifier: Apache-2.0
"""Cores and priorities are as asked for, or one line says why not."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from dipod_ros.errors import UserError
from dipod_ros.ros.scheduling import RealTimePriority, use_cores

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='Linux schedules like this')
CORE = min(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 0


def run(program):
    """Run a program of its own: what it changes ends with it."""
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_thread_old_and_new_is_bound():
    out = run(f"""
        import os, threading
        from dipod_ros.ros.scheduling import use_cores
        end, seen = threading.Event(), []
        old = threading.Thread(target=end.wait)
        old.start()
        assert use_cores([{CORE}]) == ''
        new = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        new.start()
        new.join()
        print(*os.sched_getaffinity(old.native_id), *seen[0], *os.sched_getaffinity(0))
        end.set()
    """)
    assert out == [str(CORE)] * 3


def test_no_cores_is_no_change():
    before = os.sched_getaffinity(0)
    assert use_cores(()) == ''
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize('cores', [[4096], [-1], [0, 0]])
def test_cores_that_are_not_there_are_refused(cores):
    with pytest.raises(UserError, match='cpu_affinity'):
        use_cores(cores)


def test_where_binding_is_forbidden_the_reason_is_returned(monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'sched_setaffinity', forbidden)
    assert 'Operation not permitted' in use_cores([CORE])


def test_where_binding_is_unknown_the_reason_is_returned(monkeypatch):
    monkeypatch.delattr(os, 'sched_setaffinity')
    assert 'not possible here' in use_cores([CORE])


def test_a_priority_that_is_not_permitted_is_told_once_for_all_threads(monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'sched_setscheduler', forbidden)
    told = []
    priority = RealTimePriority(20, told.append)
    threads = [threading.Thread(target=priority.raise_this_thread) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1 and 'realtime_priority 20' in told[0]
    assert priority.policy == 'ordinary'


def test_a_priority_is_for_the_thread_that_asks_and_is_not_inherited(monkeypatch):
    """Whether it is permitted here or not, this is what is asked for."""
    asked = []
    monkeypatch.setattr(os, 'sched_setscheduler', lambda *given: asked.append(given))
    priority = RealTimePriority(20, pytest.fail)
    priority.raise_this_thread()
    ((thread, policy, parameters),) = asked
    assert thread == 0 and parameters.sched_priority == 20
    assert policy == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert priority.policy == 'SCHED_FIFO 20'


def test_no_priority_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(os, 'sched_setscheduler', lambda *_: pytest.fail('asked'))
    RealTimePriority(0, pytest.fail).raise_this_thread()


def test_the_real_thing_has_the_priority_or_says_why_not():
    out = run("""
        import os
        from dipod_ros.ros.scheduling import RealTimePriority
        told = []
        RealTimePriority(1, told.append).raise_this_thread()
        fifo = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        print(fifo, len(told))
    """)
    assert out in (['True', '0'], ['False', '1'])


def test_without_the_events_executor_another_one_is_found():
    out = run("""
        import sys
        sys.modules['rclpy.experimental'] = None  # as on a distribution that has none
        import rclpy
        from dipod_ros.ros import runtime
        rclpy.init()
        print(runtime.EventsExecutor, type(runtime.make_executor()).__name__)
        rclpy.shutdown()
    """)
    assert out == ['None', 'SingleThreadedExecutor']
