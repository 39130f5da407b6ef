# SPDX-License-Identifier: Apache-2.0
"""In lockstep each observation gets one answer, and time is what the world says it is."""

import numpy as np
import pytest
from checkpoints import HORIZON, JOINTS, make_spec
from worlds import CHUNK_NS, START, answer

from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.lockstep import LockstepLoop

DT_NS = 40_000_000


@pytest.fixture
def bench(make_bench):
    return make_bench(LockstepLoop)


def test_it_waits_until_every_stream_and_the_outcome_have_the_stamp(bench):
    loop = bench.loop
    bench.sense(0, START, goal=None)
    assert loop.step() is None
    assert 'goal' in loop.look_around()
    bench.buffer.put('point', 'goal', np.zeros(3), 0)
    assert loop.step() is None
    assert 'outcome' in loop.look_around()
    loop.on_outcome(Outcome(0, -1, reset=True))
    command, _ = loop.step()
    assert command.stamp_ns == 0 and command.decided
    assert loop.step() is None
    assert loop.look_around() == 'the world to advance'


def test_what_is_missing_for_long_is_told_once_and_so_is_its_end(bench, clock):
    bench.loop.look_around()
    assert bench.told == []
    for _ in range(3):
        clock.advance(2.0)
        bench.loop.look_around()
    assert [p for p, text in bench.told if 'nothing received on joint_states' in text] == [True]
    answer(bench, 0, episode=-1, reset=True)
    assert bench.told[-1] == (False, 'the world is there again')


def test_the_first_command_starts_at_the_measured_position(bench):
    command = answer(bench, 0, episode=-1, reset=True)
    np.testing.assert_array_equal(command.plan.previous, START)
    np.testing.assert_allclose(
        command.plan.motion.points[:HORIZON], START + 0.01 * np.arange(1, 7)[:, None], atol=0.01
    )


def test_the_same_observation_again_gets_the_same_answer_and_no_new_decision(bench):
    first = answer(bench, 0, episode=-1, reset=True)
    again = answer(bench, 0, episode=-1, reset=True)
    assert again is first
    assert len(bench.engine.observations) == 1
    assert bench.agent.number == 1


def test_the_command_stream_is_the_last_control_point_not_the_arm(bench):
    first = answer(bench, 0, episode=-1, reset=True)
    lagging = START + 0.5
    answer(bench, CHUNK_NS, lagging)
    seen = bench.engine.observations[1]
    np.testing.assert_allclose(seen[:3], lagging, rtol=1e-6)
    np.testing.assert_allclose(seen[6:9], first.plan.point(HORIZON), rtol=1e-6)


def test_chunks_join_in_position_and_velocity(bench):
    bench.engine.chunk = np.full((HORIZON, 3), 0.03)
    first = answer(bench, 0, episode=-1, reset=True).plan
    second = answer(bench, CHUNK_NS).plan
    np.testing.assert_array_equal(second.previous, first.point(HORIZON))
    step = first.point(HORIZON) - first.point(HORIZON - 1)
    np.testing.assert_allclose(second.velocity(second.start, 0.04) * 0.04, step)
    assert np.all(step > 0.005)


def test_what_the_world_consumed_counts_not_what_was_sent(bench):
    bench.engine.chunk = np.full((HORIZON, 3), 0.03)
    first = answer(bench, 0, episode=-1, reset=True).plan
    second = answer(bench, 2 * DT_NS).plan
    np.testing.assert_array_equal(second.previous, first.point(2))
    (record,) = bench.loop.finished_records()
    np.testing.assert_allclose(record.executed[:2], first.motion.points[:2], rtol=1e-6)
    assert np.isnan(record.executed[2:]).all()


def test_a_world_that_outruns_the_chunk_finds_the_arm_braked_and_is_told(bench):
    bench.engine.chunk = np.full((HORIZON, 3), 0.03)
    first = answer(bench, 0, episode=-1, reset=True).plan
    second = answer(bench, 40 * DT_NS).plan
    np.testing.assert_array_equal(second.previous, first.motion.points[-1])
    np.testing.assert_allclose(second.velocity(second.start, 0.04), 0.0, atol=1e-12)
    assert any('lockstep_steps' in text for text in bench.notices.active)
    answer(bench, 41 * DT_NS)
    assert bench.notices.active == []


