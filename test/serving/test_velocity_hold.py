# SPDX-License-Identifier: Apache-2.0
"""An arm that velocities drive is not driven back while it is stopped, wherever it is moved to."""

import numpy as np
import pytest
from checkpoints import HORIZON
from worlds import DT, START

from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.drive import Drive
from dipod_ros.serving.drive_laws import Joints, VelocityLaw
from dipod_ros.serving.following import FollowingConfig
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.setpoints import SetpointStream
from dipod_ros.serving.speed import SpeedConfig, SpeedScale

RATE_HZ, GAIN = 100.0, 2.0
FAST = np.full((HORIZON, 3), 0.02)
STILL = np.zeros((HORIZON, 3))


class Arm:
    """Goes as fast as it is told, unless its drive is off; `told` are the velocities."""

    def __init__(self, bench):
        self.bench, self.loop, self.clock = bench, bench.loop, bench.clock
        bench.engine.chunk = STILL
        bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=0.0), DT)
        self.stream = SetpointStream(bench.loop, RATE_HZ)
        joints = Joints(bench.buffer, 'joint_states', 0.2)
        law = VelocityLaw(bench.limits, self.stream.step_s, GAIN, joints)
        self.drive = Drive(bench.loop, self.stream, law)
        self.position, self.velocity, self.powered = START.copy(), np.zeros(3), True
        self.told = []
        self.goal = True  # a stream that the policy needs

    def run(self, seconds):
        """Return the velocities [K, 3] that it was told meanwhile."""
        begun, end = len(self.told), self.clock.now + seconds
        while self.clock.now < end:
            goal = {} if self.goal else {'goal': None}
            self.bench.sense(round(self.clock.now * 1e9), self.position, **goal)
            if self.clock.now >= self.stream.due_s:
                values = self.drive.command()
                self.velocity = np.zeros(3) if values is None else values
                self.told.append(self.velocity)
            self.loop.step()
            if self.powered:
                self.position = self.position + 0.005 * self.velocity
            self.clock.advance(0.005)
        return np.array(self.told[begun:])


@pytest.fixture
def arm(make_bench):
    bench = make_bench(RealTimeLoop, interface='position', following=FollowingConfig(0.1))
    arm = Arm(bench)
    arm.run(2.0)
    return arm


def assert_bounded(arm):
    limits, told = arm.bench.limits, np.array(arm.told)
    assert np.all(np.abs(told) <= limits.velocity + 1e-12)
    change = np.abs(np.diff(told, axis=0))
    assert np.all(change <= limits.acceleration * arm.stream.step_s + 1e-12)


@pytest.mark.parametrize('way', [0.05, 0.5])
def test_one_that_is_moved_under_an_estop_stays_there_and_goes_on_from_there(arm, way):
    assert arm.bench.safety.counts[safety.RESYNC] == 0
    arm.loop.safety.estop.latch('test')
    arm.run(1.0)
    arm.position = put = arm.position + [way, 0.0, 0.0]
    assert not arm.run(2.0).any()
    np.testing.assert_array_equal(arm.position, put)
    arm.loop.safety.estop.reset()
    after = arm.run(2.0)
    if way > arm.loop.config.resync_rad:
        assert arm.bench.safety.counts[safety.RESYNC] == 1
        assert not after.any()
    assert_bounded(arm)


def test_an_estop_in_motion_brakes_within_the_limits_and_makes_up_for_nothing(arm):
    arm.bench.engine.chunk = FAST
    arm.run(0.6)
    assert np.all(arm.velocity > 0.1)
    arm.position = arm.position + [0.0, -0.08, 0.08]  # it trails, or was pushed
    arm.loop.safety.estop.latch('test')
    arm.run(1.0)
    assert not arm.run(1.0).any()
    assert_bounded(arm)


def test_the_command_comes_to_an_arm_that_did_not_follow_and_never_drives_it_back(arm):
    arm.powered = False
    arm.position = put = arm.position + [0.4, 0.0, 0.0]
    arm.run(1.0)
    assert arm.bench.safety.counts[safety.FOLLOWING] == 1
    arm.powered = True  # in the middle of the hold, before and after the command has come to it
    assert not arm.run(1.5).any()
    np.testing.assert_array_equal(arm.position, put)
    assert not arm.run(4.0).any()  # it is tried again, from there
    assert not arm.loop.following.stopped
    assert arm.bench.safety.counts[safety.FOLLOWING] == 1
    assert_bounded(arm)


def test_an_arm_that_sinks_is_still_held_while_it_acts_and_waits_for_a_stream(arm):
    held = arm.position
    arm.position = arm.position - [0.05, 0.0, 0.0]
    assert arm.run(3.0).any()
    np.testing.assert_allclose(arm.position, held, atol=2e-3)
    arm.goal = False
    arm.run(2.0)
    assert arm.bench.safety.counts[safety.STALE] == 1
    arm.position = arm.position - [0.05, 0.0, 0.0]
    arm.run(3.0)
    np.testing.assert_allclose(arm.position, held, atol=2e-3)
    assert_bounded(arm)


def clock_set(arm):
    arm.loop._stops.clock_was_set()


def reset(arm):
    arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 0, reset=True))


def over(arm):
    arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 0, terminated=True))


@pytest.mark.parametrize('event', [clock_set, reset, over, None])
@pytest.mark.parametrize('others', [False, True])
def test_what_holds_it_after_an_estop_does_not_drive_it_back(make_bench, event, others):
    """Nothing may be decided yet: the arm stays where somebody put it meanwhile."""
    following = FollowingConfig(0.1)
    arm = Arm(
        make_bench(
            RealTimeLoop,
            interface='position',
            following=following,
            hold_between_episodes=True,
            silent_beside_others=False,
        )
    )
    arm.run(2.0)
    stop = arm.loop.make_way if others else arm.loop.safety.estop.latch
    stop(True if others else 'test')
    arm.run(1.0)
    arm.position = put = arm.position + [0.5, 0.0, 0.0]
    arm.goal = False
    arm.run(1.0)
    decided = len(arm.bench.engine.observations)
    if event is not None:
        event(arm)
    if others:
        arm.loop.make_way(False)
    else:
        arm.loop.safety.estop.reset()
    assert not arm.run(1.5).any()
    assert arm.loop._stops.held not in (safety.ESTOP, safety.OTHERS)
    assert len(arm.bench.engine.observations) == decided
    np.testing.assert_array_equal(arm.position, put)
    arm.goal = True
    if event is over:
        reset(arm)
    assert not arm.run(1.5).any()  # it goes on from there
    assert len(arm.bench.engine.observations) > decided
    assert not arm.loop.yielding
    assert_bounded(arm)


def test_a_stream_that_falls_silent_does_not_drive_back_an_arm_that_did_not_follow(arm):
    arm.powered = False
    arm.position = put = arm.position + [0.4, 0.0, 0.0]
    arm.run(0.3)
    assert arm.loop.following.stopped
    arm.goal, arm.powered = False, True  # before the command has come to it
    arm.run(3.0)
    assert arm.loop._stops.held == safety.STALE
    np.testing.assert_array_equal(arm.position, put)
    arm.goal = True
    arm.run(5.0)
    np.testing.assert_array_equal(arm.position, put)
    assert not arm.loop.following.stopped
    assert_bounded(arm)
