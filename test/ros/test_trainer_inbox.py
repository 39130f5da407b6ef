# SPDX-License-Identifier: Apache-2.0
"""The trainer's inbox is bounded in number and in bytes, and forgets the oldest."""

import pytest

pytest.importorskip('rclpy')

from dipod_ros.nodes._trainer_inbox import MAX_WAITING_BYTES, Inbox  # noqa: E402
from dipod_ros.policy.decision import MAX_BYTES  # noqa: E402

pytestmark = pytest.mark.ros


def everything(inbox):
    taken = []
    while (payload := inbox.take()) is not None:
        taken.append(payload)
    return taken


def test_the_oldest_make_room_in_number_and_in_bytes():
    inbox = Inbox(max_payloads=3, max_bytes=10)
    for payload in (b'one', b'two', b'six', b'ten'):
        inbox.put(payload)
    assert inbox.waiting_bytes == 9 and inbox.dropped == 1
    inbox.put(b'thousand')  # 8 bytes
    assert inbox.waiting_bytes == 8 and inbox.dropped == 4
    assert everything(inbox) == [b'thousand'] and inbox.waiting_bytes == 0
    inbox.put(b'one')
    assert everything(inbox) == [b'one']


def test_the_largest_that_may_wait_are_a_bounded_part_of_the_memory():
    inbox = Inbox()
    payload = bytes(MAX_BYTES)  # one in memory, however often it waits
    for _ in range(2 * MAX_WAITING_BYTES // MAX_BYTES):
        assert inbox.admits(len(payload))
        inbox.put(payload)
    assert inbox.waiting_bytes == MAX_WAITING_BYTES
    assert not inbox.admits(MAX_BYTES + 1) and inbox.oversized == 1
