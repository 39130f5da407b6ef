# SPDX-License-Identifier: Apache-2.0
"""An observation is made of one look at the streams, whatever arrives meanwhile."""

import dataclasses

import numpy as np
import pytest
from checkpoints import make_spec
from worlds import START, World, settled

from dipod_ros.policy.spec import Stream
from dipod_ros.serving import safety
from dipod_ros.serving.realtime import RealTimeLoop

GOAL = np.array([7.0, 8.0, 9.0])


class VectorWorld(World):
    """The goal is a vector of three numbers; another thread stores what `arrives` says."""

    arrives = staticmethod(lambda buffer: None)

    def sense(self):
        self.bench.buffer.put('vector', 'goal', GOAL, 0)
        self.bench.sense(round(self.clock.now * 1e9), self.position, goal=None)

    def interrupt(self, owner, name):
        """Let things arrive while `owner` is in its method `name`."""
        inner = getattr(owner, name)

        def call(*args):
            self.arrives(self.bench.buffer)
            return inner(*args)

        setattr(owner, name, call)


def make(make_bench, **config):
    spec = make_spec()
    vector = Stream('goal', 'vector', 3, 'goal')
    streams = tuple(vector if s.name == 'goal' else s for s in spec.streams)
    spec = dataclasses.replace(spec, streams=streams)
    bench = make_bench(RealTimeLoop, spec=spec, interface='trajectory', **config)
    return settled(VectorWorld(bench))


@pytest.fixture
def world(make_bench):
    return make(make_bench)


@pytest.mark.parametrize('count', [0, 1, 2, 4])
@pytest.mark.parametrize('where', ['begin', 'expected_tick'])
def test_a_vector_that_changes_size_while_a_decision_begins(world, count, where):
    world.run(10)
    asked = len(world.bench.engine.observations)
    assert asked > 1
    world.interrupt(world.loop.pacing, where)
    world.arrives = lambda buffer: buffer.put('vector', 'goal', np.ones(count), 0)
    world.run(20)
    observations = world.bench.engine.observations
    if where == 'begin':  # before the look: it is no observation
        assert len(observations) == asked
    else:
        assert len(observations) > asked
    for observation in observations:
        np.testing.assert_array_equal(observation[-3:], GOAL)
    world.arrives = lambda buffer: None
    world.run(20)
    assert len(world.bench.engine.observations) > len(observations[:asked]) + 1


def test_a_vector_of_another_size_is_a_reason_to_stop(world):
    world.run(10)
    world.sense = lambda: (
        world.bench.sense(round(world.clock.now * 1e9), world.position, goal=None),
        world.bench.buffer.put('vector', 'goal', np.ones(1), 0),
    )
    world.run(20)
    assert world.counts(safety.STALE) == 1
    assert any('1 numbers on goal, the policy needs 3' in text for _, text in world.bench.told)


def test_a_record_has_the_stamp_of_the_joints_that_it_shows(make_bench):
    world = make(make_bench, forecast=False)
    world.run(10)
    world.interrupt(world.loop.pacing, 'expected_tick')
    late = iter(range(1, 1000))

    def move(buffer):
        stamp_ns = round(world.clock.now * 1e9) + next(late) * 1000
        buffer.put('joint_position', 'joint_states', START + 0.05, stamp_ns)

    world.arrives = move
    world.run(20)
    world.arrives = lambda buffer: None
    records = world.loop.finished_records(flush=True)
    assert len(records) > 3
    for record in records:
        assert abs(record.stamp_s * 25 - round(record.stamp_s * 25)) < 1e-6  # those of `sense`
        np.testing.assert_allclose(record.observation[:3], START, rtol=1e-6)
