# SPDX-License-Identifier: Apache-2.0
"""Tests that share a run keep out of each other's way."""

import fcntl
import threading
import time

import pytest
from workers import Turns, domain

TIMEOUT_S = 60.0  # far above anything but a machine that is swamped


@pytest.fixture
def turn(tmp_path):
    """Return a function that takes one process's turn; a file opened anew is another process."""
    return lambda alone: Turns(tmp_path).take(alone)


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


def test_ordinary_tests_run_beside_each_other(turn):
    with turn(alone=False), turn(alone=False):
        pass  # the second would wait for ever


def test_nobody_comes_in_where_one_is_alone(turn, blocked):
    with turn(alone=True):
        assert blocked('door')
    assert not blocked('door', fcntl.LOCK_EX) and not blocked('room', fcntl.LOCK_EX)


def test_one_that_is_alone_is_followed_by_the_next_of_its_process(tmp_path, blocked):
    turns = Turns(tmp_path)
    with turns.take(alone=True, next_alone=True):
        assert blocked('door') and blocked('room')
    assert blocked('door') and blocked('room')
    with turns.take(alone=True):
        assert blocked('door') and blocked('room')
    assert not blocked('door', fcntl.LOCK_EX) and not blocked('room', fcntl.LOCK_EX)
    # What was announced and did not come, because another process took it, blocks nobody for long.
    with turns.take(alone=True, next_alone=True):
        pass
    with turns.take(alone=False):
        assert not blocked('door', fcntl.LOCK_EX) and blocked('room', fcntl.LOCK_EX)
    assert not blocked('room', fcntl.LOCK_EX)


def test_who_wants_to_be_alone_waits_and_is_next(turn, blocked):
    entered, leave = threading.Event(), threading.Event()

    def run_alone():
        with turn(alone=True):
            entered.set()
            leave.wait(TIMEOUT_S)

    thread = threading.Thread(target=run_alone)
    with turn(alone=False):
        thread.start()
        deadline = time.monotonic() + TIMEOUT_S
        while not blocked('door'):  # nobody else comes in while it waits
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not entered.is_set()
    assert entered.wait(TIMEOUT_S)
    leave.set()
    thread.join(TIMEOUT_S)


def test_workers_of_one_run_have_ros_domains_of_their_own(monkeypatch):
    domains = set()
    for number in range(4):
        monkeypatch.setenv('PYTEST_XDIST_WORKER', f'gw{number}')
        domains.add(domain())
    assert len(domains) == 4 and domains <= set(range(1, 101))
