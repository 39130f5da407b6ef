# SPDX-License-Identifier: Apache-2.0
"""In real time the arm always has a plan that ends at rest, whatever is late, stale or broken."""

import numpy as np
import pytest
from checkpoints import HORIZON, JOINTS, make_spec
from worlds import DT, FAST, START, World, assert_smooth, settled

from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.policy.spec import Stream
from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.observation import ObservationLayout
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.swap import HotSwap


@pytest.fixture
def make_world(make_bench):
    def make(interface='position', **config):
        return settled(World(make_bench(RealTimeLoop, interface=interface, **config)))

    return make


@pytest.fixture
def world(make_world):
    return make_world()


def test_nothing_is_commanded_before_the_first_decision(make_bench):
    world = World(make_bench(RealTimeLoop, interface='position'))
    world.sensing = False
    world.run(5)
    assert world.setpoints == [] and world.bench.told == []  # publishers need a moment
    world.run(60)
    assert world.setpoints == []
    assert any('goal' in text for text in world.bench.notices.active)
    world.sensing = True
    settled(world).run(3)
    np.testing.assert_allclose(world.setpoints[0], START, atol=0.01)


def test_chunks_follow_each_other_without_a_gap(world):
    world.run(5 * HORIZON)
    # The first one is there after the first period; each lasts HORIZON periods.
    assert world.bench.agent.number == 5
    assert world.counts(safety.UNDERRUN) == 0
    assert_smooth(world.setpoints, world.bench.limits)
    assert np.all(np.diff(np.array(world.setpoints)[2:], axis=0) > 0)


def reach_for(target):
    """Return a policy that looks at the arm and at its command, with some noise."""

    def chunk(observation, noise):
        position, command = observation[:3], observation[6:9]
        step = 0.05 * (target - position) + 0.1 * (command - position)
        return step + 0.002 * noise.reshape(HORIZON, 3)

    return chunk


def test_per_control_period_real_time_does_what_lockstep_does(make_bench, make_world):
    """An arm that follows at once sees the same commands whether or not the world waits."""
    policy = reach_for(np.array([0.8, -0.5, 1.0]))
    waits = make_bench(LockstepLoop, interface='position')
    waits.engine.chunk = policy
    position, expected = START.copy(), []
    for k in range(40):
        waits.loop.on_outcome(Outcome(k * 40_000_000, 0 if k else -1, reset=k == 0))
        waits.sense(k * 40_000_000, position)
        position = waits.loop.step()[0].setpoint
        expected.append(position)
    world = make_world()
    world.bench.engine.chunk = policy
    for _ in range(40):
        world.period()
        world.position = world.setpoints[-1]
    np.testing.assert_allclose(world.setpoints, expected, atol=1e-9)


@pytest.mark.parametrize(('interface', 'late'), [('position', 0), ('trajectory', 1)])
def test_a_policy_sees_the_arm_with_the_command_of_the_same_time(make_world, interface, late):
    world = make_world(interface, forecast=False)
    world.run(30)
    plans = [p for i, p in enumerate(world.plans) if p not in world.plans[:i]]
    assert len(plans) == len(world.bench.engine.observations) > 4
    seen = np.array([o[6:9] for o in world.bench.engine.observations])
    for before, plan, command in zip(plans, plans[1:], seen[1:], strict=False):
        assert plan.start - plan.chunk_start == late
        np.testing.assert_allclose(command, before.point(plan.chunk_start), rtol=1e-6)
    stamps = [round(r.stamp_s * 1e9) for r in world.loop.finished_records(flush=True)]
    ticks = [world.loop.grid.tick_ns(p.chunk_start) for p in plans]
    np.testing.assert_allclose(stamps, ticks[: len(stamps)], atol=1000)


def test_late_joint_states_are_paired_with_the_commands_of_their_time(make_world):
    world = make_world('trajectory', forecast=False)
    world.skew_s = -2 * DT  # they show the arm as it was two periods ago, and say so
    world.loop.grid.ros_time_ns = lambda: round(world.clock.now * 1e9)
    world.run(40)
    late = {p.start - p.chunk_start for p in world.plans[3:]}
    assert late == {3}
    world.bench.safety.counts[safety.UNDERRUN] = 0
    world.run(40)
    assert world.counts(safety.UNDERRUN) == 0


