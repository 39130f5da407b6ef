# SPDX-License-Identifier: Apache-2.0
"""The command stream stays within the limits whatever is late, and goes on where it was."""

import numpy as np
import pytest
from checkpoints import HORIZON
from worlds import assert_within_limits

from dipod_ros.errors import UserError
from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.setpoints import SLEW, SetpointStream, check_rate

DT = 0.04
START = np.array([0.1, 0.2, 0.3])


class Player:
    """Plays time: the arm is sensed once per period, the stream is served when it is due."""

    def __init__(self, bench, rate_hz):
        self.bench, self.loop, self.clock = bench, bench.loop, bench.clock
        self.stream = SetpointStream(bench.loop, rate_hz)
        self.sensing = self.deciding = True
        self.offset_s = 0.0  # of the robot's clock
        self.late = lambda: 0.0  # how late the stream's thread is, s
        self.setpoints, self.times = [], []
        self._sensed_s = self.clock.now

    def run(self, seconds):
        end = self.clock.now + seconds
        while True:
            due = max(self.stream.next_s(), self.clock.now)
            if self._sensed_s <= due:
                at = self._sensed_s
                self._sensed_s += DT
            else:
                at = None
            if (due if at is None else at) > end:
                if at is not None:
                    self._sensed_s = at
                self.clock.now = end
                return
            if at is not None:
                self.clock.now = max(self.clock.now, at)
                if self.sensing:
                    self.bench.sense(round((at + self.offset_s) * 1e9), START)
            elif due < self.stream.due_s - 1e-9:
                self.clock.now = due
                self.stream.prepare()
            else:
                self.clock.now = due + self.late()
                self._play()
            if self.deciding:
                with self.loop.wake:
                    ready = self.loop.ready()
                if ready:
                    self.loop.step()

    def _play(self):
        setpoint = self.stream.sample()
        if setpoint is not None:
            self.setpoints.append(setpoint)
            self.times.append(self.clock.now)

    @property
    def path(self):
        return np.array([s.position for s in self.setpoints])


@pytest.fixture
def make_player(make_bench):
    def make(rate_hz=500.0, **config):
        bench = make_bench(RealTimeLoop, interface='position', **config)
        rng = np.random.default_rng(5)
        bench.engine.chunk = lambda o, z: rng.normal(0.0, 0.2, (HORIZON, 3))
        return Player(bench, rate_hz)

    return make


@pytest.mark.parametrize('rate_hz', [25.0, 50.0, 130.0, 333.0, 500.0])
def test_a_wild_policy_stays_within_the_limits_at_every_rate(make_player, rate_hz):
    player = make_player(rate_hz, replan_steps=3)
    player.run(8.0)
    assert len(player.setpoints) > 0.8 * 7 * rate_hz
    assert np.ptp(player.path, axis=0).max() > 0.1  # it moves
    step_s = player.stream.step_s
    assert_within_limits(player.path, step_s, player.bench.limits)
    np.testing.assert_allclose(np.diff(player.times), step_s, rtol=2 * SLEW, atol=1e-9)
    assert player.stream.missed == 0
    # The limits are used, not just kept.
    speed = np.diff(player.path, axis=0) / step_s
    assert np.max(np.abs(np.diff(speed, axis=0)) / step_s / player.bench.limits.acceleration) > 0.9


def test_the_stream_is_the_spline_of_the_plan(make_player):
    player = make_player(500.0)
    player.run(3.0)
    speed = np.array([s.velocity for s in player.setpoints])
    middle = (speed[1:] + speed[:-1]) / 2  # exact for a quadratic, but where two segments meet
    np.testing.assert_allclose(
        np.diff(player.path, axis=0) / player.stream.step_s, middle, atol=0.02
    )
    most = np.abs(np.diff(speed, axis=0)) / player.stream.step_s
    assert np.all(most <= player.bench.limits.acceleration * (1 + 1e-6) + 1e-6)


def test_a_thread_that_comes_late_goes_on_where_it_was(make_player):
    player = make_player(500.0)
    rng = np.random.default_rng(0)
    player.late = lambda: rng.choice(
        [0.0, 0.0005, 0.003, 0.025, 0.09], p=[0.9, 0.06, 0.02, 0.01, 0.01]
    )
    player.run(10.0)
    assert_within_limits(player.path, player.stream.step_s, player.bench.limits)
    gaps = np.diff(player.times)
    assert player.stream.missed > 50 and gaps.max() > 0.08
    assert np.ptp(player.path, axis=0).max() > 0.1


