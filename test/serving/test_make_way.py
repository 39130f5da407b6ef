# SPDX-License-Identifier: Apache-2.0
"""Beside another commander the arm brakes, and nothing is said until it is gone."""

import numpy as np
import pytest
from checkpoints import HORIZON
from controlled import ControlledArm
from worlds import DT, assert_smooth, settled

from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.episode_hold import MOVED_RAD
from dipod_ros.serving.following import FollowingConfig
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.speed import SpeedConfig, SpeedScale
from dipod_ros.serving.timeline import TRAIL

BRAKING = 20  # control periods, more than enough


@pytest.fixture
def make_arm(make_bench):
    def make(interface, ramp_in_s=0.0, **config):
        bench = make_bench(
            RealTimeLoop, interface=interface, following=FollowingConfig(0.1), **config
        )
        bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=ramp_in_s), DT)
        return settled(ControlledArm(bench, 0.03))

    return make


def moves(arm, periods):
    before = arm.position
    arm.run(periods)
    return np.abs(arm.position - before).max()


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_the_arm_brakes_and_is_the_others_until_that_one_is_gone(make_arm, interface):
    arm = make_arm(interface)
    arm.run(10)
    asked = len(arm.bench.engine.observations)
    arm.loop.make_way(True)
    arm.run(BRAKING + TRAIL)
    assert arm.found == []
    sent = len(arm.plans)
    assert moves(arm, 5) < 1e-3
    arm.controller.reset(arm.position + [0.3, -0.2, 0.06])  # the other one moves it
    arm.run(20)
    assert len(arm.plans) == sent  # nothing is said
    assert len(arm.bench.engine.observations) == asked
    assert arm.counts(safety.OTHERS) == 1 and not arm.loop.following.stopped
    setpoints = len(arm.setpoints)
    if interface == 'position':
        assert_smooth(arm.setpoints, arm.bench.limits)
    arm.loop.make_way(False)
    assert moves(arm, 12) > 0.02
    assert arm.found == []  # it began where the other one had left the arm
    if interface == 'position':
        assert_smooth(arm.setpoints[setpoints:], arm.bench.limits)
    assert arm.counts(safety.OTHERS) == 1


def test_it_goes_on_slowly(make_arm):
    arm = make_arm('position', ramp_in_s=2.0)
    arm.run(70)
    ramped = arm.counts(safety.RAMP)
    arm.loop.make_way(True)
    arm.run(BRAKING + TRAIL)
    arm.loop.make_way(False)
    arm.run(8)
    assert arm.counts(safety.RAMP) > ramped


def test_an_arm_that_does_not_follow_because_another_one_has_it_is_not_taken_up(make_arm):
    arm = make_arm('position')
    arm.run(8)
    arm.active = False
    arm.run(20)
    assert arm.loop.following.stopped
    arm.loop.make_way(True)
    arm.run(BRAKING + TRAIL)
    sent = len(arm.plans)
    arm.run(100)
    assert len(arm.plans) == sent


def test_an_estop_beside_another_commander_is_silent_too(make_arm):
    arm = make_arm('position')
    arm.run(8)
    arm.bench.safety.estop.latch('test')
    arm.loop.make_way(True)
    arm.run(BRAKING + TRAIL)
    sent = len(arm.plans)
    arm.run(10)
    assert len(arm.plans) == sent
    arm.loop.make_way(False)
    arm.run(20)
    assert len(arm.plans) == sent and arm.loop._stops.held == safety.ESTOP


def test_an_arm_that_would_fall_is_held(make_arm):
    arm = make_arm('position', silent_beside_others=False)
    arm.run(8)
    arm.loop.make_way(True)
    arm.run(BRAKING + TRAIL)
    sent, where = len(arm.plans), arm.setpoints[-1]
    arm.run(10)
    assert len(arm.plans) == sent + 10
    np.testing.assert_array_equal(arm.setpoints[-1], where)


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_a_server_that_makes_way_can_be_stopped(make_arm, interface):
    arm = make_arm(interface)
    arm.run(8)
    arm.loop.make_way(True)
    arm.run(3)
    arm.loop.stop()
    arm.run(round(arm.loop.stopping_s / DT))
    assert arm.loop.stopped and arm.found == []


class Hanging(ControlledArm):
    """An arm whose weight keeps it below its command."""

    droop = np.array([0.0, 0.08, 0.0])

    def sense(self):
        if self.sensing:
            self.bench.sense(round(self.clock.now * 1e9), self.position - self.droop)


@pytest.fixture
def make_hanging(make_bench):
    def make(interface, **config):
        bench = make_bench(
            RealTimeLoop, interface=interface, following=FollowingConfig(0.1), **config
        )
        arm = settled(Hanging(bench, 0.02))
        arm.run(20)
        arm.found.clear()
        return arm

    return make


def beside_another(arm):
    arm.loop.make_way(True)
    arm.run(BRAKING + TRAIL)
    yield
    arm.loop.make_way(False)


def between_episodes(arm):
    def say(**outcome):
        arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 0, **outcome))

    say(terminated=True)
    arm.run(BRAKING)
    arm.bench.safety.estop.latch('test')
    arm.run(BRAKING + TRAIL)
    yield
    arm.bench.safety.estop.reset()
    arm.run(3)
    say(reset=True)


@pytest.mark.parametrize('silence', [beside_another, between_episodes])
@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_an_arm_that_hangs_below_its_command_is_held_on_where_it_was(
    make_hanging, interface, silence
):
    """Its controller still holds the command: one that began where the arm is seen would jump."""
    arm = make_hanging(interface, hold_between_episodes=silence is between_episodes)
    for _ in range(2):
        next(silent := silence(arm))
        assert arm.loop.timeline.plan is None
        sent, told = len(arm.plans), arm.controller.position
        arm.bench.engine.chunk = np.zeros((HORIZON, 3))
        next(silent, None)
        arm.run(12)
        assert len(arm.plans) > sent and arm.found == []
        np.testing.assert_allclose(arm.controller.position, told, atol=1e-6)
        arm.bench.engine.chunk = np.full((HORIZON, 3), -0.03)
        arm.run(12)
        assert arm.found == []


@pytest.mark.parametrize('silence', [beside_another, between_episodes])
@pytest.mark.parametrize('interface', ['trajectory', 'position'])
@pytest.mark.parametrize('by', ['moved', 'held by nothing', 'far away'])
def test_one_that_is_not_held_by_the_last_command_begins_where_it_is(
    make_hanging, interface, silence, by
):
    arm = make_hanging(
        interface,
        hold_between_episodes=silence is between_episodes,
        command_stays=by != 'held by nothing',
        resync_rad=0.05 if by == 'far away' else 0.1,
    )
    next(silent := silence(arm))
    arm.bench.engine.chunk = np.zeros((HORIZON, 3))
    if by == 'moved':
        arm.droop = arm.droop + [0.0, 0.0, 1.2 * MOVED_RAD]
    seen = arm.position - arm.droop
    next(silent, None)
    arm.run(12)
    np.testing.assert_allclose(arm.loop.timeline.command(arm.loop.tick), seen, atol=1e-6)
