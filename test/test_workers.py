# SPDX-License-Identifier: Apache-2.0
"""Tests that share a run keep out of each other's way."""

import fcntl
import os
import subprocess
import threading
import time

import pytest
from workers import Turns, domain, give_way

TIMEOUT_S = 60.0  # far above anything but a machine that is swamped


@pytest.fixture
def process(tmp_path):
    """Return a function that makes one process's turns; a file opened anew is another process."""
    return lambda give_way=int: Turns(tmp_path, give_way)


@pytest.fixture
def blocked(tmp_path):
    """Return a function: whether somebody who comes now would have to wait at a lock."""

    def look(name, kind=fcntl.LOCK_SH):
        with open(tmp_path / name) as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    return look


def test_other_tests_run_beside_each_other_and_give_way_once(process):
    given = []
    one, other = process(lambda: given.append('one')), process(lambda: given.append('other'))
    for _ in range(2):
        with one.take(punctual=False), other.take(punctual=False):
            pass  # the second would wait for ever
    assert given == ['one', 'other']


def test_a_punctual_test_runs_beside_others_before_its_process_has_given_way(process, blocked):
    given = []
    first = process(lambda: given.append('first'))
    with first.take(punctual=True), process().take(punctual=False):
        assert blocked('turn') and not blocked('door', fcntl.LOCK_EX)
    with process().take(punctual=False), first.take(punctual=True):
        pass
    assert not blocked('turn', fcntl.LOCK_EX) and given == []


def test_later_nobody_comes_in_beside_it(process, blocked):
    turns = process()
    with turns.take(punctual=False):
        pass
    with turns.take(punctual=True):
        assert blocked('turn') and blocked('door') and blocked('room')
    assert not any(blocked(name, fcntl.LOCK_EX) for name in ('turn', 'door', 'room'))


def test_who_wants_the_machine_waits_and_is_next(process, blocked):
    entered, leave = threading.Event(), threading.Event()
    late = process()
    with late.take(punctual=False):
        pass

    def run_punctually():
        with late.take(punctual=True):
            entered.set()
            leave.wait(TIMEOUT_S)

    thread = threading.Thread(target=run_punctually)
    with process().take(punctual=False):
        thread.start()
        deadline = time.monotonic() + TIMEOUT_S
        while not blocked('door'):  # nobody else comes in while it waits
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not entered.is_set()
    assert entered.wait(TIMEOUT_S)
    assert blocked('turn')  # not even one whose process has not given way
    leave.set()
    thread.join(TIMEOUT_S)


def test_giving_way_is_for_the_thread_that_tests_and_what_it_starts():
    def look():
        give_way()
        niceness.append(os.nice(0))
        niceness.append(int(subprocess.check_output(['nice'], text=True)))

    niceness = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join(TIMEOUT_S)
    mine = os.nice(0)
    assert niceness == [min(mine + 10, 19)] * 2


def test_workers_of_one_run_have_ros_domains_of_their_own(monkeypatch):
    domains = set()
    for number in range(4):
        monkeypatch.setenv('PYTEST_XDIST_WORKER', f'gw{number}')
        domains.add(domain())
    assert len(domains) == 4 and domains <= set(range(1, 101))
