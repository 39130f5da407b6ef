# SPDX-License-Identifier: Apache-2.0
"""A robot's clock that is behind ROS time is told of; one that is near, or far away, is not."""

import numpy as np
import pytest
from checkpoints import HORIZON
from worlds import DT, World, settled

from dipod_ros.serving.clock_watch import WINDOW, ClockWatch
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.realtime import RealTimeLoop


def world_behind(make_bench, behind_s, **config):
    """Return a world whose robot stamps by a clock that is behind ROS time."""
    world = World(make_bench(RealTimeLoop, interface='trajectory', **config))
    world.loop.grid.ros_time_ns = lambda: round((world.clock.now + behind_s) * 1e9)
    world.bench.engine.chunk = np.zeros((HORIZON, 3))
    return settled(world)


def clock_notices(world):
    return [text for text in world.bench.notices.active if 'behind ROS time' in text]


@pytest.mark.parametrize('behind_s', [0.05, 0.25, 0.4])
def test_a_clock_that_is_behind_is_told_of_with_how_much_it_is(make_bench, behind_s):
    world = world_behind(make_bench, behind_s)
    world.run(2 * WINDOW)
    (text,) = clock_notices(world)
    assert f'{behind_s * 1e3:.0f} ms behind ROS time' in text and 'chrony' in text
    assert sum('behind ROS time' in text for _, text in world.bench.told) == 1


@pytest.mark.parametrize('behind_s', [-3.0, -0.25, -0.01, 0.0, 0.01, 0.03, 3.0])
def test_one_that_is_near_ahead_or_of_another_time_is_none_of_our_business(make_bench, behind_s):
    world = world_behind(make_bench, behind_s)
    world.run(2 * WINDOW)
    assert not clock_notices(world)


def test_chunks_that_are_lost_to_it_are_not_blamed_on_the_engine_alone(make_bench):
    world = world_behind(make_bench, (HORIZON + 1.5) * DT, forecast=False)
    world.run(2 * WINDOW)
    assert clock_notices(world)
    (late,) = (text for text in world.bench.notices.active if 'none of it' in text)
    assert 'the age of its joint states' in late


def test_a_few_late_joint_states_are_not_a_clock():
    notices = Notices()
    watch = ClockWatch(notices, DT)
    for _ in range(10):
        for k in range(WINDOW):
            watch.look(0.001 if k == 0 else 0.2)
    assert notices.active == []


def test_it_is_over_when_the_clocks_agree_and_does_not_come_and_go():
    notices = Notices()
    watch = ClockWatch(notices, DT)
    for _ in range(WINDOW):
        watch.look(0.1)
    assert len(notices.active) == 1
    for _ in range(WINDOW):
        watch.look(0.95 * DT)
    assert len(notices.active) == 1
    watch.look(0.002)
    assert notices.active == []
    for _ in range(WINDOW):
        watch.look(0.1)
    watch.look(None)  # ROS time is far off by now: it is not believed any more
    assert notices.active == []
