# SPDX-License-Identifier: Apache-2.0
"""A way to the arm that is left to its controller ends early for whatever stops the arm."""

import numpy as np
import pytest
from controlled import ControlledArm
from worlds import DT, settled

from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.following import FollowingConfig
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.speed import SpeedConfig, SpeedScale

BEGUN = 3  # control periods into the way


def run_until(arm, done, periods=200):
    for count in range(periods):
        if done():
            return count
        arm.run(1)
    raise AssertionError('it did not happen')


@pytest.fixture
def make_arm(make_bench):
    def make(powered=True, arm_class=ControlledArm, begun=BEGUN, **config):
        """Return an arm that did not follow, and whose controller is on its way to it."""
        bench = make_bench(
            RealTimeLoop, interface='trajectory', following=FollowingConfig(), **config
        )
        bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=0.0), DT)
        arm = settled(arm_class(bench, 0.03))
        arm.run(8)
        arm.powered = False
        run_until(arm, lambda: arm.loop.following.stopped)
        run_until(arm, lambda: arm.loop.timeline.plan.unsaid)
        arm.end, arm.periods = arm.position, arm.loop.timeline.plan.unsaid
        arm.powered = powered
        arm.run(begun)
        return arm

    return make


def reset(arm):
    arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 0, reset=True))


def over(arm):
    arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 0, terminated=True))


def others(arm):
    arm.loop.make_way(True)


def estop(arm):
    arm.bench.safety.estop.latch('test')


def silent(arm):
    arm.sensing = False


def no_goal(arm):
    sense = arm.bench.sense
    arm.bench.sense = lambda stamp_ns, position: sense(stamp_ns, position, goal=None)


def stop(arm):
    arm.loop.stop()


def assert_halts(arm):
    """It comes to rest soon, on the way, by one message, within its limits."""
    begins, sent = len(arm.path), len(arm.plans)
    arm.run(3 * arm.periods)
    path, limits = np.array(arm.path[begins:]), arm.bench.limits
    moving = np.abs(path - path[-1]).max(axis=1) > 1e-3
    braking_s = 2 * (limits.velocity / limits.acceleration).max() + 10 * DT
    assert DT * moving.nonzero()[0].max() / 2 < braking_s  # the path is noted twice a period
    assert len(arm.plans) == sent + 1 and arm.found == []
    assert np.abs(path[-1] - arm.end).max() > 0.1


@pytest.mark.parametrize('hold', [False, True])
@pytest.mark.parametrize(
    ('event', 'after'), [*((event, k) for event in (reset, over) for k in range(3)), (others, 0)]
)
def test_an_estop_stops_it_whatever_came_before(make_arm, event, after, hold):
    arm = make_arm(hold_between_episodes=hold)
    event(arm)
    arm.run(after)
    estop(arm)
    assert_halts(arm)
    assert arm.loop._stops.held == safety.ESTOP


@pytest.mark.parametrize('event', [reset, others])
def test_between_episodes_it_is_let_go_once_it_stands(make_arm, event):
    """Somebody else may command it then, and the next command begins where it is."""
    arm = make_arm()
    event(arm)
    estop(arm)
    run_until(arm, lambda: arm.loop.timeline.plan is None, periods=arm.periods + 20)
    assert np.ptp(arm.path[-8:], axis=0).max() < 1e-3
    arm.controller.reset(arm.position + [0.2, 0.0, -0.1])
    arm.run(20)
    arm.bench.safety.estop.reset()
    arm.loop.make_way(False)
    before = len(arm.plans)
    run_until(arm, lambda: len(arm.plans) > before)
    arm.run(20)
    assert arm.found == []


def test_an_arm_that_is_switched_on_has_not_been_put_elsewhere_by_a_reset(make_arm):
    """It goes to where its controller is, faster than its speed limit perhaps."""
    arm = make_arm()
    arm.position, arm.powered = arm.end, False
    arm.run(2)
    reset(arm)
    arm.position, arm.powered = arm.controller.position, True
    plan = arm.loop.timeline.plan
    arm.run(1)
    assert arm.loop.timeline.plan is plan
    estop(arm)
    arm.run(3 * arm.periods)
    assert arm.found == []


