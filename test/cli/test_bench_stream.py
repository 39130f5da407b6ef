# SPDX-License-Identifier: Apache-2.0
"""The judge of `dipod bench swap` finds gaps in their own phase, and what leaves the limits."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `checkpoints`

from checkpoints import make_limits  # noqa: E402

from dipod_ros.cli.bench_stream import CommandStream  # noqa: E402

LIMITS, DT = make_limits(), 0.01


def play(path):
    stream = CommandStream()
    stream.begin(True)
    for k, point in enumerate(path):
        stream.add(np.asarray(point, dtype=float), round(k * DT * 1e9), 0)
    return stream


def ramp(count, acceleration):
    """Return positions that speed up at a share of the limit."""
    t = np.arange(count)[:, None] * DT
    return acceleration * LIMITS.acceleration * t * t / 2


def test_gaps_belong_to_the_phase_that_they_are_in():
    stream = CommandStream()
    for with_swaps, times in ((True, (0.0, 0.01, 0.04)), (False, (0.14, 0.15)), (None, (9.0, 9.5))):
        stream.begin(with_swaps)
        for t in times:
            stream.add(np.zeros(3), round(t * 1e9), round(2e9 * t))
    stream.begin(True)
    stream.add(np.zeros(3), 20_000_000_000, 40_000_000_000)
    np.testing.assert_allclose(stream.gaps_s(True), [0.01, 0.03])
    np.testing.assert_allclose(stream.gaps_s(True, sent=True), [0.02, 0.06])
    np.testing.assert_allclose(stream.gaps_s(False), [0.01])


@pytest.mark.parametrize(
    ('path', 'count'),
    [
        (ramp(10, 1.0), 0),
        (ramp(10, 1.001), 8),
        (np.linspace(0, 1, 11)[:, None] * LIMITS.velocity * 0.1, 0),
        (np.linspace(0, 1, 11)[:, None] * LIMITS.velocity * 0.1001, 10),
        (np.tile(LIMITS.upper, (5, 1)), 0),
        (np.tile(LIMITS.upper + 1e-3, (5, 1)), 5),
    ],
)
def test_what_leaves_the_limits_is_counted(path, count):
    assert play(path).violations(LIMITS, DT) == count


def test_a_command_that_is_left_out_is_seen():
    path = np.delete(np.linspace(0, 1, 11)[:, None] * LIMITS.velocity * 0.1, 5, axis=0)
    assert play(path).violations(LIMITS, DT) >= 1
