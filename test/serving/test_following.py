# SPDX-License-Identifier: Apache-2.0
"""An arm that does not follow stops the command, which comes back to the arm within limits."""

import numpy as np
import pytest
from checkpoints import HORIZON
from controlled import ControlledArm
from worlds import DT, START, assert_smooth, settled

from dipod_ros.errors import UserError
from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.following import FIRST_WAIT_S, PATIENCE, FollowingConfig
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.speed import SpeedConfig, SpeedScale
from dipod_ros.serving.workspace import Box, Workspace

ON = FollowingConfig()


@pytest.fixture
def make_arm(make_bench):
    def make(interface, lag_s=0.03, following=ON, ramp_in_s=0.0, **config):
        bench = make_bench(RealTimeLoop, interface=interface, following=following, **config)
        bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=ramp_in_s), DT)
        return settled(ControlledArm(bench, lag_s))

    return make


def back_and_forth(seed):
    """Return a policy that wants to go faster than the limits allow, here and there."""
    rng = np.random.default_rng(seed)

    def chunk(observation, noise):
        away = observation[:3] - START  # back towards the middle, now and then
        return np.tile(rng.choice([-0.2, 0.0, 0.2], 3) - 0.1 * away, (HORIZON, 1))

    return chunk


def run_until(arm, done, periods=200):
    for count in range(periods):
        if done():
            return count
        arm.run(1)
    raise AssertionError('it did not happen')


def stopped(arm):
    return arm.counts(safety.FOLLOWING) > 0


def asked(arm):
    return len(arm.bench.engine.observations)


def records(arm):
    return arm.loop.finished_records(flush=True)


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_a_controller_that_was_inactive_is_never_made_to_jump(make_arm, interface):
    arm = make_arm(interface)
    arm.run(8)
    arm.switch(active=False)
    held = arm.position
    assert run_until(arm, lambda: stopped(arm)) < 16
    (text,) = arm.bench.notices.active
    assert 'does not follow: joint ' in text and 'following_rad 0.1' in text
    assert records(arm)[-1].interrupted
    arm.run(round(FIRST_WAIT_S / DT))
    # The command waits where the arm stands.
    np.testing.assert_allclose(arm.loop.timeline.command(arm.loop.tick), held, atol=1e-9)
    arm.switch(active=True)
    before = asked(arm)
    run_until(arm, lambda: asked(arm) > before)
    arm.run(10)
    assert arm.found == []
    assert arm.counts(safety.FOLLOWING) == 1 and arm.bench.notices.active == []
    assert np.abs(arm.position - held).max() > 0.1  # it acts again
    if interface == 'position':
        assert_smooth(arm.setpoints, arm.bench.limits)  # all of them, the way back too


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_a_controller_that_went_on_without_its_drive_is_brought_back_within_limits(
    make_arm, interface
):
    arm = make_arm(interface)
    arm.run(8)
    arm.powered = False
    run_until(arm, lambda: stopped(arm))
    assert np.abs(arm.controller.position - arm.position).max() > 0.2
    arm.run(round(FIRST_WAIT_S / DT))
    np.testing.assert_allclose(arm.controller.position, arm.position, atol=1e-9)
    arm.powered = True
    arm.run(40)
    assert arm.found == []
    assert arm.counts(safety.FOLLOWING) == 1


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_it_is_tried_again_after_longer_and_longer_waits(make_arm, interface):
    arm = make_arm(interface)
    arm.run(8)
    arm.switch(active=False)
    tries = []
    for _ in range(4):
        run_until(arm, lambda: arm.loop.following.stopped)
        began = arm.loop.tick
        run_until(arm, lambda: not arm.loop.following.stopped, periods=1000)
        tries.append((arm.loop.tick - began) * DT)
    assert np.all(np.array(tries) > FIRST_WAIT_S * np.array([1, 2, 4, 8]))
    assert np.all(np.array(tries) < FIRST_WAIT_S * np.array([1, 2, 4, 8]) + 4.0)
    assert arm.counts(safety.FOLLOWING) == 4


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
@pytest.mark.parametrize('lag_s', [0.0, 0.04, 0.1])
def test_an_arm_that_trails_its_command_is_left_alone_at_any_speed(make_arm, interface, lag_s):
    arm = make_arm(interface, lag_s)
    arm.bench.engine.chunk = back_and_forth(1)
    arm.run(500)
    speed = np.diff(arm.path, axis=0) / np.diff(np.arange(len(arm.path)))[:, None]
    assert np.abs(speed).max() > 0.02  # rad per step of the test: it moved
    assert arm.counts(safety.LIMIT) > 10  # as fast as the limits allow
    assert not stopped(arm) and arm.found == []


