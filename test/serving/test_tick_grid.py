# SPDX-License-Identifier: Apache-2.0
"""Ticks stand where the robot's stamps are, and are followed without being lost."""

import numpy as np
import pytest

from dipod_ros.serving.observation import Sample
from dipod_ros.serving.tick_grid import TickGrid

DT = 0.04
DT_NS = 40_000_000
ANCHOR_NS = 7_000_000_000


def sample(stamp_ns, received_s):
    return Sample(np.zeros(1), stamp_ns, received_s)


def begun(clock, lead=0.0, may_skip=True, stamped=True, ros=None):
    """Return a grid that has heard twenty messages, anchored at the last one as tick 0."""
    grid = TickGrid(DT, lead, may_skip, clock)
    grid.ros_time_ns = ros
    for k in range(20):
        last = sample(ANCHOR_NS + (k - 19) * DT_NS if stamped else 0, clock.now)
        grid.read_clocks([last])
        clock.advance(DT)
    clock.advance(-DT)
    assert grid.begin(last, 0)
    return grid


def test_too_little_heard_is_no_grid(clock):
    grid = TickGrid(DT, 0.0, True, clock)
    grid.read_clocks([sample(ANCHOR_NS, clock.now)])
    assert not grid.begin(sample(ANCHOR_NS, clock.now), 0)
    assert not grid.begun
    assert grid.wait_s(0) == DT


def test_ticks_are_exactly_one_period_apart_from_the_anchor_on(clock):
    grid = begun(clock)
    assert [grid.tick_ns(k) for k in (0, 1, 1000)] == [
        ANCHOR_NS,
        ANCHOR_NS + DT_NS,
        ANCHOR_NS + 1000 * DT_NS,
    ]


@pytest.mark.parametrize(('shift', 'tick'), [(0, 3), (0.4, 3), (0.6, 4), (-0.4, 3), (-0.6, 2)])
def test_a_sample_belongs_to_the_nearest_tick(clock, shift, tick):
    grid = begun(clock)
    seen = sample(ANCHOR_NS + round((3 + shift) * DT_NS), clock.now)
    assert grid.nearest(seen) == tick
    assert grid.behind(seen, 3) == pytest.approx(-shift)


@pytest.mark.parametrize('lead', [-0.25, 0.0, 0.5])
def test_a_tick_is_due_when_it_is_said_to_be(clock, lead):
    grid = begun(clock, lead)
    tick = grid.follow(0)
    for _ in range(10):
        wait = grid.wait_s(tick)
        assert 0 < wait <= DT
        clock.advance(wait - 1e-4)
        assert grid.follow(tick) == tick
        clock.advance(2e-4)
        assert grid.follow(tick) == tick + 1
        # Tick k + 1 is due `lead` periods before the time of tick k.
        assert grid.now_ns() == pytest.approx(grid.tick_ns(tick) - lead * DT_NS, abs=1.1e5)
        tick += 1
    assert grid.late_periods == 0


@pytest.mark.parametrize(('may_skip', 'tick'), [(True, 6), (False, 2)])
def test_missed_ticks_are_passed_over_or_the_grid_moves(clock, may_skip, tick):
    grid = begun(clock, may_skip=may_skip)
    clock.advance(5.5 * DT)
    assert grid.follow(1) == tick
    assert grid.late_periods == 4
    assert (grid.tick_ns(tick) - ANCHOR_NS) % DT_NS == 0  # still where the stamps are
    assert 0 < grid.wait_s(tick) <= DT


def test_without_stamps_ticks_are_on_the_steady_clock(clock):
    grid = begun(clock, stamped=False)
    assert not grid.on_robot_time
    assert grid.now_ns() == round(clock.now * 1e9)
    assert grid.nearest(sample(0, clock.now + 2 * DT)) == 2


def test_ros_time_helps_when_every_message_is_late(clock):
    delay_s = 0.08
    offset_ns = ANCHOR_NS - round((clock.now + 19 * DT) * 1e9) + round(delay_s * 1e9)
    grid = begun(clock, ros=lambda: round(clock.now * 1e9) + offset_ns)
    assert grid.now_ns() == pytest.approx(ANCHOR_NS + delay_s * 1e9, abs=1e5)


def test_ros_time_that_is_another_time_is_ignored(clock):
    grid = begun(clock, ros=lambda: 1_764_000_000_000_000_000)
    assert grid.now_ns() == pytest.approx(ANCHOR_NS, abs=1e5)


def test_a_clock_that_is_set_is_told_once(clock):
    grid = begun(clock)
    assert not grid.was_set()
    clock.advance(DT)
    grid.read_clocks([sample(ANCHOR_NS - 10**10, clock.now)])
    assert grid.was_set()
    assert not grid.was_set()


def hear(grid, clock, ahead_s):
    """Let a joint state come, whose clock is ahead of the anchor's by so much."""
    clock.advance(DT)
    grid.heard = getattr(grid, 'heard', 0) + 1
    stamp_ns = ANCHOR_NS + grid.heard * DT_NS + round(ahead_s * 1e9)
    grid.read_clocks([sample(stamp_ns, clock.now)])
    return (grid.now_ns() - ANCHOR_NS) / 1e9 - grid.heard * DT


@pytest.mark.parametrize('odd_s', [0.15, 0.3, 0.45])
def test_one_odd_stamp_moves_no_clock(clock, odd_s):
    grid = begun(clock)
    for ahead_s in (0.0, odd_s, 0.0, 0.0, odd_s, 0.0):
        assert hear(grid, clock, ahead_s) == pytest.approx(0.0, abs=1e-6)
        assert grid.rate == 1.0
    assert not grid.was_set()


def test_a_lead_is_believed_when_the_next_message_agrees(clock):
    """Messages were late for a while, or the robot's clock was put right."""
    grid = begun(clock)
    assert [round(hear(grid, clock, s), 6) for s in (0.0, 0.3, 0.29, 0.0)] == [0, 0, 0.29, 0.29]


def test_messages_that_jitter_count_at_once(clock):
    grid = begun(clock)
    assert [round(hear(grid, clock, s), 6) for s in (0.02, 0.0, 0.04, 0.01)] == [
        *(0.02, 0.02, 0.04, 0.04)
    ]