def test_another_control_period_is_named(bench):
    answer(bench, 0, episode=-1, reset=True)
    answer(bench, CHUNK_NS + DT_NS // 3)
    assert any('control_period_s' in text for text in bench.notices.active)
    answer(bench, 2 * CHUNK_NS + DT_NS // 3)
    assert bench.notices.active == []


def test_a_record_has_the_reward_of_its_own_interval(bench):
    answer(bench, 0, episode=-1, reset=True, reward=99.0)
    answer(bench, CHUNK_NS, reward=1.5)
    answer(bench, 2 * CHUNK_NS, reward=2.5, success=True, terminated=True, reset=True)
    records = bench.loop.finished_records()
    assert [(r.seq, r.step, r.episode, r.reward) for r in records] == [
        (0, 0, 0, 1.5),
        (1, 1, 0, 2.5),
    ]
    assert records[1].terminated and records[1].success
    assert not any(r.interrupted for r in records)
    assert not np.isnan(records[1].executed).any()
    np.testing.assert_array_equal(records[0].chunk, np.float32(bench.engine.chunk))


def test_a_new_episode_starts_from_where_the_arm_was_put(bench):
    answer(bench, 0, episode=-1, reset=True)
    elsewhere = np.array([-1.0, 0.5, 1.0])
    command = answer(bench, CHUNK_NS, elsewhere, episode=0, terminated=True, reset=True)
    np.testing.assert_array_equal(command.plan.previous, elsewhere)
    np.testing.assert_array_equal(command.plan.velocity(command.plan.start, 0.04), 0.0)
    answer(bench, 2 * CHUNK_NS, episode=1)
    record = bench.loop.finished_records()[-1]
    assert (record.episode, record.step) == (1, 0)


def test_a_reset_that_takes_no_time_is_a_new_observation(bench):
    answer(bench, 0, episode=-1, reset=True)
    answer(bench, CHUNK_NS)
    elsewhere = np.array([-1.0, 0.5, 1.0])
    bench.loop.on_outcome(Outcome(CHUNK_NS, 0, truncated=True, reset=True))
    assert bench.loop.step() is None  # the arm was not yet seen in the new episode
    bench.sense(CHUNK_NS, elsewhere)
    command, _ = bench.loop.step()
    np.testing.assert_array_equal(command.plan.previous, elsewhere)
    assert len(bench.engine.observations) == 3


def test_a_repeated_outcome_is_counted_once(bench):
    answer(bench, 0, episode=-1, reset=True)
    for _ in range(3):
        answer(bench, CHUNK_NS, reward=1.0)
    answer(bench, 2 * CHUNK_NS)
    assert bench.loop.finished_records()[0].reward == 1.0


def test_a_late_server_joins_in_the_middle_of_an_episode(bench):
    command = answer(bench, 5 * CHUNK_NS, episode=3)
    np.testing.assert_array_equal(command.plan.previous, START)
    assert bench.loop.log.current.episode == 3


@pytest.mark.parametrize('chunk', [np.full((HORIZON, 3), np.nan), ValueError('broken')])
def test_a_policy_that_fails_brakes_and_marks_the_record(bench, chunk):
    bench.engine.chunk = np.full((HORIZON, 3), 0.03)
    answer(bench, 0, episode=-1, reset=True)
    bench.engine.chunk = chunk
    plan = answer(bench, CHUNK_NS).plan
    assert np.isfinite(plan.motion.points).all()
    assert plan.chunk_start is None
    bench.engine.chunk = np.full((HORIZON, 3), 0.03)
    assert answer(bench, 2 * CHUNK_NS).plan.chunk_start is not None
    records = bench.loop.finished_records()
    assert [r.interrupted for r in records] == [False, True]
    assert np.isfinite(records[1].chunk).all()
    assert bench.safety.counts[safety.NOT_FINITE] + bench.safety.counts[safety.FAULT] == 1
    assert [p for p, _ in bench.told] == [True, False]


def test_the_estop_answers_with_a_stop_and_asks_no_policy(bench):
    bench.engine.chunk = np.full((HORIZON, 3), 0.03)
    answer(bench, 0, episode=-1, reset=True)
    bench.safety.estop.latch('test')
    plan = answer(bench, CHUNK_NS).plan
    assert plan.motion.horizon == 0
    held = answer(bench, 2 * CHUNK_NS).plan
    np.testing.assert_array_equal(held.point(held.start + 9), held.point(held.start))
    assert len(bench.engine.observations) == 1
    assert bench.safety.counts[safety.ESTOP] == 1
    bench.safety.estop.reset()
    assert answer(bench, 3 * CHUNK_NS).decided
    answer(bench, 4 * CHUNK_NS)
    # The hole is visible: the trainer sees that two intervals are missing.
    assert [r.step for r in bench.loop.finished_records()] == [0, 3]


def test_a_permuted_policy_gets_and_gives_its_own_order(make_bench):
    bench = make_bench(LockstepLoop, spec=make_spec(joints=JOINTS[::-1]))
    chunk = np.zeros((HORIZON, 3))
    chunk[:, 0] = 0.002  # the policy's first joint is the robot's last
    bench.engine.chunk = chunk
    plan = answer(bench, 0, episode=-1, reset=True).plan
    np.testing.assert_allclose(plan.point(HORIZON) - START, [0, 0, 0.002 * HORIZON], atol=1e-9)
    answer(bench, CHUNK_NS)
    (record,) = bench.loop.finished_records()
    np.testing.assert_allclose(record.executed[-1], plan.point(HORIZON)[::-1], rtol=1e-6)
    np.testing.assert_allclose(record.observation[:3], START[::-1], rtol=1e-6)


def test_per_control_period_one_chunk_serves_many_observations(make_bench):
    bench = make_bench(LockstepLoop, interface='position', replan_steps=4)
    decided, setpoints = [], []
    for k in range(9):
        command = answer(bench, k * DT_NS, episode=-1 if k == 0 else 0, reset=k == 0, reward=1.0)
        decided.append(command.decided)
        setpoints.append(command.setpoint)
    assert decided == [True, False, False, False] * 2 + [True]
    np.testing.assert_allclose(setpoints[0], START + 0.005, atol=0.003)
    assert np.all(np.diff(setpoints, axis=0) > 0)
    records = bench.loop.finished_records()
    assert [r.reward for r in records] == [4.0, 4.0]
    assert np.isnan(records[0].executed[4:]).all()


def test_the_same_seed_gives_the_same_run(make_bench):
    runs = []
    for _ in range(2):
        bench = make_bench(LockstepLoop)
        answer(bench, 0, episode=-1, reset=True)
        answer(bench, CHUNK_NS)
        runs.append(np.stack(bench.engine.noises))
    np.testing.assert_array_equal(*runs)


def test_time_that_goes_back_starts_again_from_the_arm(bench):
    answer(bench, 5 * CHUNK_NS, episode=-1, reset=True)
    elsewhere = np.array([-1.0, 0.5, 1.0])
    plan = answer(bench, 0, elsewhere).plan
    np.testing.assert_array_equal(plan.previous, elsewhere)
    assert any('time went back' in text for _, text in bench.told)