def test_an_arm_that_is_pushed_away_while_it_stands_stops_the_command(make_arm):
    arm = make_arm('position')
    arm.bench.engine.chunk = np.zeros((HORIZON, 3))
    arm.run(20)
    arm.powered, arm.position = False, arm.position + 0.09
    arm.run(20)
    assert not stopped(arm)
    arm.position = arm.position + 0.03
    arm.run(6)
    assert stopped(arm)


def test_odd_joint_states_stop_nothing(make_arm):
    arm = make_arm('position')
    arm.run(6)
    for odd in range(1, PATIENCE + 1):
        arm.powered, true = False, arm.position
        arm.position = np.array([-1.5, -1.0, -2.0])
        arm.run(odd)
        arm.powered, arm.position = True, true
        assert stopped(arm) == (odd == PATIENCE)
        arm.run(4)


@pytest.mark.parametrize('following', [ON, FollowingConfig(0.0)])
@pytest.mark.parametrize('odd', [30.0, -1e3, 1.7e308])
def test_an_odd_joint_state_teaches_nothing_about_the_lag(make_arm, following, odd):
    arm = make_arm('position', lag_s=0.05, following=following)
    arm.bench.engine.chunk = back_and_forth(1)
    arm.run(100)
    learned = arm.loop._commits.lag_s
    assert np.all(learned > 0.02)
    arm.powered, true = False, arm.position
    arm.position = np.full(3, odd)
    arm.run(1)
    arm.powered, arm.position = True, true
    for _ in range(60):
        arm.run(1)
        np.testing.assert_allclose(arm.loop._commits.lag_s, learned, atol=0.015)


def test_a_simulated_arm_may_be_put_elsewhere_before_the_outcome_says_so(make_arm):
    arm = make_arm('position', reset_teleports=True)
    arm.run(8)
    arm.controller.reset(START)
    arm.position, arm.powered = START, False
    arm.run(5)
    arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 0, reset=True))
    arm.powered = True
    arm.run(20)
    assert not stopped(arm)
    # It does stop where it is not put elsewhere; what a reset comes upon then is forgotten.
    arm.switch(active=False)
    run_until(arm, lambda: stopped(arm))
    arm.loop.on_outcome(Outcome(round(arm.clock.now * 1e9), 1, reset=True))
    arm.switch(active=True)
    arm.run(2, decide=False)
    before = asked(arm)
    arm.run(4)
    assert asked(arm) > before and not arm.loop.following.stopped


def test_it_can_be_switched_off(make_arm):
    arm = make_arm('position', following=FollowingConfig(0.0))
    arm.run(6)
    arm.switch(active=False)
    arm.run(40)
    assert not stopped(arm)


@pytest.mark.parametrize('values', [(-0.1, 0.2), (0.1, -0.1), (np.nan, 0.2), (0.1, np.inf)])
def test_what_makes_no_bound_is_refused(values):
    with pytest.raises(UserError, match='following_'):
        FollowingConfig(*values)


def test_the_next_try_begins_slowly(make_arm):
    arm = make_arm('position', ramp_in_s=2.0)
    arm.run(70)
    arm.switch(active=False)
    run_until(arm, lambda: stopped(arm))
    run_until(arm, lambda: not arm.loop.following.stopped)
    arm.switch(active=True)
    begins, ramped = len(arm.setpoints), arm.counts(safety.RAMP)
    arm.run(8)
    speed = np.abs(np.diff(arm.setpoints[begins:], axis=0)) / DT
    assert arm.counts(safety.RAMP) > ramped
    assert speed.max() > 0.01 and np.all(speed < 0.25 * arm.bench.limits.velocity)