def test_what_was_lost_is_caught_up_slowly(make_player):
    player = make_player(500.0)
    player.bench.engine.chunk = lambda o, z: np.full((HORIZON, 3), 0.004)
    player.run(2.0)

    def behind():
        return player.stream._target_ns() - (
            player.stream._tick * 40_000_000 + player.stream._into_ns
        )

    usual = behind()
    player.late = lambda: 0.01
    player.run(0.0021)
    player.late = lambda: 0.0
    player.run(0.01)
    assert behind() - usual > 6e6
    player.run(4.0)
    first = behind() - usual
    assert first > 1e6
    player.run(12.0)
    assert behind() - usual < 0.2e6
    assert np.diff(player.times[-1000:]).min() >= player.stream.step_s * (1 - SLEW) - 1e-9


@pytest.mark.parametrize('reason', ['estop', 'silence', 'stop', 'episode', 'no decisions'])
def test_it_brakes_within_the_limits_and_stands(make_player, reason):
    player = make_player(500.0, hold_between_episodes=True)
    player.run(2.0137)
    if reason == 'estop':
        player.loop.safety.estop.latch('test')
    elif reason == 'silence':
        player.sensing = False
    elif reason == 'stop':
        player.loop.stop()
    elif reason == 'episode':
        player.loop.on_outcome(Outcome(round(player.clock.now * 1e9), 0, terminated=True))
    else:
        player.deciding = False
    if reason != 'no decisions':
        player.stream.look()
    player.run(1.5)
    assert_within_limits(player.path, player.stream.step_s, player.bench.limits)
    assert player.setpoints[-1].resting and not player.setpoints[-1].velocity.any()
    assert player.loop.course.at_rest or reason == 'no decisions'
    counts = player.bench.safety.counts
    assert counts[safety.ESTOP] == (reason == 'estop')
    assert counts[safety.UNDERRUN] == (reason in ('silence', 'no decisions'))


def test_a_reset_of_the_world_ends_the_stream_at_once(make_player):
    player = make_player(500.0, reset_teleports=True)
    player.run(2.0)
    player.deciding = False
    before = len(player.setpoints)
    player.loop.on_outcome(Outcome(round((player.clock.now + 0.4) * 1e9), 0, reset=True))
    player.run(0.5)
    assert len(player.setpoints) == before and not player.stream.playing
    player.deciding = True
    player.run(2.0)  # it begins anew, at rest, where the arm is
    np.testing.assert_allclose(player.setpoints[before].position, START, atol=1e-9)
    assert not player.setpoints[before].velocity.any()
    assert len(player.setpoints) > before + 200
    assert [i for i, s in enumerate(player.setpoints) if s.first] == [0, before]
    assert_within_limits(player.path[before:], player.stream.step_s, player.bench.limits)


def test_the_robots_clock_is_followed(make_player):
    """Drift of 200 ppm: the stream stays with the robot's ticks, without a step."""
    player = make_player(500.0)
    drift = 2e-4

    class Drifting:
        def __get__(self, instance, owner):
            return drift * (instance.clock.now - 100.0)

        def __set__(self, instance, value):
            pass

    cls = type('DriftingPlayer', (Player,), {'offset_s': Drifting()})
    player = cls(player.bench, 500.0)
    player.run(20.0)
    assert player.stream.missed == 0
    behind_ns = player.stream._target_ns() - (
        player.stream._tick * 40_000_000 + player.stream._into_ns
    )
    assert abs(behind_ns) < 3e6
    assert_within_limits(player.path, player.stream.step_s, player.bench.limits)


@pytest.mark.parametrize(('rate', 'period'), [(20.0, 0.04), (600.0, 0.04), (60.0, 0.01)])
def test_impossible_rates_are_refused(rate, period):
    with pytest.raises(UserError, match='command_rate_hz'):
        check_rate(rate, period)


def test_possible_rates():
    for rate, period in [(0.0, 0.04), (50.0, 0.04), (100.0, 0.01), (500.0, 0.04)]:
        check_rate(rate, period)
