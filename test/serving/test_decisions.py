# SPDX-License-Identifier: Apache-2.0
"""Rewards find their decision; what was not judged or not executed is marked."""

import numpy as np
import pytest

from dipod_ros.policy.decision import Decision
from dipod_ros.serving.decisions import DecisionLog, Outcome

PERIOD_NS = 240_000_000


@pytest.fixture
def log(clock):
    return DecisionLog(clock, patience_s=1.0)


def decision(seq):
    chunk = np.zeros((2, 1), dtype=np.float32)
    return Decision(
        actor='a', seq=seq, episode=0, step=seq, policy_sha='0', stamp_s=0.0,
        observation=np.zeros(1, np.float32), noise=np.zeros(2, np.float32), chunk=chunk,
        executed=chunk * np.nan, reward=0.0, success=False, terminated=False, truncated=False,
        clamp_rad=0.0, interrupted=False, latency_s=0.0,
    )  # fmt: skip


DONE = np.ones((2, 1))


def test_lockstep_order_outcome_then_successor(log):
    log.begin(decision(0), 0)
    log.judge(Outcome(PERIOD_NS, 0, reward=2.0, success=True))
    assert log.finished() == []
    log.end(PERIOD_NS, DONE)
    (record,) = log.finished()
    assert (record.seq, record.reward, record.success) == (0, 2.0, True)
    assert not record.interrupted
    np.testing.assert_array_equal(record.executed, DONE)


def test_the_outcome_of_the_observation_itself_is_about_the_time_before(log):
    log.begin(decision(0), PERIOD_NS)
    log.judge(Outcome(PERIOD_NS, 0, reward=5.0))
    log.end(2 * PERIOD_NS, DONE)
    log.judge(Outcome(2 * PERIOD_NS, 0, reward=1.0))
    assert [r.reward for r in log.finished()] == [1.0]


def test_rewards_of_every_control_period_add_up(log):
    log.begin(decision(0), 0)
    for k in range(1, 7):
        log.judge(Outcome(k * PERIOD_NS // 6, 0, reward=0.5, success=k == 3))
    log.end(PERIOD_NS, DONE)
    (record,) = log.finished()
    assert record.reward == 3.0
    assert record.success


def test_in_real_time_the_outcome_may_come_after_the_successor(log):
    log.begin(decision(0), 0)
    log.end(PERIOD_NS, DONE)
    log.begin(decision(1), PERIOD_NS)
    assert log.finished() == []
    log.judge(Outcome(PERIOD_NS, 0, reward=1.0))
    log.judge(Outcome(PERIOD_NS + 1_000_000, 0, reward=7.0))
    (record,) = log.finished()
    assert (record.seq, record.reward) == (0, 1.0)
    log.end(2 * PERIOD_NS, DONE)
    log.judge(Outcome(2 * PERIOD_NS, 0, reward=0.0, terminated=True))
    (record,) = log.finished()
    assert (record.seq, record.reward, record.terminated) == (1, 7.0, True)


def test_without_an_outcome_the_record_comes_marked_after_a_while(log, clock):
    log.begin(decision(0), 0)
    log.end(PERIOD_NS, DONE)
    clock.advance(0.9)
    assert log.finished() == []
    clock.advance(0.2)
    (record,) = log.finished()
    assert record.interrupted
    assert log.unjudged == 1


def test_an_interruption_stays_with_its_record(log):
    log.begin(decision(0), 0)
    log.end(PERIOD_NS, DONE, interrupted=True)
    log.judge(Outcome(PERIOD_NS, 0))
    (record,) = log.finished()
    assert record.interrupted


def test_flush_gives_out_what_ended_without_a_verdict(log):
    log.begin(decision(0), 0)
    log.end(PERIOD_NS, DONE)
    (record,) = log.finished(flush=True)
    assert record.interrupted


def test_stamps_of_a_clock_that_was_set_back_judge_nothing(log):
    log.begin(decision(0), 100 * PERIOD_NS)
    log.end(101 * PERIOD_NS, DONE, interrupted=True)
    log.judge(Outcome(101 * PERIOD_NS, 0))
    assert len(log.finished()) == 1
    log.clock_was_set()
    log.begin(decision(1), PERIOD_NS)
    log.end(2 * PERIOD_NS, DONE)
    assert not log.spoil(50 * PERIOD_NS)  # of what is out, nothing is of this time
    assert log.finished() == []
    log.judge(Outcome(2 * PERIOD_NS, 0, reward=1.0, terminated=True))
    (record,) = log.finished()
    assert (record.reward, record.terminated, record.interrupted) == (1.0, True, False)


def test_records_come_in_order(log, clock):
    log.begin(decision(0), 0)
    log.end(PERIOD_NS, DONE)
    log.begin(decision(1), PERIOD_NS)
    log.end(2 * PERIOD_NS, DONE)
    log.judge(Outcome(2 * PERIOD_NS, 0, reward=1.0))
    assert [r.seq for r in log.finished()] == [0, 1]


def test_a_reset_names_the_next_episode():
    assert Outcome(0, 4).episode_now == 4
    assert Outcome(0, 4, reset=True).episode_now == 5