def test_an_estop_on_the_way_back_brakes(make_arm):
    arm = make_arm('position')
    arm.run(8)
    arm.switch(active=False)
    run_until(arm, lambda: stopped(arm))
    run_until(arm, lambda: np.allclose(arm.loop.timeline.plan.motion.points[-1], arm.position))
    arm.run(4)
    arm.bench.safety.estop.latch('test')
    arm.run(20)
    np.testing.assert_array_equal(arm.setpoints[-1], arm.setpoints[-2])
    assert np.abs(arm.setpoints[-1] - arm.position).max() > 0.01  # not there yet
    arm.bench.safety.estop.reset()
    arm.run(40)
    np.testing.assert_allclose(arm.setpoints[-1], arm.position, atol=5e-3)
    assert_smooth(arm.setpoints, arm.bench.limits)


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_a_server_that_holds_such_an_arm_can_be_stopped(make_arm, interface):
    arm = make_arm(interface)
    arm.run(8)
    arm.switch(active=False)
    run_until(arm, lambda: stopped(arm))
    arm.run(12)
    arm.loop.stop()
    run_until(arm, lambda: arm.loop.stopped, periods=round(arm.loop.stopping_s / DT))
    if interface == 'position':
        assert_smooth(arm.setpoints, arm.bench.limits)


def taken_up(make_arm, ramp_in_s=0.0):
    """Return a trajectory arm that was away, and is left the way from where its command stood."""
    arm = make_arm('trajectory', ramp_in_s=ramp_in_s)
    arm.run(8)
    arm.powered = False
    run_until(arm, lambda: stopped(arm))
    run_until(arm, lambda: arm.loop.timeline.plan.unsaid)
    return arm


@pytest.mark.parametrize('parts', [0.05, 0.2, 0.35, 0.5, 0.8, 0.95])
@pytest.mark.parametrize('late', [False, True])
def test_an_estop_stops_an_arm_that_its_controller_takes_back(make_arm, parts, late):
    """Its drive came back, or does so under the e-stop, while the controller was on its way."""
    arm = taken_up(make_arm)
    periods, end = arm.loop.timeline.plan.unsaid, arm.position
    arm.powered = not late
    arm.run(round(parts * periods))
    arm.bench.safety.estop.latch('test')
    sent = len(arm.plans)
    if late:
        arm.run(1)
        assert len(arm.plans) == sent  # the arm stands
        arm.powered = True
    begins = len(arm.path)
    arm.run(3 * periods)
    assert arm.found == []
    path = np.array(arm.path[begins:])
    limits = arm.bench.limits
    moved = np.abs(path - path[-1]).max(axis=1) > 1e-3
    moving_s = DT * moved.nonzero()[0].max(initial=0) / 2  # the path is noted twice a period
    braking_s = 2 * (limits.velocity / limits.acceleration).max() + 4 * DT
    assert moving_s < max(braking_s, 0.4 * periods * DT) + 6 * DT
    if parts <= 0.35:
        assert len(arm.plans) == sent + 1
        assert np.abs(path[-1] - end).max() > 0.02  # it is not where it would have been taken
    np.testing.assert_allclose(path[-1], arm.controller.position, atol=1e-3)
    assert arm.loop._stops.held == safety.ESTOP
    # It goes on from there, once that is allowed.
    arm.bench.safety.estop.reset()
    before = asked(arm)
    run_until(arm, lambda: asked(arm) > before)
    arm.run(10)
    assert arm.found == [] and not arm.loop.following.stopped


def test_an_estop_tells_nothing_to_a_controller_that_holds_the_arm(make_arm):
    arm = taken_up(make_arm)
    held = arm.position
    arm.powered, arm.active = True, True
    arm.controller.halt(held)  # it was switched off and on again
    arm.run(3)
    arm.bench.safety.estop.latch('test')
    sent = len(arm.plans)
    arm.run(60)
    np.testing.assert_array_equal(arm.position, held)
    assert len(arm.plans) == sent and arm.found == []