@pytest.mark.parametrize('moved', [0.05, 0.3])
def test_another_way_begins_when_the_first_one_is_over(make_arm, moved):
    """Nobody knows where on the first one the controller is."""
    arm = make_arm()
    sent, arm.powered = len(arm.plans), False
    arm.position = arm.end + [0.0, moved, 0.0]
    arm.run(arm.periods - BEGUN)
    assert len(arm.plans) == sent
    run_until(arm, lambda: len(arm.plans) > sent)
    arm.powered = True
    arm.run(60)
    assert arm.found == []


@pytest.mark.parametrize('event', [stop, others, no_goal, silent])
@pytest.mark.parametrize('then_estop', [False, True])
def test_whatever_stops_an_arm_that_acts_stops_it(make_arm, event, then_estop):
    arm = make_arm()
    event(arm)
    if then_estop:
        estop(arm)
    assert_halts(arm)


@pytest.mark.parametrize('event', [estop, silent])
def test_one_that_stands_at_the_end_is_told_nothing(make_arm, event):
    """It may be that its controller holds it, and never was elsewhere."""
    arm = make_arm(powered=False)
    sent = len(arm.plans)
    event(arm)
    arm.run(3 * arm.periods)
    assert len(arm.plans) == sent


def test_it_goes_on_once_a_stream_is_back(make_arm):
    arm = make_arm()
    sense = arm.bench.sense
    no_goal(arm)
    arm.run(20)
    arm.bench.sense = sense
    run_until(arm, lambda: not arm.loop.following.stopped)
    arm.run(20)
    assert arm.found == [] and not arm.loop.following.stopped


@pytest.mark.parametrize('powered', [False, True])
def test_a_server_waits_until_its_controller_stands(make_arm, powered):
    arm = make_arm(powered=powered)
    arm.loop.stop()
    most = arm.loop.stopping_s
    took = run_until(arm, lambda: arm.loop.stopped)
    assert DT * took <= most
    controller = arm.controller.position.copy()
    arm.run(arm.periods)
    np.testing.assert_allclose(arm.controller.position, controller, atol=1e-4)
    assert powered == (took < arm.periods - BEGUN)  # the halt is over before the way would be


class Holds(ControlledArm):
    """Its controller does not find the new time in its trajectory, and stops where it is."""

    @property
    def controller_s(self):
        return self.clock.now + self.skew_s

    def _play(self, now_s):
        if self._played_s is not None and abs(now_s - self._played_s) > 1.0:
            self.controller.halt(self.controller.position)
            self._played_s = now_s
        super()._play(now_s)


class GoesOn(ControlledArm):
    """Its controller has a clock of its own."""

    @property
    def controller_s(self):
        return self.clock.now


SET = pytest.mark.parametrize('skew_s', [-3600.0, -5.0, 7.0])


@SET
@pytest.mark.parametrize('arm_class', [Holds, GoesOn])
@pytest.mark.parametrize('powered', [True, False])
@pytest.mark.parametrize('begun', [3, 15, 26])
def test_a_clock_that_is_set_makes_it_no_jump(make_arm, skew_s, arm_class, powered, begun):
    """Wherever the controller stopped on its way, or did not, it is told again to come."""
    arm = make_arm(arm_class=arm_class, powered=powered, begun=begun)
    arm.skew_s, sent = skew_s, len(arm.plans)
    run_until(arm, lambda: len(arm.plans) > sent)
    assert powered or arm.plans[-1].unsaid >= arm.periods - 1
    arm.run(arm.plans[-1].unsaid + 10)
    np.testing.assert_allclose(arm.controller.position, arm.position, atol=5e-3)
    assert arm.found == []
    arm.powered = True
    run_until(arm, lambda: not arm.loop.following.stopped)
    arm.run(20)
    assert arm.found == [] and not arm.loop.following.stopped


@SET
@pytest.mark.parametrize('arm_class', [Holds, GoesOn])
def test_an_estop_stops_one_that_went_on_when_the_clock_was_set(make_arm, skew_s, arm_class):
    arm = make_arm(arm_class=arm_class)
    arm.skew_s, begins = skew_s, len(arm.path)
    arm.run(5)
    estop(arm)
    arm.run(3 * arm.periods)
    rest = np.abs(arm.path - arm.path[-1]).max(axis=1)
    assert arm.found == [] and rest[begins + 40 :].max() < 1e-3
    assert np.abs(arm.position - arm.end).max() > 0.05
    arm.bench.safety.estop.reset()
    run_until(arm, lambda: not arm.loop.following.stopped)
    arm.run(20)
    assert arm.found == []