def test_receding_horizon_decides_every_few_steps(make_world):
    world = make_world(replan_steps=2)
    world.run(20)
    assert world.bench.agent.number == 10
    assert_smooth(world.setpoints, world.bench.limits)


def test_a_decision_begins_earlier_when_decisions_take_long(world):
    world.run(3)
    for _ in range(200):
        world.loop.engine_latency.add(1.9 * DT)
    assert world.loop.pacing.latency_ticks() == 2
    began = world.bench.agent.number
    world.run(HORIZON)
    assert world.bench.agent.number > began
    assert world.loop.timeline.consumed(world.loop.tick) <= HORIZON - 2


def test_a_chunk_that_took_long_starts_where_time_has_got_to(world):
    def think():
        world.bench.engine.during = lambda: None
        world.run(3, decide=False)

    world.run(2)
    chunk = FAST.copy()
    world.bench.engine.during = think
    world.run(HORIZON)
    plan = world.loop.timeline.plan
    assert plan.start - plan.chunk_start == 3
    assert plan.chunk_end - plan.start == len(chunk) - 3
    assert_smooth(world.setpoints, world.bench.limits)


def test_a_decision_that_never_ends_leaves_the_arm_braked_and_is_noticed(world):
    world.run(3)

    def hang():
        world.bench.engine.during = lambda: None
        world.run(40, decide=False)

    world.bench.engine.during = hang
    world.run(HORIZON)
    assert world.counts(safety.UNDERRUN) == 1
    assert world.counts(safety.WATCHDOG) == 1
    assert any('watchdog' in text for problem, text in world.bench.told if problem)
    assert_smooth(world.setpoints, world.bench.limits)
    stand = world.setpoints[3 + HORIZON + 15 : 3 + HORIZON + 30]
    np.testing.assert_allclose(np.ptp(stand, axis=0), 0.0, atol=1e-12)
    world.run(10)
    assert world.bench.notices.active == []
    assert world.setpoints[-1][0] > stand[-1][0]


def test_a_stale_stream_brakes_holds_and_recovers_by_itself(world):
    world.run(8)
    world.sensing = False
    world.run(30)
    assert world.counts(safety.STALE) == 1
    stand = world.setpoints[-1]
    np.testing.assert_array_equal(world.setpoints[-5], stand)
    assert any('joint_states' in text for text in world.bench.notices.active)
    told = len(world.bench.told)
    world.run(10)
    assert len(world.bench.told) == told  # said once
    world.position = stand
    world.sensing = True
    world.run(10)
    assert world.bench.notices.active == []
    assert np.all(world.setpoints[-1] > stand)
    assert_smooth(world.setpoints, world.bench.limits)


def test_the_record_of_a_chunk_cut_short_is_marked(world):
    world.run(5)
    world.sensing = False
    world.run(10)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0))
    *whole, record = world.loop.finished_records()
    assert record.interrupted and not any(r.interrupted for r in whole)
    done = ~np.isnan(record.executed[:, 0])
    assert 0 < done.sum() <= HORIZON
    # The points that are said to be executed are those that were commanded.
    commanded = np.array(world.setpoints)
    first = np.flatnonzero(done)[0]
    middle = (record.executed[first + 1] + record.executed[first]) / 2
    assert np.min(np.abs(commanded - middle).max(axis=1)) < 1e-6


def test_an_arm_that_was_moved_while_it_stood_is_not_pulled_back(world):
    world.run(5)
    world.sensing = False
    world.run(20)
    world.position = np.array([1.0, 1.0, -1.0])
    world.sensing = True
    world.run(4)
    assert world.counts(safety.RESYNC) == 1
    np.testing.assert_allclose(world.setpoints[-1], world.position, atol=0.05)


def test_the_estop_brakes_at_once_and_stays(world):
    world.run(6)
    world.bench.safety.estop.latch('test')
    before = len(world.setpoints)
    world.run(20)
    assert world.counts(safety.ESTOP) == 1
    assert_smooth(world.setpoints, world.bench.limits)
    speed = np.diff(np.array(world.setpoints[before - 1 :]), axis=0) / DT
    # One period is committed already; from then on the speed falls at the limit.
    assert np.all(np.abs(speed[2]) < np.abs(speed[0]) + 1e-12)
    np.testing.assert_allclose(speed[-1], 0.0, atol=1e-12)
    asked = len(world.bench.engine.observations)
    world.bench.safety.estop.reset()
    world.position = world.setpoints[-1]
    world.run(4)
    assert len(world.bench.engine.observations) > asked
    assert_smooth(world.setpoints, world.bench.limits)


