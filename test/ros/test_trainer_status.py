# SPDX-License-Identifier: Apache-2.0
"""What the trainer reports, also while its worker goes on counting."""

import sys
import threading
from collections import Counter

import pytest

pytest.importorskip('rclpy')

from dipod_ros.nodes import _trainer_status as status  # noqa: E402
from dipod_ros.ros.diagnostics import Level  # noqa: E402

pytestmark = pytest.mark.ros


def test_the_worst_comes_first():
    counts = Counter(invalid=1, lost=2)
    bad = {'collapsed': 1.0}
    reports = (
        status.report('learning', 'no disk', bad, 1, counts, Counter(stale=300)),
        status.report('learning', '', bad, 1, counts, Counter()),
        status.report('learning', '', {}, 0, counts, Counter()),
        status.report('learning', '', {}, 1, Counter(), Counter()),
        status.report('learning', '', {}, 0, Counter(lost=2), Counter(stale=299)),
    )
    assert [r.level for r in reports] == [Level.ERROR, *[Level.WARN] * 3, Level.OK]
    assert reports[0].message == 'no disk' and reports[-1].message == 'learning'
    assert reports[0].values == {'collapsed': 1.0, 'replay_invalid': 1, 'replay_lost': 2}


@pytest.mark.parametrize('why', status.REASONS)
def test_a_stream_of_which_nothing_can_be_used_is_told_of_by_its_main_reason(why):
    unusable = Counter({**dict.fromkeys(status.REASONS, 20), why: 280})
    told = status.report('waiting', '', {'collapsed': 1.0}, 0, Counter(), unusable)
    assert told.level == Level.WARN
    assert '380 decisions' in told.message and f'({why})' in told.message
    assert f'280 {status.REASONS[why]}' in told.message


def test_counters_that_appear_meanwhile_are_no_error():
    counts, stop = Counter(range(50)), threading.Event()

    def count():
        while not stop.is_set():
            for name in range(100, 200):
                counts[name] += 1
            for name in range(100, 200):
                del counts[name]

    worker, interval = threading.Thread(target=count), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    worker.start()
    try:
        for _ in range(3000):
            assert len(status.report('learning', '', {}, 0, counts, counts).values) >= 50
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        worker.join()
