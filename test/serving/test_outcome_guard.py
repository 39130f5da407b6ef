# SPDX-License-Identifier: Apache-2.0
"""An outcome of another time judges nothing and resets nothing, and is told of by name."""

import numpy as np
import pytest
from checkpoints import HORIZON
from worlds import World, assert_smooth, settled

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.realtime import RealTimeLoop

HOUR_S = 3600.0


@pytest.fixture
def make_world(make_bench):
    def make(**config):
        return World(make_bench(RealTimeLoop, interface='position', **config))

    return make


@pytest.fixture
def world(make_world):
    return settled(make_world())


def say(world, off_s=0.0, episode=0, **values):
    """Have the world judge now, by a clock that is off by so much."""
    now_s = world.clock.now + world.skew_s
    world.loop.on_outcome(Outcome(round((now_s + off_s) * 1e9), episode, **values))


def refused(world):
    return [text for text in world.bench.notices.active if text.startswith('outcomes are refused')]


@pytest.mark.parametrize(('off_s', 'side'), [(HOUR_S, 'ahead of'), (-HOUR_S, 'behind')])
def test_it_resets_nothing_and_is_named(world, off_s, side):
    world.run(5)
    before = len(world.setpoints)
    say(world, off_s, terminated=True, reset=True)
    world.run(3 * HORIZON)
    (text,) = world.bench.notices.active
    assert text.startswith('outcomes are refused') and f"{side} the robot's clock" in text
    assert len(world.setpoints) == before + 3 * HORIZON
    assert world.loop.episode == 0
    assert_smooth(world.setpoints, world.bench.limits)
    say(world)
    assert world.bench.notices.active == []


@pytest.mark.parametrize('off_s', [HOUR_S, -HOUR_S])
def test_it_judges_no_decision(world, off_s):
    """A decision without a verdict is recorded as interrupted, not as one that earned nothing."""
    world.run(2)
    say(world, off_s, reward=1.0, success=True)
    say(world, off_s, terminated=True, reset=True)
    world.run(6 * HORIZON)  # longer than the patience of the log
    world.clock.advance(1.0)
    records = world.loop.finished_records()
    assert len(records) >= 4
    assert all(r.interrupted and r.reward == 0 and not r.success for r in records)


def test_one_that_comes_before_the_robots_clock_is_known_waits_for_it(make_world):
    right, wrong = make_world(), make_world()
    for world, off_s in ((right, 0.0), (wrong, HOUR_S)):
        world.run(2)
        say(world, off_s, episode=6, terminated=True, reset=True)
        settled(world).run(3 * HORIZON)
        assert len(world.setpoints) >= 2 * HORIZON
        assert bool(refused(world)) == (off_s > 0)
    assert (right.loop.episode, wrong.loop.episode) == (7, 0)


def test_a_simulation_that_begins_again_is_heard(world):
    """Its first word comes before its joint states have set the clock."""
    world.run(HORIZON)
    say(world, episode=3)
    assert world.loop.episode == 3
    world.skew_s = -50.0
    say(world, episode=-1, reset=True)
    assert refused(world)
    world.position = np.array([-0.5, 0.0, 0.5])
    world.run(3 * HORIZON)
    assert world.bench.notices.active == [] and world.loop.log.current.episode == 0
    np.testing.assert_allclose(world.setpoints[-1], world.position, atol=0.5)
    assert any('clock was set' in text for _, text in world.bench.told)
    records = world.loop.finished_records(flush=True)
    # The first was judged; what the new beginning cut short was not, nor what came since.
    assert [r.interrupted for r in records] == [False] + [True] * (len(records) - 1)


def test_what_comes_late_but_within_the_patience_still_counts(world):
    world.run(HORIZON + 2)
    end_ns = round(world.clock.now * 1e9)
    world.run(20)  # 0.8 s
    world.loop.on_outcome(Outcome(end_ns, 0, reward=1.0, success=True))
    assert refused(world) == []
    record = world.loop.finished_records()[0]
    assert not record.interrupted


@pytest.mark.parametrize('config', [{'stamp_tolerance_s': 0.0}, {}])
def test_without_a_tolerance_or_a_clock_of_the_robot_every_outcome_counts(make_world, config):
    world = make_world(**config)
    if not config:
        world.sense = lambda: world.bench.sense(0, world.position)
    settled(world).run(5)
    say(world, HOUR_S, episode=2)
    assert refused(world) == [] and world.loop.episode == 2