def test_the_estop_does_not_wait_for_the_control_period(make_world):
    world = make_world('trajectory')
    world.run(4)
    world.bench.safety.estop.latch('test')
    world.clock.advance(-0.75 * DT)  # early in the period that `run` has just ended
    tick = world.loop.tick
    command = world.loop.control()
    assert world.loop.tick == tick
    assert command is not None and command.plan.motion.horizon == 0


def test_a_failing_engine_is_asked_once_per_period(world):
    world.run(4)
    world.bench.engine.chunk = RuntimeError('no device')
    asked = len(world.bench.engine.observations)
    world.sense()
    for _ in range(50):
        world.loop.step()
    assert len(world.bench.engine.observations) - asked <= 1
    world.run(HORIZON + 10)
    assert world.counts(safety.FAULT) > 0
    assert any('no device' in text for text in world.bench.notices.active)
    assert_smooth(world.setpoints, world.bench.limits)


def test_numbers_that_are_not_finite_never_become_setpoints(world):
    world.run(4)
    world.bench.engine.chunk = np.full((HORIZON, 3), np.inf)
    world.run(20)
    assert np.isfinite(world.setpoints).all()
    assert world.counts(safety.NOT_FINITE) > 0
    assert_smooth(world.setpoints, world.bench.limits)


def test_a_trajectory_is_sent_once_per_plan(make_world):
    world = make_world('trajectory')
    world.run(3 * HORIZON)
    assert len(world.plans) == world.bench.agent.number > 2
    world.sensing = False
    world.run(30)
    assert len(world.plans) == world.bench.agent.number + 1
    assert world.plans[-1].motion.horizon == 0


def test_trajectories_continue_each_other_at_their_seams(make_world):
    world = make_world('trajectory', replan_steps=3)
    world.run(20)
    assert len(world.plans) > 4
    assert world.loop.grid.on_robot_time
    for old, new in zip(world.plans, world.plans[1:], strict=False):
        np.testing.assert_allclose(new.previous, old.point(new.start))
        np.testing.assert_allclose(new.velocity(new.start, DT), old.velocity(new.start, DT))


@pytest.mark.parametrize('skew_s', [-3.0, 3.0])
def test_a_robot_whose_clock_is_set_is_not_sent_into_the_past(make_world, skew_s):
    world = make_world('trajectory')
    world.run(5)
    tick, count = world.loop.tick, len(world.plans)
    world.skew_s = skew_s
    world.run(15)
    assert any('clock was set' in text for _, text in world.bench.told)
    assert len(world.plans) > count
    assert tick < world.loop.tick <= tick + 16
    due = world.loop.grid.tick_ns(world.loop.tick) - round((world.clock.now + skew_s) * 1e9)
    assert abs(due) < 2 * DT * 1e9
    assert world.plans[-1].chunk_start is not None  # it goes on


def test_a_clock_that_is_set_in_full_motion_makes_no_command_jump(world):
    world.run(8)
    world.position = world.setpoints[-1] - 0.02  # as an arm that lags
    world.skew_s = -3.0
    world.run(8)
    assert any('clock was set' in text for _, text in world.bench.told)
    stood = np.diff(np.array(world.setpoints), axis=0)
    assert np.any(np.all(stood == 0.0, axis=1))
    world.position = world.setpoints[-1]
    world.run(8)
    assert_smooth(world.setpoints, world.bench.limits)
    assert np.all(world.setpoints[-1] > world.setpoints[-3])


@pytest.mark.parametrize('skew_s', [-7.0, 7.0])
def test_one_odd_stamp_changes_nothing(world, skew_s):
    world.run(8)
    told = len(world.bench.told)
    world.skew_s = skew_s
    world.run(1)
    world.skew_s = 0.0
    world.run(20)
    assert world.bench.buffer.rejected == 3  # goal, velocity and position
    assert len(world.bench.told) == told
    assert world.counts(safety.STALE) == world.counts(safety.RESYNC) == 0
    assert_smooth(world.setpoints, world.bench.limits)


