# SPDX-License-Identifier: Apache-2.0
"""With a forecast, slow decisions lose nothing of their chunks and tear nothing apart."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `test_realtime`

from checkpoints import HORIZON, make_limits, make_spec  # noqa: E402
from test_realtime import DT, FAST, START, World, assert_smooth, reach_for, settled  # noqa: E402

from dipod_ros.policy.kinematics import TipKinematics  # noqa: E402
from dipod_ros.policy.spec import Stream  # noqa: E402
from dipod_ros.serving import safety  # noqa: E402
from dipod_ros.serving.decisions import Outcome  # noqa: E402
from dipod_ros.serving.forecast import TrackingLag, roll_forward  # noqa: E402
from dipod_ros.serving.observation import ObservationLayout  # noqa: E402
from dipod_ros.serving.realtime import RealTimeLoop  # noqa: E402
from dipod_ros.serving.safety import SafetyFilter  # noqa: E402
from dipod_ros.serving.timeline import ChunkTimeline  # noqa: E402

TARGET = np.array([0.9, -0.6, 1.1])


class SlowWorld(World):
    """A world in which the arm follows at once and every decision takes a while."""

    def __init__(self, bench, delay_s=0.0):
        super().__init__(bench)
        self.delay_s = delay_s
        bench.engine.during = self.think
        self._sensed_s = self.clock.now

    def think(self):
        self._live(self.clock.now + self.delay_s)

    def _live(self, end):
        while True:
            due = min(self._sensed_s + DT, self.loop.next_control_s())
            if due > end + 1e-9:
                break
            self.clock.now = max(self.clock.now, due)
            if due == self._sensed_s + DT:
                self._sensed_s = due
                self.position = self.setpoints[-1] if self.setpoints else self.position
                self.sense()
            else:
                self.control()
        self.clock.now = max(self.clock.now, end)

    def run(self, periods, **more):
        end = self.clock.now + periods * DT
        self.sense()
        while self.clock.now < end - 1e-9:
            self.decide()
            due = min(self._sensed_s + DT, self.loop.next_control_s())
            self._live(max(due, self.clock.now))

    def period(self, decide=True):
        super().period(decide)
        self._sensed_s = self.clock.now


@pytest.fixture
def make_slow(make_bench):
    def make(delay_s, interface='position', settle=True, **config):
        world = settled(SlowWorld(make_bench(RealTimeLoop, interface=interface, **config)))
        world.delay_s = delay_s
        if settle:
            for _ in range(20):
                world.loop.engine_latency.add(delay_s)
        return world

    return make


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
@pytest.mark.parametrize('delay_s', [0.0, 0.05, 0.1, 0.16])
def test_nothing_of_a_chunk_is_dropped(make_slow, interface, delay_s):
    world = make_slow(delay_s, interface)
    world.run(60)
    plans = list({id(p): p for p in world.plans if p.chunk_start is not None}.values())
    assert len(plans) > 5
    for plan in plans:
        assert plan.chunk_start >= plan.start  # none of it came too late
        assert plan.chunk_end - plan.chunk_start == HORIZON
    starts = [p.chunk_start for p in plans]
    np.testing.assert_array_equal(np.diff(starts), HORIZON)
    assert world.counts(safety.UNDERRUN) == 0


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
def test_the_policy_sees_the_command_and_the_arm_of_the_tick_that_its_chunk_begins_at(
    make_slow, interface
):
    world = make_slow(0.1, interface)
    world.run(60)
    engine = world.bench.engine
    plans = list({id(p): p for p in world.plans if p.chunk_start is not None}.values())
    for observation, before, plan in zip(engine.observations[1:], plans, plans[1:], strict=False):
        asked = plan.chunk_start
        np.testing.assert_allclose(observation[6:9], before.point(asked), atol=1e-6)
        if interface == 'position':  # the arm of this world is where `position` put it
            np.testing.assert_allclose(observation[:3], before.knot(asked), atol=2e-2)


def test_an_arm_that_does_as_it_is_told_acts_as_if_decisions_took_no_time(make_slow):
    """The observation that is forecast is the one that comes: delay only shifts the run."""
    runs = []
    for delay_s in (0.0, 0.1):
        world = make_slow(delay_s)
        world.bench.engine.chunk = reach_for(TARGET)
        world.run(60)
        path = np.array(world.setpoints)
        begin = np.flatnonzero(np.abs(path - START).max(axis=1) > 1e-9)[0]
        runs.append(path[begin : begin + 45])
        assert_smooth(world.setpoints, world.bench.limits)
    np.testing.assert_allclose(runs[1], runs[0], atol=1e-6)


def test_without_a_forecast_the_same_delay_costs_every_chunk_its_first_steps(make_slow):
    world = make_slow(0.1, forecast=False)
    world.run(60)
    plans = list({id(p): p for p in world.plans if p.chunk_start is not None}.values())
    assert {p.start - p.chunk_start for p in plans} == {3}


def test_what_is_later_than_expected_is_dropped_by_what_was_really_consumed(make_slow):
    world = make_slow(0.05)
    world.run(20)
    world.delay_s = 0.05 + 2 * DT
    world.run(2 * HORIZON)
    late = [p.start - p.chunk_start for p in world.plans if p.chunk_start is not None]
    assert max(late) == 2
    assert_smooth(world.setpoints, world.bench.limits)


def test_a_decision_that_is_early_waits_for_its_time(make_slow):
    world = make_slow(0.0)
    for _ in range(200):
        world.loop.engine_latency.add(0.0)
    for _ in range(10):
        world.loop.engine_latency.add(3.5 * DT)  # now and then it takes longer
    world.run(60)
    plans = list({id(p): p for p in world.plans if p.chunk_start is not None}.values())
    assert max(p.chunk_start - p.start for p in plans[1:]) >= 3
    np.testing.assert_array_equal(np.diff([p.chunk_start for p in plans]), HORIZON)
    assert world.counts(safety.UNDERRUN) == 0
    assert_smooth(world.setpoints, world.bench.limits)
    # Every commanded point is in one record.
    records = world.loop.finished_records(flush=True)
    for record in records[:-1]:
        assert not np.isnan(record.executed).any()


def test_a_rare_delay_beyond_the_end_of_the_chunk_is_not_waited_for(make_slow):
    world = make_slow(0.0)
    for _ in range(3):
        world.loop.engine_latency.add(20 * DT)
    world.run(60)
    assert world.counts(safety.UNDERRUN) == 0
    plans = [p for p in world.plans if p.chunk_start is not None]
    assert max(p.chunk_start - p.start for p in plans) <= HORIZON


@pytest.mark.parametrize('seam', ['replace', 'ensemble'])
def test_decisions_longer_than_a_chunk_stop_and_go_within_the_limits(make_slow, seam):
    """Under-runs are counted, each of them once; the arm brakes, holds and goes on."""
    world = make_slow((HORIZON + 4) * DT, seam=seam)
    world.run(100)
    assert world.counts(safety.UNDERRUN) >= 5
    assert world.bench.agent.number - 1 <= world.counts(safety.UNDERRUN) + 1
    assert_smooth(world.setpoints, world.bench.limits)
    assert np.all(world.setpoints[-1] > START + 0.1)
    stood = np.abs(np.diff(np.array(world.setpoints), axis=0)).max(axis=1) < 1e-12
    assert stood.any()


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
@pytest.mark.parametrize('seam', ['replace', 'ensemble'])
@pytest.mark.parametrize('replan_steps', [0, 1, 3])
def test_wild_chunks_stay_within_the_limits(make_slow, interface, seam, replan_steps):
    world = make_slow(0.1, interface, seam=seam, replan_steps=replan_steps)
    rng = np.random.default_rng(0)
    world.bench.engine.chunk = lambda o, z: rng.normal(0, 0.2, (HORIZON, 3)).astype(np.float32)
    world.run(80)
    tick = world.loop.tick
    path = [world.loop.timeline.command(t) for t in range(tick - 7, tick + 1)]
    assert_smooth(path, world.bench.limits)
    if interface == 'position':
        assert_smooth(world.setpoints, world.bench.limits)


def test_the_record_keeps_what_the_policy_saw(make_slow):
    world = make_slow(0.1)
    world.run(40)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0))
    records = world.loop.finished_records()
    assert len(records) > 3
    for record, seen in zip(records, world.bench.engine.observations, strict=False):
        np.testing.assert_array_equal(record.observation, seen)
        assert not record.interrupted


def test_blended_decisions_are_not_for_learning(make_slow):
    for seam, expected in (('replace', False), ('ensemble', True)):
        world = make_slow(0.0, seam=seam, replan_steps=2)
        world.run(30)
        world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0))
        first, *others = world.loop.finished_records()
        assert not first.interrupted  # there was nothing to blend with
        assert len(others) > 3 and {r.interrupted for r in others} == {expected}


class TestGuided:
    """The loop tells a guided engine what is committed; the scripted one remembers it."""

    @pytest.fixture
    def make_guided(self, make_slow):
        def make(delay_s, **config):
            world = make_slow(delay_s, seam='rtc', **config)
            engine, plain = world.bench.engine, world.bench.engine.run
            engine.known = []

            def run(observation, noise, prefix=None, weights=None):
                engine.known.append((prefix, weights))
                return plain(observation, noise)

            engine.run = run
            return world

        return make

    def test_without_forecast_the_steps_that_pass_meanwhile_are_certain(self, make_guided):
        world = make_guided(0.1, forecast=False)
        world.run(40)
        plans = list({id(p): p for p in world.plans if p.chunk_start is not None}.values())
        known = world.bench.engine.known[-2]
        before, plan = plans[-3:-1]
        late = plan.start - plan.chunk_start
        assert late == 3 and np.sum(known[1] == 1.0) == late
        committed = [before.point(plan.chunk_start + k) for k in range(late + 1)]
        np.testing.assert_allclose(known[0][:late], np.diff(committed, axis=0), atol=1e-6)
        # The chunk goes on from there, whatever it would have done until then.
        step = plan.point(plan.start + 1) - plan.point(plan.start)
        np.testing.assert_allclose(step, FAST[late], atol=1e-5)

    def test_with_forecast_it_is_guided_by_what_the_old_chunk_has_left(self, make_guided):
        world = make_guided(0.0, replan_steps=2)
        world.run(30)
        prefix, weights = world.bench.engine.known[-1]
        assert 0 < weights[0] < 1 and np.all(np.diff(weights) <= 0)
        left = HORIZON - 2
        assert np.all(weights[:left] > 0) and not weights[left:].any()
        np.testing.assert_allclose(prefix[:left], FAST[:left], atol=1e-5)

    def test_guided_decisions_are_not_for_learning(self, make_guided):
        world = make_guided(0.0, replan_steps=2)
        world.run(30)
        world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0))
        first, *others = world.loop.finished_records()
        assert not first.interrupted and all(r.interrupted for r in others)
        assert_smooth(world.setpoints, world.bench.limits)

    def test_whole_chunks_in_time_need_no_guidance(self, make_guided):
        world = make_guided(0.0)
        world.run(30)
        assert all(k == (None, None) for k in world.bench.engine.known)


def test_rolling_forward_moves_joints_velocities_and_the_tip():
    joints = ('a', 'b')
    spec = make_spec(
        joints=joints,
        streams=(
            Stream('position', 'joint_position', 2, 'joint_states'),
            Stream('velocity', 'joint_velocity', 2, 'joint_states'),
            Stream('command', 'command', 2),
            Stream('tip', 'point', 3, 'tip'),
            Stream('goal', 'point', 3, 'goal'),
        ),
    )
    layout = ObservationLayout(spec, ('b', 'a'))  # the robot has them the other way round
    line = ChunkTimeline(SafetyFilter(make_limits(('b', 'a')), DT))
    line.reset(np.zeros(2), 0)
    line.schedule(np.tile([0.002, 0.004], (6, 1)), np.zeros(2), 0, 0)
    plan = line.plan
    arm = TipKinematics(  # planar: b turns at the origin, a at 1 m
        np.array([[0.0, 0, 1], [0, 0, 1]]),
        np.array([[0.0, 0, 0], [1, 0, 0]]),
        np.array([2.0, 0, 0]),
        'tip',
    )
    seen = np.arange(13, dtype=np.float32)
    measured = np.array([0.3, -0.2])
    still = np.zeros(2)
    out = roll_forward(layout, seen, measured, plan, 1, 4, still, arm)
    moved = plan.knot(4) - plan.knot(1)
    assert np.all(moved > 0)
    np.testing.assert_allclose(out[:2] - seen[:2], moved[::-1], atol=1e-6)
    faster = plan.velocity(4, DT) - plan.velocity(1, DT)
    np.testing.assert_allclose(out[2:4] - seen[2:4], faster[::-1], atol=1e-5)
    np.testing.assert_array_equal(out[4:6], seen[4:6])
    b, a = measured + moved
    expected = np.array([np.cos(b) + np.cos(a + b), np.sin(b) + np.sin(a + b), 0])
    b, a = measured
    expected -= [np.cos(b) + np.cos(a + b), np.sin(b) + np.sin(a + b), 0]
    np.testing.assert_allclose(out[6:9] - seen[6:9], expected, atol=1e-5)
    np.testing.assert_array_equal(out[9:], seen[9:])
    without = roll_forward(layout, seen, measured, plan, 1, 4, still)
    np.testing.assert_array_equal(without[6:], seen[6:])
    np.testing.assert_array_equal(
        roll_forward(layout, seen, measured, plan, 4, 4, still, arm), seen
    )
    lag_s = np.array([0.01, 0.02])
    lagging = roll_forward(layout, seen, measured, plan, 1, 4, lag_s)
    np.testing.assert_allclose(lagging[:2] - without[:2], -(lag_s * faster)[::-1], atol=1e-6)


def test_the_lag_of_each_joint_is_learned_from_how_it_tracks():
    lag, rng = TrackingLag(3, DT), np.random.default_rng(0)
    np.testing.assert_array_equal(lag.seconds, 0.0)
    truth, sag = np.array([0.03, 0.0, 0.01]), np.array([0.02, -0.01, 0.0])
    for _ in range(100):
        velocity = rng.normal(0.2, 0.3, 3)
        lag.observe(sag - truth * velocity + rng.normal(0, 1e-4, 3), velocity)
    np.testing.assert_allclose(lag.seconds, truth, atol=1e-3)
    for _ in range(400):  # a drive was exchanged
        velocity = rng.normal(0.2, 0.3, 3)
        lag.observe(-0.05 * velocity, velocity)
    np.testing.assert_allclose(lag.seconds, 0.05, atol=1e-3)


def test_an_arm_that_stands_or_does_not_follow_has_a_bounded_lag():
    lag, rng = TrackingLag(1, DT), np.random.default_rng(0)
    for _ in range(100):
        lag.observe(rng.normal(0, 1e-3, 1), np.zeros(1))
    assert lag.seconds[0] == 0.0
    for sign, expected in ((1.0, 0.0), (-1.0, 4 * DT)):
        for _ in range(300):
            velocity = rng.normal(0, 0.5, 1)
            lag.observe(sign * velocity, velocity)
        assert lag.seconds[0] == pytest.approx(expected)
