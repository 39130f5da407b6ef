# SPDX-License-Identifier: Apache-2.0
"""A reset brakes a real arm within its limits; only an arm that can jump begins elsewhere."""

import numpy as np
import pytest
from worlds import DT, START, Arm, World, assert_smooth, settled

from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.reset_watch import ResetWatch
from dipod_ros.serving.speed import SpeedConfig, SpeedScale
from dipod_ros.sim.controllers import ArmController


@pytest.fixture
def arm(make_bench):
    return settled(Arm(make_bench(RealTimeLoop, interface='position')))


@pytest.mark.parametrize('periods', [5, 6, 7, 8, 9])
def test_a_reset_brakes_a_moving_arm_and_an_episode_begins_where_it_stands(arm, periods):
    arm.run(periods)
    assert np.all(np.abs(arm.setpoints[-1] - arm.setpoints[-2]) > 0.5 * 1.2 * DT)
    arm.reset(terminated=True, success=True)
    before = len(arm.setpoints)
    arm.run(40)
    steps = np.abs(np.diff(arm.setpoints[before:], axis=0)).max(axis=1)
    stood = np.flatnonzero(steps == 0.0)
    assert len(stood) >= 5 and np.all(np.diff(stood) == 1)  # it stands once, for a while
    assert np.all(steps[stood[-1] + 2 :] > 0.0)  # and goes on
    assert_smooth([START, *arm.setpoints], arm.bench.limits)
    ended, *others = arm.loop.finished_records(flush=True)[-3:]
    assert arm.loop.log.current is None
    assert arm.counts(safety.STALE) == arm.counts(safety.RESYNC) == 0
    assert {r.episode for r in others} == {1}


def test_the_record_of_the_episode_that_ended_is_whole(arm):
    arm.run(8)
    arm.reset(terminated=True, success=True)
    (*_, last) = arm.loop.finished_records()
    assert last.terminated and last.success and not last.interrupted and last.episode == 0
    arm.run(30)
    assert arm.loop.log.current.episode == 1


def test_a_decision_that_is_under_way_at_a_reset_is_void(arm):
    arm.run(8)

    def during():
        arm.bench.engine.during = lambda: None
        arm.reset()

    arm.bench.engine.during = during
    arm.run(40)
    assert_smooth([START, *arm.setpoints], arm.bench.limits)
    assert np.any(np.all(np.diff(arm.setpoints[8:], axis=0) == 0.0, axis=1))


def test_whoever_publishes_resets_all_the_time_stops_the_arm_and_breaks_no_limit(arm):
    arm.run(8)
    rng = np.random.default_rng(1)
    for _ in range(100):
        for _ in range(rng.integers(0, 3)):
            arm.reset()
        arm.run(int(rng.integers(1, 14)))
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


def test_trajectories_of_a_reset_are_what_a_controller_executes_within_limits(make_bench):
    """Judged by the simulated controller, which is independent of the server."""
    world = settled(World(make_bench(RealTimeLoop, interface='trajectory', replan_steps=3)))
    limits, grid = world.bench.limits, world.loop.grid
    controller, found = ArmController(limits, DT), []
    controller.reset(START)
    played_s = None

    def play(plan):
        nonlocal played_s
        now_s = grid.now_ns() * 1e-9
        if played_s is not None:
            controller.setpoints(played_s, now_s - played_s, 1)
        played_s = now_s
        if plan is not None:
            positions, velocities, tick = plan.knots_with_trail(DT)
            times_s = (grid.tick_ns(tick) * 1e-9) + DT * np.arange(len(positions))
            found.extend(controller.follow(times_s, positions, velocities, now_s))

    decide, control = world.decide, world.control

    def watched(act):
        def call():
            before = len(world.plans)
            act()
            play(world.plans[-1] if len(world.plans) > before else None)
            world.position = controller.position

        return call

    world.decide, world.control = watched(decide), watched(control)
    for periods in (8, 30, 9, 30):
        world.run(periods)
        world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reset=True))
    world.run(30)
    assert found == []
    assert controller.position.max() > 0.6  # it went somewhere


@pytest.mark.parametrize('moved', [np.full(3, 0.3), np.array([0.0, 0.0, -0.2])])
def test_an_arm_that_somebody_moved_by_hand_begins_there_slowly(make_bench, moved):
    world = settled(World(make_bench(RealTimeLoop, interface='position')))
    world.bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=1.0), DT)
    world.run(8)
    for k in range(1, 9):  # slower than its limit: no jump
        world.position = START + moved * k / 8
        world.run(1)
    stood = len(world.setpoints)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reset=True))
    world.run(30)
    assert world.counts(safety.RESYNC) == 1
    assert world.counts(safety.RAMP) > 0
    begun = stood + np.flatnonzero(
        np.abs(np.array(world.setpoints[stood:]) - world.position).max(axis=1) < 0.02
    )
    first = world.setpoints[begun[0] : begun[0] + 4]
    assert np.abs(np.diff(first, axis=0)).max() < 0.4 * 1.2 * DT