def test_a_joint_state_that_was_overtaken_renews_nothing(world):
    world.run(8)
    world.sense()
    buffer, joints = world.bench.buffer, ('joint_position', 'joint_states')
    newest = world.loop.joint_sample()
    world.clock.advance(0.01)
    assert not buffer.put(*joints, START, newest.stamp_ns - 40_000_000)
    assert world.loop.joint_sample() is newest and buffer.age_s(*joints) > 0.0
    assert buffer.put(*joints, START, newest.stamp_ns + 1_000_000)


@pytest.mark.parametrize(('off_s', 'side'), [(5.0, 'ahead of'), (-5.0, 'behind')])
def test_a_stream_of_another_time_is_named_stops_the_arm_and_moves_no_clock(
    make_bench, off_s, side
):
    """The goal is stamped elsewhere from the beginning, then its sender is put right."""
    world = World(make_bench(RealTimeLoop, interface='position'))
    right = world.sense

    def wrong():
        now_ns = round(world.clock.now * 1e9)
        world.bench.sense(now_ns, world.position, goal=None)
        world.bench.buffer.put('point', 'goal', np.zeros(3), now_ns + round(off_s * 1e9))

    world.sense = wrong
    world.run(40)
    grid = world.loop.grid
    assert abs(grid.now_ns() - world.clock.now * 1e9) < DT * 1e9
    (text,) = world.bench.notices.active
    assert 'goal' in text and f"{side} the robot's clock" in text
    if world.setpoints:
        np.testing.assert_array_equal(world.setpoints[-1], world.setpoints[-2])
    world.sense = right
    world.run(10)
    assert world.bench.notices.active == []
    assert np.any(world.setpoints[-1] != world.setpoints[-2])


def test_a_simulation_that_gets_slower_is_no_clock_that_was_set(make_bench):
    """Stamps fall behind real time bit by bit, by seconds in the end."""
    world = settled(World(make_bench(RealTimeLoop, interface='position')))
    for k in range(200):
        world.skew_s = -0.6 * DT * max(0, k - 10)
        world.run(1)
    assert world.bench.buffer.rejected == 0
    assert not any('clock was set' in text for _, text in world.bench.told)


def test_stamps_are_left_alone_where_that_is_asked_for(make_bench):
    world = settled(World(make_bench(RealTimeLoop, interface='position', stamp_tolerance_s=0.0)))
    world.bench.buffer.put('point', 'goal', np.zeros(3), 1)
    assert world.bench.buffer.rejected == 0


def test_joints_without_a_stamp_beside_a_stream_with_one(make_bench):
    """Whose clock would it be? Ticks are on the steady one."""
    world = World(make_bench(RealTimeLoop, interface='position'))

    def sense():
        world.bench.sense(0, world.position, goal=None)
        world.bench.buffer.put('point', 'goal', np.zeros(3), round(world.clock.now * 1e9))

    world.sense = sense
    settled(world).run(12)
    assert not world.loop.grid.on_robot_time
    assert world.bench.notices.active == []
    assert_smooth(world.setpoints, world.bench.limits)
    assert np.all(world.setpoints[-1] > world.setpoints[-2])


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
def test_a_robot_without_a_clock_is_served_as_well(make_bench, interface):
    world = World(make_bench(RealTimeLoop, interface=interface))
    world.sense = lambda: world.bench.sense(0, START)
    world.run(40)
    assert len(world.plans) >= 3 and not world.loop.grid.on_robot_time


def test_a_reset_of_the_world_starts_a_new_episode_from_the_arm(make_world):
    world = make_world(reset_teleports=True)
    world.run(5)
    stamp = round(world.clock.now * 1e9)
    world.loop.on_outcome(Outcome(stamp, 0, terminated=True, success=True, reset=True))
    before = len(world.setpoints)
    assert world.loop.control() is None  # the arm has not been seen in the new episode
    world.position = np.array([-1.0, 0.0, 1.0])
    world.run(3)
    np.testing.assert_allclose(world.setpoints[before], world.position, atol=0.01)
    record = world.loop.finished_records()[0]
    assert record.terminated and record.success and not record.interrupted
    assert world.loop.log.current.episode == 1


