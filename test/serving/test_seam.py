# SPDX-License-Identifier: Apache-2.0
"""What a chunk takes over from the one before it: averages, masks, certain steps."""

import numpy as np
import pytest
from checkpoints import HORIZON, make_limits, make_spec
from worlds import World, settled

from dipod_ros.serving.observation import ObservationLayout
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.seam import Ensemble, Guidance, guidance, soft_mask
from dipod_ros.serving.timeline import ChunkTimeline

START = np.array([0.1, -0.1, 0.5])


def test_the_first_chunk_is_taken_as_it_is():
    targets = np.arange(12.0).reshape(4, 3)
    out, blended = Ensemble(0.5).add(0, targets, 0)
    np.testing.assert_array_equal(out, targets)
    assert not blended


def test_targets_of_the_same_tick_are_averaged_with_exponential_weights():
    ensemble = Ensemble(0.5)
    ensemble.add(0, np.full((4, 1), 1.0), 0)  # ticks 1..4
    ensemble.add(2, np.full((4, 1), 2.0), 2)  # ticks 3..6
    out, blended = ensemble.add(3, np.full((4, 1), 4.0), 3)  # ticks 4..7
    w = np.exp(-0.5 * np.arange(3))
    assert blended
    assert out[0, 0] == pytest.approx((w @ [1.0, 2.0, 4.0]) / w.sum())
    two = (w[:2] @ [2.0, 4.0]) / w[:2].sum()
    np.testing.assert_allclose(out[:, 0], [out[0, 0], two, two, 4.0])


def test_targets_that_have_passed_are_left_alone_and_old_chunks_are_forgotten():
    ensemble = Ensemble(0.0)
    ensemble.add(0, np.full((4, 1), 1.0), 0)
    out, blended = ensemble.add(1, np.full((4, 1), 3.0), 3)  # ticks 2..5, it is 3
    np.testing.assert_allclose(out[:, 0], [3.0, 3.0, 2.0, 3.0])
    assert blended
    out, blended = ensemble.add(9, np.full((4, 1), 5.0), 9)
    assert not blended and np.all(out == 5.0)


def test_a_larger_decay_listens_to_the_older_chunk():
    outs = []
    for decay in (0.0, 1.0, 10.0):
        ensemble = Ensemble(decay)
        ensemble.add(0, np.zeros((4, 1)), 0)
        outs.append(ensemble.add(2, np.ones((4, 1)), 2)[0][0, 0])
    assert outs[0] == 0.5 > outs[1] > outs[2] > 0


def test_a_timeline_with_an_ensemble_executes_the_average_and_says_so():
    line = ChunkTimeline(SafetyFilter(make_limits(), 0.04), Ensemble(0.0))
    line.reset(START, 0)
    slow = np.full((6, 3), 0.002)
    first = line.schedule(slow, line.command(0), 0, 0)
    second = line.schedule(slow * 1.2, line.command(2), 2, 2)
    assert not first.blended and second.blended
    own = line.plan.trail[-1] + np.cumsum(slow * 1.2, axis=0)
    np.testing.assert_allclose(second.point(3), (first.point(3) + own[0]) / 2, atol=1e-12)
    np.testing.assert_allclose(second.point(8), own[5], atol=1e-3)  # nobody else speaks of it


def test_a_brake_ends_what_older_chunks_have_to_say():
    line = ChunkTimeline(SafetyFilter(make_limits(), 0.04), Ensemble(0.0))
    line.reset(START, 0)
    slow = np.full((6, 3), 0.002)
    line.schedule(slow, line.command(0), 0, 0)
    line.brake(2)
    assert not line.schedule(slow, line.command(3), 3, 3).blended
    line.reset(START, 5)
    assert not line.schedule(slow, line.command(5), 5, 5).blended


def test_numbers_that_are_not_finite_do_not_enter_the_ensemble():
    line = ChunkTimeline(SafetyFilter(make_limits(), 0.04), Ensemble(0.0))
    line.reset(START, 0)
    slow = np.full((6, 3), 0.002)
    line.schedule(slow, line.command(0), 0, 0)
    assert line.schedule(slow * np.nan, line.command(2), 2, 2).chunk_start is None
    plan = line.schedule(slow, line.command(4), 4, 4)
    assert np.isfinite(plan.motion.points).all() and not plan.blended


def test_the_soft_mask_is_that_of_the_paper():
    horizon, certain, known = 10, 3, 7
    expected = np.zeros(horizon)
    expected[:certain] = 1.0
    for i in range(certain, known):
        c = (known - i) / (known - certain + 1)
        expected[i] = c * (np.e**c - 1) / (np.e - 1)
    np.testing.assert_allclose(soft_mask(horizon, certain, known), expected, atol=1e-6)
    assert np.all(np.diff(soft_mask(horizon, certain, known)) <= 0)


@pytest.mark.parametrize(
    ('certain', 'known', 'expected'),
    [(0, 0, [0, 0, 0]), (3, 3, [1, 1, 1]), (2, 2, [1, 1, 0]), (2, 1, [1, 1, 0])],
)
def test_the_ends_of_the_mask(certain, known, expected):
    np.testing.assert_array_equal(soft_mask(3, certain, known), expected)


def test_guidance_is_in_increments_and_in_the_order_of_the_policy():
    spec = make_spec()
    layout = ObservationLayout(spec, tuple(reversed(spec.joints)))
    points = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    out = guidance(layout, points, HORIZON, certain=1)
    np.testing.assert_array_equal(out.prefix[:3], [[3, 2, 1], [3, 2, 1], [0, 0, 0]])
    assert out.weights[0] == 1.0 and 0 < out.weights[1] < 1 and not out.weights[2:].any()
    assert guidance(layout, points[:1], HORIZON, certain=0) is None


def test_certain_steps_are_settled_and_the_others_left():
    known = Guidance(np.full((3, 2), 7.0), np.array([1.0, 0.5, 0.0]))
    chunk = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(known.settle(chunk), [[7, 7], [2, 3], [4, 5]])


def test_a_policy_that_is_gone_has_no_say_in_the_next_one(make_bench):
    bench = make_bench(RealTimeLoop, seam='ensemble', replan_steps=2, interface='position')
    world = settled(World(bench))
    world.run(12)
    assert any(p.blended for p in world.plans)
    good = bench.agent.policy
    bench.engine.chunk = np.full((HORIZON, 3), -0.01)
    bench.agent.policy = bench.policy(bench.engine, sha='b' * 64)  # rolled back
    sent = len(world.plans)
    world.run(8)
    plans = list({id(p): p for p in world.plans[sent:] if p.chunk_start is not None}.values())
    later = [p for p in plans if p is not world.plans[sent - 1]]
    assert [p.blended for p in later[:2]] == [False, True]  # from the second on with its own
    assert good is not bench.agent.policy
