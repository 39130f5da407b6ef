# SPDX-License-Identifier: Apache-2.0
"""Between episodes a server that was told to waits for `reset`; the episode is whole."""

import numpy as np
import pytest
from worlds import DT, START, Arm, World, assert_smooth, settled

from dipod_ros.learning.replay import ReplayAssembler
from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.episode_hold import MOVED_RAD, EpisodeHold
from dipod_ros.serving.episode_numbers import EpisodeNumbers
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.speed import SpeedConfig, SpeedScale
from dipod_ros.serving.swap import HotSwap
from dipod_ros.sim.controllers import ArmController


class Judged(Arm):
    """An arm of which somebody says what it earns, once per period and by the stamps it has."""

    ago_s = 0.0  # how much later somebody says it
    judged = True

    def __init__(self, bench):
        super().__init__(bench)
        self.records = []
        self.target = np.array([0.8, -0.6, 1.0])
        bench.engine.chunk = self.chunk

    def chunk(self, observation, noise):
        steps = np.clip(0.1 * (self.target - observation[6:9]), -0.03, 0.03)
        return np.tile(steps, (self.bench.spec.horizon, 1)) + 1e-3 * noise.reshape(-1, 3)

    def sense(self):
        super().sense()
        if self.sensing and self.judged:
            self.say()

    def say(self, **more):
        stamp_ns = round((self.clock.now - self.ago_s) * 1e9)
        self.loop.on_outcome(Outcome(stamp_ns, self.episode, **more))

    def run(self, periods, **more):
        super().run(periods, **more)
        self.records += self.loop.finished_records()

    def learned(self):
        """Return what becomes of the records so far, and the counts."""
        assemble = ReplayAssembler(self.bench.spec)
        for record in self.records:
            assemble.add(record)
        return assemble.take(1, 100, lambda sha: 0), assemble.counts

    @property
    def moves(self):
        return not np.array_equal(self.setpoints[-1], self.setpoints[-2])


@pytest.fixture
def make_arm(make_bench):
    def make(hold_between_episodes=True, **more):
        bench = make_bench(
            RealTimeLoop,
            interface='position',
            hold_between_episodes=hold_between_episodes,
            **more,
        )
        arm = Judged(bench)
        arm.reset()  # of the first episode
        arm.episode = 0
        return settled(arm)

    return make


@pytest.fixture
def arm(make_arm):
    return make_arm()


def end(arm, **more):
    arm.say(**({'reward': 1.0, 'success': True, 'terminated': True} | more))


@pytest.mark.parametrize('periods', [13, 14, 16, 19, 20])
def test_the_whole_episode_is_learned_from_and_the_arm_stands_until_a_reset(arm, periods):
    arm.run(periods)
    assert arm.moves
    end(arm)
    assert arm.loop.waiting_for == 'reset'
    arm.run(1)
    count, decided = len(arm.records), arm.bench.agent.number
    assert count == decided and arm.records[-1].terminated  # all of it is out, at once
    arm.run(2000)
    assert not arm.moves and len(arm.records) == count and arm.bench.agent.number == decided
    assert arm.bench.told == [] and arm.loop.log.current is None
    assert not any(arm.bench.safety.counts[c] for c in (safety.STALE, safety.UNDERRUN))
    rollout, counts = arm.learned()
    assert counts['episodes'] == 1 and counts['interrupted'] == counts['incomplete'] == 0
    assert rollout.returns.tolist() == [1.0] and len(rollout.rewards) == count
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


def test_a_reset_begins_the_next_episode_where_the_arm_stands_and_slowly(arm):
    arm.bench.safety.speed = SpeedScale(SpeedConfig(ramp_in_s=0.5), DT)
    arm.run(30)
    for episode in range(4):
        end(arm)
        arm.run(25)
        stood, ramped = arm.setpoints[-1], arm.counts(safety.RAMP)
        arm.target = -arm.target
        arm.reset()
        arm.run(2)
        np.testing.assert_allclose(arm.setpoints[-1], stood, atol=0.02)
        arm.run(30)
        assert arm.counts(safety.RAMP) > ramped
        assert arm.loop.log.current.episode == episode + 1
        assert np.abs(arm.setpoints[-1] - stood).max() > 0.1
    _, counts = arm.learned()
    assert counts['episodes'] == 4 and counts['incomplete'] == counts['lost'] == 0
    assert arm.counts(safety.RESYNC) == arm.counts(safety.STALE) == 0
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


