# SPDX-License-Identifier: Apache-2.0
"""What is told of streams is so: one that nobody waits for any more is not there again."""

import numpy as np
import pytest
from checkpoints import JOINTS, make_spec

from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout
from dipod_ros.serving.stream_watch import GRACE_S, StreamWatch


class Watched:
    def __init__(self, clock):
        self.clock, self.told = clock, []
        self.buffer = ObservationBuffer(clock)
        notices = Notices(lambda problem, text: self.told.append((problem, text)))
        self.watch = StreamWatch(self.buffer, notices, 'joint_states', 0.2, clock)
        streams = make_spec().streams
        self.layout = ObservationLayout(make_spec(), JOINTS)
        blind = make_spec(streams=tuple(s for s in streams if s.name != 'goal'))
        self.blind = ObservationLayout(blind, JOINTS)
        clock.advance(GRACE_S)
        self.look()

    def look(self, layout=None, goal=True, joints=True, heeds=lambda p: True):
        self.clock.advance(1.0)
        if goal:
            self.buffer.put('point', 'goal', np.zeros(3), 0)
        if joints:
            for source in ('joint_velocity', 'joint_position'):
                self.buffer.put(source, 'joint_states', np.zeros(3), 0)
        problems = self.watch.problems(layout or self.layout)
        self.watch.tell([p for p in problems if heeds(p)])
        return self.told[-1] if self.told else None


@pytest.fixture
def watched(clock):
    return Watched(clock)


def test_a_stream_that_comes_again_is_there_again(watched):
    problem, text = watched.look(goal=False)
    assert problem and 'nothing new on goal' in text
    assert watched.look() == (False, 'stream goal is there again')
    assert watched.look(joints=False)[0]
    assert watched.look()[1].endswith('is there again')
    watched.look(watched.blind, joints=False)
    assert watched.look(watched.blind)[1].endswith('is there again')


def test_one_that_another_policy_does_not_look_at_is_not(watched):
    watched.look(goal=False)
    assert watched.look(watched.blind, goal=False) == (False, 'stream goal: not needed now')
    assert watched.look(watched.layout, goal=False)[0]


def test_nor_is_one_that_may_pause_between_episodes(watched):
    watched.look(goal=False)
    told = watched.look(goal=False, heeds=lambda p: p.topic == 'joint_states')
    assert told == (False, 'stream goal: not needed now')
