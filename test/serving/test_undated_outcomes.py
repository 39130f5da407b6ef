# SPDX-License-Identifier: Apache-2.0
"""An outcome without a stamp ends and begins episodes, but nothing is learned from what it says."""

import pytest
from checkpoints import HORIZON
from worlds import World, settled

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.realtime import RealTimeLoop


class Unstamped(World):
    """An arm whose driver leaves the stamps of its joint states at 0."""

    def sense(self):
        self.bench.sense(0, self.position)


@pytest.fixture
def make_world(make_bench):
    def make(kind=World, **config):
        return settled(kind(make_bench(RealTimeLoop, interface='position', **config)))

    return make


def judged(world, periods):
    for _ in range(periods):
        world.period()
        world.loop.on_outcome(Outcome(0, 0))


def all_records(world):
    world.clock.advance(1.1)  # longer than the log waits for outcomes
    return world.loop.finished_records(flush=True)


@pytest.mark.parametrize(
    ('kind', 'whose'), [(Unstamped, 'joint states carry no stamp'), (World, 'they carry no stamp')]
)
def test_nothing_is_learned_and_diagnostics_says_why(make_world, kind, whose):
    world = make_world(kind)
    judged(world, 3 * HORIZON)
    world.loop.on_outcome(Outcome(0, 0, reward=1.0, success=True, terminated=True))
    judged(world, 2 * HORIZON)
    records = all_records(world)
    assert len(records) >= 4 and all(r.interrupted for r in records)
    (text,) = world.bench.notices.active
    assert text.startswith('outcomes cannot be dated') and whose in text


@pytest.mark.parametrize('kind', [Unstamped, World])
def test_an_end_stops_the_arm_and_a_reset_lets_it_go_on(make_world, kind):
    world = make_world(kind, hold_between_episodes=True)
    judged(world, 3 * HORIZON)
    world.loop.on_outcome(Outcome(0, 0, reward=1.0, terminated=True))
    world.run(HORIZON)
    assert world.loop.waiting_for and world.loop.log.current is None
    ended = world.bench.agent.number
    records = all_records(world)
    assert ended >= 3
    assert [r.seq for r in records] == list(range(ended))  # no number is given twice
    assert all(r.interrupted for r in records)
    world.sense()
    world.loop.on_outcome(Outcome(0, 0, reset=True))
    world.run(2 * HORIZON)
    assert world.loop.episode == 1 and world.bench.agent.number > ended


def test_dated_outcomes_are_learned_from_again(make_world):
    world = make_world()
    judged(world, 2 * HORIZON)
    assert world.bench.notices.active
    for _ in range(3 * HORIZON):
        world.period()
        world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reward=0.5))
    assert not world.bench.notices.active
    assert not world.loop.finished_records()[-1].interrupted


def test_a_reset_by_hand_needs_no_stamp(make_world):
    world = make_world()
    world.run(HORIZON)
    world.loop.on_outcome(Outcome(0, 0, reset=True))
    world.run(3)
    assert not world.bench.notices.active and world.loop.episode == 1
