# SPDX-License-Identifier: Apache-2.0
"""Outcomes that come in another order than that of their stamps spoil nothing unseen."""

import numpy as np
import pytest
from checkpoints import HORIZON
from worlds import DT, Arm, World, assert_smooth, settled

from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.realtime import RealTimeLoop


@pytest.fixture
def make_world(make_bench):
    def make(kind=World, **config):
        return settled(kind(make_bench(RealTimeLoop, interface='position', **config)))

    return make


@pytest.fixture
def world(make_world):
    return make_world()


def say(world, ago_s=0.0, episode=0, **values):
    stamp_ns = round((world.clock.now + world.skew_s - ago_s) * 1e9)
    world.loop.on_outcome(Outcome(stamp_ns, episode, **values))


def refused(world):
    return [text for text in world.bench.notices.active if 'order of their stamps' in text]


def judged(world, periods):
    """Run, and say every period that nothing was earned."""
    for _ in range(periods):
        world.period()
        say(world)


def test_a_reward_that_another_outcome_overtook_is_told_of_and_its_decision_is_not_learned(world):
    """Both are about the decision before: it was judged to have earned nothing."""
    judged(world, HORIZON)
    world.run(HORIZON + 1)
    say(world)  # ends the judgement of the first decision, and says nothing of what is on its way
    say(world, ago_s=2 * HORIZON * DT, reward=1.0, success=True)
    records = world.loop.finished_records()
    assert records and records[0].reward == 0.0
    assert records[0].interrupted and not any(r.interrupted for r in records[1:])
    assert len(refused(world)) == 1
    assert world.loop.outcomes_out_of_order == 1


def test_one_that_comes_when_the_record_is_out_is_told_of(world):
    judged(world, 2 * HORIZON)
    assert len(world.loop.finished_records()) == 1
    say(world, ago_s=1.5 * HORIZON * DT, reward=1.0)
    assert len(refused(world)) == 1
    judged(world, 2 * HORIZON)
    assert all(r.reward == 0.0 for r in world.loop.finished_records())


def test_an_outcome_of_the_episode_before_does_not_bring_it_back(world):
    judged(world, 5)
    say(world, reset=True)
    assert world.loop.episode == 1
    say(world, ago_s=DT, reward=1.0)
    assert world.loop.episode == 1
    assert refused(world)


def test_a_reset_of_before_the_end_does_not_let_the_arm_go_on(make_world):
    """A person is at the scene: the button was pressed for the episode before."""
    arm = make_world(Arm, hold_between_episodes=True)
    judged(arm, 12)
    say(arm, terminated=True)
    arm.run(20)
    assert arm.loop.waiting_for == 'reset'
    say(arm, ago_s=22 * DT, reset=True)
    arm.run(20)
    assert arm.loop.waiting_for == 'reset' and refused(arm)
    np.testing.assert_array_equal(arm.setpoints[-1], arm.setpoints[-2])
    say(arm, reset=True)
    arm.run(5)
    assert not arm.loop.waiting_for and arm.loop.episode == 1


def test_an_end_that_was_overtaken_still_stops_the_arm(make_world):
    arm = make_world(Arm, hold_between_episodes=True)
    judged(arm, 15)
    say(arm, ago_s=2.5 * DT, terminated=True)
    assert arm.loop.waiting_for == 'reset' and refused(arm)
    arm.run(20)
    np.testing.assert_array_equal(arm.setpoints[-1], arm.setpoints[-2])
    assert_smooth(arm.setpoints, arm.bench.limits)
    *_, last = arm.loop.finished_records()
    assert last.interrupted  # its reward is not known


def test_in_order_and_of_one_moment_nothing_is_refused(world):
    for _ in range(3 * HORIZON):
        world.period()
        say(world, ago_s=0.3 * DT, reward=0.5)
        say(world, ago_s=0.3 * DT, reward=0.5)
        say(world)
    assert not refused(world) and world.loop.outcomes_out_of_order == 0
    records = world.loop.finished_records()
    assert [r.reward for r in records] == [HORIZON] * len(records) and len(records) >= 2
    assert not any(r.interrupted for r in records)


def test_one_that_is_about_no_decision_is_no_news(make_world):
    """A judge who takes its time goes on about the time before a reset."""
    arm = make_world(Arm, hold_between_episodes=True)
    judged(arm, 12)
    say(arm, terminated=True)
    arm.run(30)
    say(arm, reset=True)
    for k in range(8):
        say(arm, ago_s=8 * DT, episode=1)
        arm.run(1)
        assert not refused(arm), k
    assert arm.loop.episode == 1


def test_it_is_said_until_they_came_in_order_for_a_while(world):
    judged(world, HORIZON)
    say(world, ago_s=3 * DT)
    assert refused(world)
    judged(world, 25)
    assert refused(world)
    judged(world, 400)
    assert not refused(world)
    assert [problem for problem, text in world.bench.told if 'outcomes' in text] == [True, False]


@pytest.mark.parametrize('back_s', [0.7, 1.2, 50.0])
def test_a_world_that_begins_again_at_an_earlier_time_is_heard(make_world, back_s):
    world = make_world(reset_teleports=True)
    judged(world, 2 * HORIZON)
    world.skew_s -= back_s
    say(world, reset=True)
    judged(world, 3 * HORIZON)
    assert world.loop.episode in (0, 1)
    say(world, episode=1)
    assert world.loop.episode == 1
    judged(world, 300)
    assert not refused(world)
    assert world.loop.log.current is not None


def test_outcomes_of_before_a_clock_was_set_back_judge_nothing_since(world):
    """What nobody judged since is not learned from, and what is judged late gets its reward."""
    judged(world, 3 * HORIZON)
    before = [r.seq for r in world.loop.finished_records(flush=True)]
    world.skew_s -= 50.0
    world.run(3 * HORIZON)
    assert any('clock was set' in text for _, text in world.bench.told)
    late = [r for r in world.loop.finished_records() if r.seq > before[-1] + 1]
    assert late == []
    say(world, ago_s=HORIZON * DT, reward=1.0)
    world.run(2 * HORIZON)
    say(world)
    records = world.loop.finished_records()
    assert sum(r.reward for r in records if not r.interrupted) == 1.0