def test_between_episodes_an_arm_that_the_estop_holds_is_let_go_and_begins_where_it_is(arm):
    """Somebody may drive it home through the same controller."""
    arm.bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=1.0), DT)
    arm.run(8)
    arm.bench.safety.estop.latch('test')
    arm.run(1)
    arm.reset(truncated=True)  # it still moves
    arm.run(30)
    stood = len(arm.setpoints)
    assert_smooth([START, *arm.setpoints], arm.bench.limits)
    np.testing.assert_array_equal(arm.setpoints[-1], arm.setpoints[-2])
    arm.run(20)
    assert len(arm.setpoints) == stood  # nothing more is sent
    arm.setpoints = [START + 0.05] * 2  # nearer than resync_rad: nobody knows what it was told
    arm.run(5)
    arm.bench.safety.estop.reset()
    arm.run(4)
    np.testing.assert_allclose(arm.setpoints[2], START + 0.05, atol=0.01)
    assert_smooth([START + 0.05, *arm.setpoints], arm.bench.limits)
    assert arm.counts(safety.RAMP) > 0
    assert arm.loop.log.current.episode == 1


def test_a_world_that_teleports_unasked_is_found_out(make_bench):
    world = settled(World(make_bench(RealTimeLoop, interface='position')))
    world.run(8)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reset=True))
    world.position = np.array([-1.0, 0.0, 1.0])
    world.run(5)
    np.testing.assert_allclose(world.setpoints[-1], world.position, atol=0.05)
    assert any('put the arm elsewhere' in text for _, text in world.bench.told)


def test_an_arm_that_was_put_outside_its_limits_is_held(make_bench):
    world = settled(World(make_bench(RealTimeLoop, interface='position')))
    world.run(8)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reset=True))
    world.position = world.bench.limits.upper + 0.5
    world.run(3)
    count = len(world.setpoints)
    world.run(10)
    assert len(world.setpoints) == count
    assert any('is outside' in text for text in world.bench.notices.active)


def test_a_reset_while_the_server_stops_changes_nothing(arm):
    arm.run(8)
    arm.loop.stop()
    arm.run(1)
    arm.reset()
    arm.run(20)
    assert arm.loop.stopped
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


class TestResetWatch:
    VELOCITY = np.array([1.0, 2.0])

    def sample(self, position, stamp_s, received_s=None):
        received_s = 50.0 + stamp_s if received_s is None else received_s
        return Sample(np.asarray(position, dtype=float), round(stamp_s * 1e9), received_s)

    @pytest.mark.parametrize(
        ('position', 'elapsed_s', 'jumps'),
        [
            ([0.0, 0.0], 0.04, False),
            ([0.04, 0.08], 0.04, False),  # at its limit
            ([0.14, 0.0], 0.04, True),
            ([0.0, -0.22], 0.04, True),
            ([0.5, 0.5], 0.5, False),  # joint states that were lost
        ],
    )
    def test_further_than_its_speed_allows(self, position, elapsed_s, jumps):
        watch = ResetWatch(self.VELOCITY, 0.2)
        watch.begin(self.sample([0.0, 0.0], 1.0))
        assert watch.put_elsewhere(self.sample(position, 1.0 + elapsed_s)) == jumps

    def test_messages_that_come_together_are_judged_by_their_stamps(self):
        watch = ResetWatch(self.VELOCITY, 0.2)
        watch.begin(self.sample([0.0, 0.0], 1.0, 51.0))
        assert not watch.put_elsewhere(self.sample([0.2, 0.2], 1.2, 51.001))

    def test_without_stamps_a_delay_is_no_jump(self):
        watch = ResetWatch(self.VELOCITY, 0.2)
        watch.begin(self.sample([0.0, 0.0], 0.0, 51.0))
        assert not watch.put_elsewhere(self.sample([0.2, 0.2], 0.0, 51.001))
        assert watch.put_elsewhere(self.sample([2.0, 0.2], 0.0, 51.05))

    def test_nothing_to_compare_with_is_no_jump(self):
        watch = ResetWatch(self.VELOCITY, 0.2)
        watch.begin(None)
        assert not watch.put_elsewhere(self.sample([2.0, 2.0], 1.0))