def test_a_driver_that_wraps_angles_is_named(make_arm):
    """Seen a whole turn away from one joint state to the next."""
    arm = make_arm('trajectory')
    arm.run(8)
    sense = arm.bench.sense
    arm.bench.sense = lambda ns, position, **more: sense(ns, position - [2 * np.pi, 0, 0], **more)
    run_until(arm, lambda: stopped(arm))
    (text,) = (t for t in arm.bench.notices.active if 'does not follow' in t)
    assert 'its driver seems to wrap angles' in text and 'controller' not in text


class Lifted:
    """A tool that is lifted by a metre while the first joint is within two bounds."""

    reach = np.array([9.0, 0.0, 0.0])

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, positions):
        q = positions[:, 0]
        height = np.where((q > self.low) & (q < self.high), 1.0, 0.0)
        return np.stack([0 * q, 0 * q, height], axis=1)


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_the_way_to_an_arm_that_was_moved_stays_in_the_workspace(make_arm, interface):
    arm = make_arm(interface)
    arm.run(8)
    arm.switch(active=False)
    run_until(arm, lambda: stopped(arm))
    arm.run(40)
    where = arm.position
    assert arm.loop.following.stopped
    tool, box = Lifted(where[0] + 0.2, where[0] + 0.4), Box([-1, -1, -0.5], [1, 1, 0.5])
    arm.bench.safety.workspace = Workspace(box, tool, arm.bench.limits.acceleration)

    def stand(away, periods):
        arm.position = where + [away, 0.1, 0.0]
        arm.controller.halt(arm.position)
        arm.run(periods)
        return arm.loop.timeline.command(arm.loop.tick)

    def told():
        return [text for text in arm.bench.notices.active if 'leaves the workspace' in text]

    sent = len(arm.plans)
    np.testing.assert_allclose(stand(0.6, 100), where, atol=1e-6)  # held, and not tried again
    assert len(told()) == 1 and arm.loop.following.stopped
    assert sum('leaves the workspace' in text for _, text in arm.bench.told) == 1
    assert interface == 'position' or len(arm.plans) == sent
    nearer = where + [0.1, 0.1, 0.0]  # somebody brings it back
    np.testing.assert_allclose(stand(0.1, 40), nearer, atol=1e-6)
    assert not told() and arm.found == []
    # The same way is gone where nothing is beside it.
    arm.bench.safety.workspace = None
    away = where + [0.6, 0.1, 0.0]
    np.testing.assert_allclose(stand(0.6, 70), away, atol=1e-6)


@pytest.mark.parametrize('forecast', [False, True])
@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_joint_states_that_lose_their_stamps_stop_the_arm(make_arm, interface, forecast):
    """Nobody could tell any more whether it follows."""
    arm = make_arm(interface, forecast=forecast)
    arm.run(12)
    sense = arm.bench.sense
    arm.bench.sense = lambda stamp_ns, position: sense(0, position)  # the driver was restarted
    arm.run(20)
    assert arm.counts(safety.STALE) == 1 and arm.loop.course.at_rest
    assert any('no stamp any more' in text for text in arm.bench.notices.active)
    before = asked(arm)
    arm.powered = False  # which nobody could see
    arm.run(20)
    assert asked(arm) == before
    arm.bench.sense = sense
    arm.powered = True
    arm.run(20)
    assert asked(arm) > before and arm.bench.notices.active == []
    assert arm.found == []


@pytest.mark.parametrize('ahead_s', [0.3, 0.45])
@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_one_stamp_of_the_future_blames_no_controller(make_arm, interface, ahead_s):
    arm = make_arm(interface)
    arm.bench.engine.chunk = back_and_forth(1)
    arm.run(15)
    tick = arm.loop.tick
    arm.skew_s = ahead_s
    arm.run(1)
    arm.skew_s = 0.0
    arm.run(40)
    assert arm.loop.tick - tick in (41, 42)
    assert arm.counts(safety.FOLLOWING) == arm.counts(safety.STALE) == 0
    assert arm.found == [] and arm.bench.notices.active == []