@pytest.mark.parametrize('ago', [0.5, 2.5, 4.5, 8.5])
def test_a_judge_that_takes_its_time_ends_the_episode_where_its_stamp_says(arm, ago):
    arm.ago_s = ago * DT
    for episode in range(3):
        arm.run(25 + episode)
        began = arm.bench.agent.number
        over_s = arm.clock.now - arm.ago_s
        end(arm)
        arm.judged = False  # the last word on this episode
        arm.run(1)
        last = arm.records[-1]
        assert last.terminated and last.reward == 1.0 and last.stamp_s < over_s
        # What was decided on what was seen since belongs to no episode.
        assert last.seq + 1 == arm.bench.agent.number >= began - 2
        arm.run(20)
        assert arm.records[-1] is last
        arm.target, arm.judged = -arm.target, True
        arm.reset()
    rollout, counts = arm.learned()
    assert counts['episodes'] == 3 and counts['incomplete'] == counts['interrupted'] == 0
    assert counts['lost'] == counts['duplicates'] == 0
    assert rollout.returns.tolist() == [1.0, 1.0, 1.0]
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


def test_a_decision_that_is_under_way_at_the_end_is_void(arm):
    arm.run(15)

    def during():
        arm.bench.engine.during = lambda: None
        end(arm)

    arm.bench.engine.during = during
    arm.run(30)
    assert arm.loop.waiting_for and not arm.moves
    _, counts = arm.learned()
    assert counts['episodes'] == 1 and counts['incomplete'] == counts['interrupted'] == 0
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


def test_an_episode_that_was_cut_off_is_waited_after_too(arm):
    arm.run(30)
    end(arm, terminated=False, truncated=True, success=False, reward=0.0)
    arm.run(20)
    assert arm.loop.waiting_for and not arm.moves and arm.records[-1].truncated
    _, counts = arm.learned()
    assert counts['episodes'] == 1


def test_one_outcome_that_ends_an_episode_and_begins_the_next_is_not_waited_after(arm):
    arm.run(20)
    arm.reset(terminated=True)
    assert not arm.loop.waiting_for
    arm.run(30)
    assert arm.loop.log.current.episode == 1


def test_ends_that_are_told_again_change_nothing(arm):
    arm.run(20)
    for _ in range(3):
        end(arm, reward=0.0)
        arm.run(2)
    arm.reset()
    stamp_ns = round(arm.clock.now * 1e9)
    for late_ns in (0, 10_000_000):  # of before the reset, or its own
        arm.loop.on_outcome(Outcome(stamp_ns - late_ns, 0, terminated=True))
    assert not arm.loop.waiting_for
    arm.run(30)
    assert arm.loop.log.current.episode == 1
    _, counts = arm.learned()
    assert counts['episodes'] == 1 and counts['lost'] == 0


def test_an_end_before_the_first_decision_is_waited_after(arm):
    arm.run(20)
    end(arm)
    arm.run(20)
    arm.reset()
    arm.clock.now += 0.001
    end(arm, success=False, reward=0.0)
    arm.run(30)
    assert arm.loop.waiting_for and not arm.moves
    arm.reset()
    arm.run(30)
    assert arm.moves and arm.loop.log.current.episode == 2


def test_a_reset_while_the_arm_still_brakes_is_waited_for_by_the_arm_alone(arm):
    arm.run(15)
    end(arm)
    arm.run(1)
    arm.reset()
    arm.run(40)
    steps = np.abs(np.diff(arm.setpoints, axis=0)).max(axis=1)
    assert np.any(steps[12:] == 0.0) and arm.loop.log.current.episode == 1
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


def test_streams_of_the_scene_may_pause_meanwhile_but_not_the_arms(arm):
    arm.run(20)
    end(arm)
    goal, arm.bench.sense = arm.bench.sense, lambda *a: type(arm.bench).sense(arm.bench, *a, None)
    arm.run(200)
    assert arm.bench.notices.active == [] and arm.counts(safety.STALE) == 0
    arm.reset()
    arm.run(10)
    assert any('goal' in text for text in arm.bench.notices.active)  # now it is needed
    assert not arm.moves
    arm.bench.sense = goal
    arm.run(20)
    assert arm.moves and arm.bench.notices.active == []
    end(arm)
    arm.sensing = False
    arm.run(20)
    assert any('joint_states' in text for text in arm.bench.notices.active)