def test_a_reset_of_a_world_without_stamps_is_over_with_the_next_sample(make_bench):
    world = World(make_bench(RealTimeLoop, interface='position', reset_teleports=True))
    world.sense = lambda: world.bench.sense(0, world.position)
    settled(world).run(5)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, terminated=True, reset=True))
    before = len(world.setpoints)
    world.position = np.array([-1.0, 0.0, 1.0])
    world.run(3)
    np.testing.assert_allclose(world.setpoints[before], world.position, atol=0.02)


def test_stopping_brings_the_arm_to_rest(world):
    world.run(5)
    assert not world.loop.stopped
    world.loop.stop()
    world.run(20)
    assert world.loop.stopped
    assert_smooth(world.setpoints, world.bench.limits)
    np.testing.assert_array_equal(world.setpoints[-1], world.setpoints[-2])


def test_after_a_stall_of_the_machine_no_point_is_skipped(world):
    world.run(4)
    world.clock.advance(10 * DT)
    world.run(4)
    assert world.loop.grid.late_periods >= 9
    assert_smooth(world.setpoints, world.bench.limits)


def test_periods_stay_on_their_grid(make_world):
    world = make_world()
    world.run(2)
    begun = world.loop.next_control_s()
    for k in range(1, 200):
        world.sense()
        world.clock.now = world.loop.next_control_s() + 0.003 * (k % 3)  # late wake-ups
        world.loop.control()
        world.loop.step()
    assert world.loop.next_control_s() == pytest.approx(begun + 199 * DT)
    assert world.loop.grid.late_periods == 0


def test_a_policy_that_waits_for_a_stream_in_vain_can_be_replaced(world):
    """Nothing moves, so that another policy may take over although no chunk ends."""
    loop, bench = world.loop, world.bench
    world.run(2)
    first = bench.agent.policy
    spec = make_spec(streams=(*make_spec().streams, Stream('depth', 'vector', 2, 'depth')))
    deep = LoadedPolicy(
        Manifest(spec, 'flow', 'd' * 64), bench.engine, ObservationLayout(spec, JOINTS)
    )
    swap = HotSwap(None, bench.clock)
    bench.agent._swap = swap
    swap.offer(deep, deep.manifest, 'parameter')
    world.run(3 * HORIZON)
    assert bench.agent.policy is deep and loop.course.at_rest
    world.position = world.setpoints[-1]  # the arm is where it was told to stand
    before = bench.agent.number
    swap.offer(first, first.manifest, 'rollback')
    world.run(HORIZON)
    assert bench.agent.policy is first and bench.agent.number > before
    assert_smooth(world.setpoints, bench.limits)
    swap.close()


def test_an_arm_that_still_follows_is_not_mistaken_for_one_that_was_moved(world):
    """The e-stop is reset while the command brakes: the arm is behind it, but not elsewhere."""
    world.run(3)
    world.bench.safety.estop.latch('test')
    world.period()
    world.bench.safety.estop.reset()
    world.position = START - 0.3  # further behind than resync_rad
    world.run(4)
    assert world.counts(safety.RESYNC) == 0
    assert_smooth(world.setpoints, world.bench.limits)


@pytest.mark.parametrize('late', [0.3, 0.8, 1.7, 2.6])
def test_a_decision_does_not_wait_for_a_late_control_thread(make_world, late):
    """The segment that the controller is on must not change: its first point is of a past tick."""
    world = make_world('trajectory', replan_steps=3, forecast=False)
    world.run(9)

    def think():
        world.bench.engine.during = lambda: None
        world.clock.advance(late * DT)

    world.bench.engine.during = think
    sent = len(world.plans)
    while len(world.plans) == sent:
        world.sense()
        world.decide()
        if len(world.plans) == sent:
            world.clock.advance(0.1 * DT)
            world.control()
    assert world.loop.grid.until(world.plans[-1].start) > 0


@pytest.mark.parametrize('late', [0.3, 0.8, 1.7, 2.6])
def test_a_late_control_thread_brakes_from_where_the_arm_has_got_to(make_world, late):
    world = make_world('trajectory')
    world.run(9)
    world.bench.safety.estop.latch('test')
    world.clock.now = world.loop.next_control_s() + late * DT
    command = world.loop.control()
    assert command.plan.motion.horizon == 0
    assert world.loop.grid.until(command.plan.start) > 0
