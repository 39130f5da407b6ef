# SPDX-License-Identifier: Apache-2.0
"""Whatever the age of joint states, chunks follow one another without a stop."""

from collections import deque

import numpy as np
import pytest
from checkpoints import HORIZON
from worlds import DT, START

from dipod_ros.serving import safety
from dipod_ros.serving.pacing import END_WINDOW
from dipod_ros.serving.realtime import RealTimeLoop

STEP_S = 0.001


def act(make_bench, interface, replan_steps, delay_s, rate_hz, periods=160):
    """Act on joint states of a rate that come late; return decisions and under-runs of it."""
    bench = make_bench(RealTimeLoop, interface=interface, replan_steps=replan_steps)
    bench.engine.chunk = np.zeros((HORIZON, 3))
    clock, loop, begun_s = bench.clock, bench.loop, bench.clock.now
    loop.grid.ros_time_ns = lambda: round(clock.now * 1e9)
    due_s, on_the_way, decisions = begun_s, deque(), 0
    while clock.now < begun_s + periods * DT:
        if clock.now >= due_s - 1e-9:
            on_the_way.append(due_s)
            due_s += 1 / rate_hz
        while on_the_way and on_the_way[0] + delay_s <= clock.now + 1e-9:
            bench.sense(round(on_the_way.popleft() * 1e9), START)
        if not loop.grid.begun or loop.grid.wait_s(loop.tick) <= 0:
            loop.control()
        decisions += loop.step() is not None
        clock.advance(STEP_S)
    return decisions, bench.safety.counts[safety.UNDERRUN]


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
@pytest.mark.parametrize('delay_ms', [0, 6, 18, 22, 26, 30, 38, 54, 66, 74])
def test_no_age_of_joint_states_makes_the_arm_stop_between_whole_chunks(
    make_bench, interface, delay_ms
):
    decisions, underruns = act(make_bench, interface, 0, delay_ms / 1000, 100.0)
    assert decisions >= 18
    assert underruns == 0


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
@pytest.mark.parametrize(('delay_ms', 'rate_hz'), [(10, 100.0), (10, 60.0), (0, 30.0), (30, 30.0)])
def test_joint_states_that_come_now_in_time_and_now_too_late_are_not_waited_for_in_vain(
    make_bench, interface, delay_ms, rate_hz
):
    periods = 2 * END_WINDOW
    decisions, underruns = act(make_bench, interface, 0, delay_ms / 1000, rate_hz, periods)
    assert decisions >= periods // HORIZON - 6
    assert underruns <= 3  # what it learns from, and learns again


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_within_a_chunk_the_newest_observation_is_still_waited_for(make_bench, interface):
    fresh, _ = act(make_bench, interface, 3, 0.002, 100.0)
    for delay_s in (0.026, 0.034):
        decisions, underruns = act(make_bench, interface, 3, delay_s, 100.0)
        assert underruns == 0
        assert decisions >= fresh - 2  # every three steps
