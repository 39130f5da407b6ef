# SPDX-License-Identifier: Apache-2.0
"""A command begins where the arm stands, which more than one joint state has to say."""

import numpy as np
import pytest
from worlds import DT, START, World, assert_smooth, settled

from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.stillness import AGREE_RAD, SAMPLES, SPAN_S, Stillness

INTERFACES = pytest.mark.parametrize('interface', ['trajectory', 'position'])
COUNT_RAD = 0.0051  # of a Dynamixel AX-12
MOVING = 'the arm is moving'


def samples(positions, step_s, stamped=True):
    return [
        Sample(np.full(3, float(p)), round(k * step_s * 1e9) + 1 if stamped else 0, k * step_s)
        for k, p in enumerate(positions)
    ]


def stands(found, **bound):
    still = Stillness(Notices(), **bound)
    out = []
    for sample in found:
        still.look(sample)
        out.append(still.stands)
    return out


@pytest.mark.parametrize('stamped', [True, False])
@pytest.mark.parametrize('step_s', [0.002, 0.04, 0.1, 0.3])
def test_it_stands_when_enough_joint_states_agree_for_long_enough(step_s, stamped):
    answers = stands(samples(np.zeros(100), step_s, stamped))
    first = answers.index(True)
    assert all(answers[first:])
    assert first == max(SAMPLES - 1, int(np.ceil(SPAN_S / step_s)))


def test_one_odd_joint_state_is_waited_for_until_it_is_old():
    answers = stands(samples([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], 0.04))
    assert answers == [*3 * [False], True, True, *4 * [False], True, True]


def test_noise_and_slow_creep_are_no_motion_but_a_passing_arm_is_one():
    rng = np.random.default_rng(0)
    assert stands(samples(rng.normal(0.0, AGREE_RAD / 8, 50), 0.04))[-1]
    assert not any(stands(samples(0.05 * np.arange(50) * 0.04 + 1e-4 * np.arange(50), 0.04)))


def test_a_servo_that_flickers_between_two_counts_stands_where_the_bound_says_so():
    flickering = samples(COUNT_RAD * (np.arange(50) % 2), 0.04)
    assert not any(stands(flickering))
    assert stands(flickering, agree_rad=0.011)[-1]
    assert stands(flickering, agree_rad=(0.011, 0.011, 0.006))[-1]
    assert not any(stands(flickering, agree_rad=(0.011, 0.011, 0.0005)))


@INTERFACES
def test_an_arm_of_flickering_servos_acts(make_bench, interface):
    world = World(make_bench(RealTimeLoop, interface=interface, still_rad=(0.011,) * 3))
    for k in range(60):
        world.position = START + COUNT_RAD * (k % 2)
        world.run(1)
    assert world.plans and world.bench.notices.active == []


def test_a_clock_that_is_set_back_and_a_repeated_message_prove_nothing():
    late, early = samples(np.zeros(3), 0.06), samples(np.zeros(1), 1.0)
    assert stands([*late, *early]) == [False, False, True, False]
    assert not any(stands([late[0]] * 50))


@INTERFACES
@pytest.mark.parametrize('odd', [1, 2])
def test_a_driver_that_comes_back_with_odd_joint_states_makes_no_command_jump(
    make_bench, interface, odd
):
    world = settled(World(make_bench(RealTimeLoop, interface=interface)))
    world.run(5)
    world.sensing = False
    world.run(30)
    world.sensing, there = True, world.setpoints[-1] if world.setpoints else START
    world.position = np.zeros(3)
    world.run(odd)
    world.position = there
    world.run(15)
    assert world.counts('resync') == 0 or interface == 'trajectory'
    points = [p for plan in world.plans for p in (plan.trail[-1], *plan.motion.points)]
    assert np.abs(points).max(axis=1).min() > 0.1  # none of them is at zero
    if interface == 'position':
        assert_smooth(world.setpoints, world.bench.limits)


@INTERFACES
def test_nothing_begins_while_something_else_moves_the_arm(make_bench, interface):
    world = World(make_bench(RealTimeLoop, interface=interface))
    for _ in range(60):
        world.position = world.position + 0.003
        world.run(1)
    assert world.setpoints == [] and world.plans == []
    (text,) = world.bench.notices.active
    assert text.startswith(MOVING)
    world.run(6)
    assert world.bench.notices.active == []
    np.testing.assert_array_equal(world.plans[0].trail[-1], world.position)


@INTERFACES
def test_an_ordinary_start_waits_for_nothing_and_says_nothing(make_bench, interface):
    """The robot's clock takes longer to learn than whether its arm stands."""
    world = World(make_bench(RealTimeLoop, interface=interface))
    while not world.loop.grid.begun:
        world.period()
    world.run(2)
    assert world.plans and world.bench.told == []


def test_a_world_that_puts_the_arm_elsewhere_is_believed(make_bench):
    """Its episodes are short: a wait at the beginning of each would be missed at the end."""
    from dipod_ros.serving.decisions import Outcome

    world = settled(World(make_bench(RealTimeLoop, interface='position', reset_teleports=True)))
    world.run(10)
    world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reset=True))
    world.position, before = np.array([-1.0, 0.5, 0.0]), len(world.bench.engine.observations)
    world.run(1)
    assert len(world.bench.engine.observations) == before + 1
    world.run(2)
    assert np.abs(world.setpoints[-1] - world.position).max() < 2 * DT
