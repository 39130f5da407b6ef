# SPDX-License-Identifier: Apache-2.0
"""An arm that starts, or that hears late of the world, goes slowly, and never breaks a limit."""

import numpy as np
import pytest
from checkpoints import HORIZON, make_limits
from hypothesis import given
from hypothesis import strategies as st
from worlds import CHUNK_NS, DT, FAST, START, World, answer, assert_legal, assert_smooth, settled

from dipod_ros.errors import UserError
from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.speed import RAMP_START, SpeedConfig, SpeedScale

LIMITS = make_limits()
RAMP = SpeedConfig(ramp_in_s=10 * DT)
SLOW = SpeedConfig(slow_age_share=0.5, slow_speed_scale=0.2)


def use(bench, config):
    bench.safety.speed = SpeedScale(config, DT)
    return bench


@pytest.fixture
def slow_world(make_bench):
    world = settled(World(use(make_bench(RealTimeLoop, interface='position'), SLOW)))
    world.run(3)
    return world


def speeds(world):
    return np.diff(np.array(world.setpoints), axis=0) / DT


@pytest.mark.parametrize(
    ('values', 'name'),
    [
        ({'ramp_in_s': -0.1}, 'ramp_in_s'),
        ({'ramp_in_s': np.nan}, 'ramp_in_s'),
        ({'slow_age_share': 0.0}, 'slow_age_share'),
        ({'slow_speed_scale': 0.0}, 'slow_speed_scale'),
        ({'slow_speed_scale': 1.5}, 'slow_speed_scale'),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, name):
    with pytest.raises(UserError, match=name):
        SpeedConfig(**values)


def test_a_ramp_rises_from_a_little_to_everything_and_is_over():
    speed = SpeedScale(RAMP, DT)
    assert speed.scales(0, 5) is None  # nobody asked for one yet
    speed.ramp_in(100)
    scales = speed.scales(100, 15)
    assert scales[0] == RAMP_START
    np.testing.assert_allclose(np.diff(scales[:11]), (1 - RAMP_START) / 10)
    assert np.all(scales[10:] == 1.0)
    # The next chunk goes on where this one was left.
    np.testing.assert_array_equal(speed.scales(104, 6), scales[4:10])
    assert speed.scales(110, 5) is None
    assert speed.at(99) == RAMP_START
    speed.slow = True
    assert speed.scales(105, 5).max() <= speed.config.slow_speed_scale
    np.testing.assert_array_equal(speed.scales(120, 2), [speed.config.slow_speed_scale] * 2)


@given(
    st.lists(st.floats(-3.5, 3.5), min_size=1, max_size=8),
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_slow_at_any_moment_stays_within_limits(goals, slows, cut):
    """Slow mode comes and goes in full motion, and each plan is cut off somewhere by the next."""
    guard = safety.SafetyFilter(LIMITS, DT, SpeedConfig(0.4, 0.5, 0.05))
    position, velocity, tick = np.zeros(3), np.zeros(3), 0
    guard.speed.ramp_in(3)
    for k, goal in enumerate(goals):
        guard.speed.slow = slows[k % len(slows)]
        motion = guard.follow(position, velocity, np.full((8, 3), goal), tick)
        assert_legal(LIMITS, position, velocity, motion.points)
        path = np.concatenate([position[None], motion.points])
        n = min(cut, len(motion.points))
        position, velocity, tick = path[n], (path[n] - path[n - 1]) / DT, tick + n


def test_a_chunk_that_was_slowed_down_is_counted_and_says_so():
    guard = safety.SafetyFilter(LIMITS, DT, RAMP)
    guard.speed.ramp_in(0)
    gentle = np.cumsum(np.full((4, 3), 0.001), axis=0)
    assert not guard.follow(np.zeros(3), np.zeros(3), gentle, 0).altered
    fast = np.cumsum(np.full((4, 3), 0.0075), axis=0)
    assert guard.counts[safety.RAMP] == 0
    motion = guard.follow(np.zeros(3), np.zeros(3), fast, 0)
    assert motion.altered and motion.clamp_rad > 1e-3
    assert guard.counts[safety.RAMP] == 1
    assert guard.counts[safety.LIMIT] == 0
    assert not guard.follow(np.zeros(3), np.zeros(3), fast, 10).altered


def test_in_lockstep_what_the_ramp_slowed_down_is_not_learned_from(make_bench):
    bench = use(make_bench(LockstepLoop), RAMP)
    bench.engine.chunk = FAST
    plans = []
    for k in range(4):
        plans.append(answer(bench, k * CHUNK_NS, episode=0 if k else -1, reset=k == 0).plan)
    steps = np.concatenate([np.diff(p.motion.points[:HORIZON], axis=0) / DT for p in plans])
    scales = SpeedScale(RAMP, DT)
    scales.ramp_in(0)
    allowed = scales.scales(1, HORIZON - 1)[:, None] * LIMITS.velocity
    assert np.all(np.abs(steps[: HORIZON - 1]) <= allowed + 1e-9)
    records = bench.loop.finished_records()
    # By the second chunk the scale has passed what this policy asks for.
    assert [r.interrupted for r in records] == [True, False, False]
    # An episode that begins later needs no ramp: its world was reset, nobody was surprised.
    plan = answer(bench, 4 * CHUNK_NS, episode=1, reset=True).plan
    assert not plan.motion.altered


def test_in_lockstep_the_ramp_is_the_same_in_every_run(make_bench):
    runs = []
    for pause in (0.0, 3.0):
        bench = use(make_bench(LockstepLoop), RAMP)
        bench.engine.chunk = FAST
        answers = []
        for k in range(4):
            bench.clock.advance(pause)
            answers.append(answer(bench, k * CHUNK_NS, episode=0 if k else -1, reset=k == 0))
        runs.append(np.concatenate([a.plan.motion.points for a in answers]))
    np.testing.assert_array_equal(*runs)


def test_after_an_estop_the_arm_starts_slowly_again(make_bench):
    world = settled(World(use(make_bench(RealTimeLoop, interface='position'), RAMP)))
    world.run(25)
    counted = world.counts(safety.RAMP)
    assert counted > 0
    world.bench.safety.estop.latch('test')
    world.run(20)
    world.position = world.setpoints[-1]
    world.bench.safety.estop.reset()
    before = len(world.setpoints)
    world.run(25)
    assert world.counts(safety.RAMP) > counted
    after = np.abs(speeds(world)[before:])
    assert np.all(after[:2] <= 0.3 * LIMITS.velocity)
    assert after[12, 0] == pytest.approx(FAST.max() / DT, rel=1e-3)  # float32 of the chunk
    assert_smooth(world.setpoints, world.bench.limits)


def test_after_a_resync_the_arm_starts_slowly_again(make_bench):
    world = settled(World(use(make_bench(RealTimeLoop, interface='position'), RAMP)))
    world.run(25)
    counted = world.counts(safety.RAMP)
    world.sensing = False
    world.run(20)
    world.position = np.array([1.0, 1.0, -1.0])
    world.sensing = True
    while not world.counts(safety.RESYNC):  # once the arm has been seen to stand
        world.run(1)
    begun = len(world.setpoints)
    world.run(4)
    assert world.counts(safety.RESYNC) == 1
    assert world.counts(safety.RAMP) > counted
    after = np.abs(speeds(world)[begun - 1 :])
    assert len(after) >= 3 and after.any() and np.all(after <= 0.5 * LIMITS.velocity)


def test_a_late_stream_makes_the_arm_slow_before_it_stops_it(slow_world):
    world = slow_world
    world.run(6)
    world.sensing = False
    world.run(4)  # the joint states are older than 0.1 s, and not yet than 0.2 s
    assert world.counts(safety.SLOW) >= 1
    assert world.counts(safety.STALE) == 0
    assert world.loop.late_stream == 'joint_states'
    world.run(1, decide=False)
    assert_smooth(world.setpoints, world.bench.limits)
    world.run(20)
    assert world.counts(safety.STALE) == 1
    np.testing.assert_array_equal(world.setpoints[-1], world.setpoints[-2])
    assert_smooth(world.setpoints, world.bench.limits)


def test_an_arm_that_is_slow_uses_no_more_than_its_share_and_recovers(slow_world):
    """Sensors that fall silent for a while, again and again, and never for so long as to stop."""
    world = slow_world
    slowest = 0.2 * LIMITS.velocity
    for _ in range(4):
        world.sensing = False
        world.run(4)
        world.position = world.setpoints[-1]
        world.sensing = True
        asked = len(world.bench.engine.observations)
        world.run(2)
        assert len(world.bench.engine.observations) > asked  # decided at once, not at its end
        assert world.loop.late_stream == ''
        world.run(6)
        assert np.any(np.abs(speeds(world)[-1]) > slowest + 0.05)
    assert world.counts(safety.STALE) == 0
    assert world.counts(safety.SLOW) >= 4
    assert_smooth(world.setpoints, world.bench.limits)


def test_what_was_decided_before_it_got_slow_is_not_learned_from(slow_world):
    world = slow_world
    world.run(4)
    before = world.bench.agent.number
    world.sensing = False
    world.run(4)
    world.sensing = True
    world.run(3 * HORIZON)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0))
    records = {r.seq: r for r in world.loop.finished_records()}
    assert records[before - 1].interrupted
    assert not records[before + 1].interrupted
    # What it had not reached by then counts as not executed.
    done = ~np.isnan(records[before - 1].executed[:, 0])
    assert done.sum() < HORIZON


def test_a_slow_policy_is_not_disturbed_by_a_late_stream(make_bench):
    world = settled(World(use(make_bench(RealTimeLoop, interface='position'), SLOW)))
    world.bench.engine.chunk = np.full((HORIZON, 3), 0.002)
    world.run(6)
    world.sensing = False
    world.run(4)
    assert world.loop.late_stream == 'joint_states'
    assert world.counts(safety.SLOW) == 0
    np.testing.assert_allclose(world.setpoints[0], START, atol=0.01)
