# SPDX-License-Identifier: Apache-2.0
"""A swap is built aside, taken once, and leaves the old policy alone when it fails."""

import threading

import pytest
from checkpoints import make_spec

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.serving.swap import BUILDING, FAILED, IDLE, READY, HotSwap

SPEC = make_spec()


def manifest(name):
    return Manifest(SPEC, 'flow', name * 64)


class Workshop:
    """A builder that works when it is let, so that a test can look in between."""

    def __init__(self, clock):
        self.built, self.taken = [], []
        self.gate = threading.Semaphore(0)
        self.changed = threading.Condition()
        self.fail = {}
        self.swap = HotSwap(self.build, clock, self.on_change)

    def build(self, wanted):
        assert self.gate.acquire(timeout=10)
        self.built.append(wanted.sha256[0])
        if wanted.sha256[0] in self.fail:
            raise self.fail[wanted.sha256[0]]
        return f'policy {wanted.sha256[0]}'

    def on_change(self):
        with self.changed:
            self.changed.notify_all()

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 10)

    def take(self):
        return self.swap.take(self.taken.append)


@pytest.fixture
def workshop(clock):
    shop = Workshop(clock)
    yield shop
    shop.gate.release(100)
    shop.swap.close()


def test_a_request_is_built_aside_and_taken_once(workshop):
    swap = workshop.swap
    assert swap.state == IDLE and not workshop.take()
    swap.request(manifest('a'), 'parameter')
    assert swap.state == BUILDING and swap.requested.sha256[0] == 'a'
    assert not workshop.take()
    workshop.gate.release()
    workshop.wait(lambda: swap.state == READY)
    assert workshop.take()
    assert not workshop.take()
    assert workshop.taken == ['policy a']
    assert (swap.state, swap.count, swap.requested) == (IDLE, 1, None)
    assert [(r.result, r.source) for r in swap.history] == [('active', 'parameter')]


@pytest.mark.parametrize(
    ('error', 'reason'),
    [(UserError('golden check failed'), 'golden check'), (ZeroDivisionError('oops'), 'oops')],
)
def test_a_build_that_fails_is_reported_and_nothing_is_taken(workshop, error, reason):
    swap = workshop.swap
    workshop.fail['a'] = error
    swap.request(manifest('a'), 'trainer')
    workshop.gate.release()
    workshop.wait(lambda: swap.state == FAILED)
    assert reason in swap.error
    assert not workshop.take()
    assert swap.history[-1].result == 'failed'
    swap.request(manifest('b'), 'trainer')
    workshop.gate.release()
    workshop.wait(lambda: swap.state == READY)
    assert swap.error == '' and workshop.take()


def test_only_the_newest_of_many_requests_is_built(workshop):
    swap = workshop.swap
    swap.request(manifest('a'), 'trainer')
    for name in 'bcde':
        swap.request(manifest(name), 'trainer')
    workshop.gate.release(10)
    workshop.wait(lambda: swap.state == READY)
    assert workshop.take()
    assert workshop.taken == ['policy e']
    # One may have been begun before the others came; of those that waited only the newest was.
    assert workshop.built[-1] == 'e' and len(workshop.built) <= 2
    results = {r.sha256[0]: r.result for r in swap.history}
    assert results == {**dict.fromkeys('abcd', 'superseded'), 'e': 'active'}


def test_a_newer_request_replaces_one_that_is_ready(workshop):
    swap = workshop.swap
    swap.request(manifest('a'), 'trainer')
    workshop.gate.release()
    workshop.wait(lambda: swap.state == READY)
    swap.request(manifest('b'), 'trainer')
    assert not workshop.take()
    workshop.gate.release()
    workshop.wait(lambda: swap.state == READY)
    workshop.take()
    assert workshop.taken == ['policy b']


def test_closing_ends_the_thread(workshop):
    workshop.swap.close()
    workshop.swap.request(manifest('a'), 'trainer')
    assert workshop.swap.state == IDLE
    assert workshop.swap._thread not in threading.enumerate()


def test_what_is_offered_is_taken_without_a_build(workshop):
    swap = workshop.swap
    swap.offer('policy b', manifest('b'), 'alarm', 'it failed')
    assert (swap.state, swap.pending_source) == (READY, 'alarm')
    assert workshop.take() and workshop.taken == ['policy b'] and workshop.built == []
    record = swap.history[-1]
    assert (record.source, record.result, record.reason) == ('alarm', 'active', 'it failed')
    assert (swap.requested, swap.pending_source) == (None, '')


def test_an_offer_goes_before_what_is_being_built(workshop):
    swap = workshop.swap
    swap.request(manifest('a'), 'trainer')
    swap.offer('policy b', manifest('b'), 'rollback')
    workshop.gate.release()
    workshop.wait(lambda: swap.history)  # whether or not the build of `a` had begun
    assert swap.state == READY and swap.requested.sha256[0] == 'b'
    assert workshop.take() and workshop.taken == ['policy b']
    assert [(r.sha256[0], r.result) for r in swap.history] == [('a', 'superseded'), ('b', 'active')]


def test_what_is_given_up_is_never_taken(workshop):
    swap = workshop.swap
    assert not swap.cancel('nothing there')
    swap.offer('policy b', manifest('b'), 'rollback')
    assert swap.cancel('taken back')
    assert not workshop.take() and (swap.state, swap.requested) == (IDLE, None)
    assert (swap.history[-1].result, swap.history[-1].reason) == ('superseded', 'taken back')
    swap.request(manifest('a'), 'trainer')
    workshop.gate.release()
    workshop.wait(lambda: swap.state == READY)
    assert workshop.take()


def test_whoever_takes_tells_of_it_later(workshop):
    told = []
    workshop.swap._on_change = lambda: told.append(workshop.swap.state)
    workshop.swap.offer('policy b', manifest('b'), 'rollback')
    assert told == [READY]
    workshop.take()
    assert told == [READY]
    workshop.swap.tell()
    workshop.swap.tell()
    assert told == [READY, IDLE]