def test_an_estop_while_it_waits_lets_the_arm_go_and_it_begins_where_it_was_moved_to(arm):
    arm.run(20)
    end(arm)
    arm.run(3)
    arm.bench.safety.estop.latch('test')
    arm.run(30)
    assert_smooth([START, *arm.setpoints], arm.bench.limits)
    assert not arm.moves
    count = len(arm.setpoints)
    moved = arm.setpoints[-1] + 0.05
    arm.run(10)
    assert len(arm.setpoints) == count  # somebody else may command
    arm.setpoints = [moved] * 2
    arm.bench.safety.estop.reset()
    arm.run(30)
    assert len(arm.setpoints) == 2 and arm.loop.waiting_for == 'reset'
    arm.reset()
    arm.run(30)
    np.testing.assert_allclose(arm.setpoints[2], moved, atol=0.02)
    assert_smooth([moved, *arm.setpoints], arm.bench.limits)
    _, counts = arm.learned()
    assert counts['episodes'] == 1 and counts['interrupted'] == 0


def test_a_reset_under_the_estop_begins_the_episode_when_it_is_released(arm):
    arm.run(20)
    arm.bench.safety.estop.latch('test')
    end(arm)
    arm.run(20)
    arm.reset()
    arm.run(20)
    assert not arm.loop.waiting_for and arm.loop.log.current is None
    arm.bench.safety.estop.reset()
    arm.run(20)
    assert arm.loop.log.current.episode == 1


@pytest.mark.parametrize('share', [0.5, 2.0])
def test_an_arm_that_somebody_moved_a_little_begins_where_it_is(make_bench, share):
    """In `trajectory` nothing is sent while it waits: another program may drive the same arm."""
    world = World(make_bench(RealTimeLoop, hold_between_episodes=True))
    loop, chunk, off = world.loop, world.bench.engine.chunk, np.zeros(3)

    def sagging():
        if loop.timeline.plan is not None:
            world.position = loop.timeline.plan.knot(loop.tick) - 0.05 + off
        World.sense(world)

    world.sense = sagging
    settled(world).run(8)
    loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, terminated=True))
    world.run(30)
    stood = loop.timeline.command(loop.tick)
    off = np.full(3, share * MOVED_RAD)
    world.run(5)
    moved = world.position
    loop.on_outcome(Outcome(round(world.clock.now * 1e9), 0, reset=True))
    world.bench.engine.chunk = 0 * chunk
    world.run(3)
    begun = loop.timeline.command(loop.tick)
    np.testing.assert_allclose(begun, moved if share > 1 else stood, atol=1e-9)


def test_a_swap_while_it_waits_takes_over_at_once_and_commands_nothing(arm):
    bench = arm.bench
    first, swap = bench.agent.policy, HotSwap(None, bench.clock)
    bench.agent._swap = swap
    arm.run(20)
    end(arm)
    arm.run(20)
    second = bench.policy(bench.engine, 'b' * 64)
    swap.offer(second, second.manifest, 'parameter')
    arm.run(2)
    assert bench.agent.policy is second and bench.agent.previous is first
    assert not arm.moves and arm.loop.waiting_for
    arm.reset()
    arm.run(20)
    assert arm.loop.log.current.policy_sha == 'b' * 64
    assert {r.policy_sha for r in arm.records if r.episode == 0} == {'a' * 64}
    swap.close()


def test_a_server_that_waits_can_be_stopped(arm):
    arm.run(20)
    end(arm)
    arm.run(1)
    arm.loop.stop()
    arm.run(20)
    assert arm.loop.stopped and not arm.moves
    assert_smooth([START, *arm.setpoints], arm.bench.limits)


def test_activated_anew_it_waits_for_nothing_and_begins_an_episode_of_its_own(arm):
    arm.run(20)
    end(arm)
    arm.run(20)
    old = arm.loop
    arm.loop = RealTimeLoop(
        arm.bench.agent, old.buffer, old.safety, old.log, old.notices, old.config, old.clock
    )
    arm.run(20)
    assert not arm.loop.waiting_for and arm.loop.log.current.episode == 1
    end(arm)  # by the number of the reward node, which was not told
    arm.run(20)
    arm.reset()
    arm.run(20)
    assert arm.loop.log.current.episode == 2
    end(arm)
    arm.run(2)
    episodes = [r.episode for r in arm.records]
    assert episodes == sorted(episodes)
    _, counts = arm.learned()
    assert counts['episodes'] == 3 and counts['incomplete'] == 0


def test_without_the_parameter_nothing_waits(make_arm):
    arm = make_arm(hold_between_episodes=False)
    arm.run(20)
    end(arm)
    assert not arm.loop.waiting_for
    before = arm.bench.agent.number
    arm.run(20)
    assert arm.bench.agent.number > before


def test_trajectories_that_brake_are_what_a_controller_executes_within_limits(make_bench):
    """Judged by the simulated controller, which is independent of the server."""
    bench = make_bench(RealTimeLoop, replan_steps=3, hold_between_episodes=True)
    world = settled(World(bench))
    controller, found, grid = ArmController(bench.limits, DT), [], world.loop.grid
    controller.reset(START)
    played_s, sent = None, []

    def watched(act):
        def call():
            nonlocal played_s
            before = len(world.plans)
            act()
            now_s = grid.now_ns() * 1e-9
            if played_s is not None:
                controller.setpoints(played_s, now_s - played_s, 1)
            played_s = now_s
            if len(world.plans) > before:
                positions, velocities, tick = world.plans[-1].knots_with_trail(DT)
                times_s = (grid.tick_ns(tick) * 1e-9) + DT * np.arange(len(positions))
                found.extend(controller.follow(times_s, positions, velocities, now_s))
                sent.append(now_s)
            world.position = controller.position

        return call

    world.decide, world.control = watched(world.decide), watched(world.control)
    for episode, periods in enumerate((8, 9, 11)):
        world.run(periods)
        world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), episode, terminated=True))
        world.run(20)
        count, place = len(sent), controller.position.copy()
        world.run(100)
        assert len(sent) == count
        np.testing.assert_array_equal(controller.position, place)
        world.loop.on_outcome(Outcome(round(world.clock.now * 1e9), episode, reset=True))
    world.run(10)
    assert found == []
    assert controller.position.max() > 0.6  # it went somewhere


class TestEpisodeHold:
    def test_a_clock_that_was_set_back_forgets_the_reset(self):
        hold = EpisodeHold(True, 'joint_states')
        hold.take(Outcome(5_000_000_000, 0, reset=True))
        over = Outcome(1_000_000_000, 1, terminated=True)
        assert not hold.take(over)
        hold.clock_was_set()
        assert hold.take(over) and hold.waiting

    def test_a_world_without_stamps_is_waited_for_as_well(self):
        hold = EpisodeHold(True, 'joint_states')
        for episode in range(3):
            assert not hold.take(Outcome(0, episode, reset=True))
            assert hold.take(Outcome(0, episode + 1, terminated=True))


class TestEpisodeNumbers:
    def test_they_are_those_of_the_world(self):
        numbers = EpisodeNumbers()
        numbers.begin()
        told = []
        for outcome in (Outcome(0, -1, reset=True), Outcome(1, 0), Outcome(2, 0, reset=True)):
            numbers.take(outcome)
            numbers.acted()
            told.append(numbers.now)
        assert told == [0, 0, 1]

    @pytest.mark.parametrize('world', [0, 3, 4, 9])
    @pytest.mark.parametrize('reset', [False, True])
    def test_after_another_activation_they_only_rise(self, world, reset):
        numbers = EpisodeNumbers()
        numbers.take(Outcome(0, 4))
        numbers.acted()
        numbers.begin()
        assert numbers.now == 5
        numbers.acted()
        numbers.take(Outcome(1, world, reset=reset))
        assert numbers.now == max(5, world) + reset
        numbers.take(Outcome(2, world + reset, reset=True))
        assert numbers.now == max(5, world) + reset + 1

    def test_a_server_that_did_nothing_begins_no_other_episode(self):
        numbers = EpisodeNumbers()
        numbers.take(Outcome(0, -1, reset=True))
        numbers.begin()
        numbers.take(Outcome(0, -1, reset=True))
        assert numbers.now == 0


def test_in_lockstep_records_after_another_activation_are_of_another_episode(make_bench):
    bench = make_bench(LockstepLoop)
    loops = [bench.loop]

    def answer(k, **more):
        loops[-1].on_outcome(Outcome(k * 240_000_000, **more))
        bench.sense(k * 240_000_000, START)
        assert loops[-1].step() is not None

    answer(0, episode=-1, reset=True)
    answer(1, episode=0)
    records = loops[-1].finished_records(flush=True)
    old = bench.loop
    loops.append(
        LockstepLoop(
            bench.agent, old.buffer, old.safety, old.log, old.notices, old.config, old.clock
        )
    )
    answer(2, episode=0)
    answer(3, episode=0, terminated=True, reset=True)
    answer(4, episode=1)
    records += loops[-1].finished_records(flush=True)
    assert [r.episode for r in records] == [0, 0, 1, 2, 2]
