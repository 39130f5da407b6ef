# SPDX-License-Identifier: Apache-2.0
"""An episode from samples: the grid, what was seen when, what spoils it."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import JOINTS, PERIOD_S, make_limits, make_spec

from dipod_ros.learning.demonstrations.command_curve import CommandCurve, TrajectoryPlayer
from dipod_ros.learning.demonstrations.recording import EpisodeRecording, RecordingConfig
from dipod_ros.learning.demonstrations.windows import Refused, WindowConfig
from dipod_ros.policy.image import ImageSettings
from dipod_ros.policy.spec import Stream
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout

START_NS = 7_000_000_000
EVERYTHING = RecordingConfig(WindowConfig(idle_rad_s=0.0))


def motion(t):
    """Return where the joints are at times [T], as [T, 3]."""
    return np.stack([np.sin(t), 0.5 * np.sin(1.2 * t), -0.8 * np.sin(0.9 * t)], axis=-1)


def speed(t):
    return np.stack([np.cos(t), 0.6 * np.cos(1.2 * t), -0.72 * np.cos(0.9 * t)], axis=-1)


class Arm:
    """A robot whose messages the test sends; `clock` is when they are received."""

    def __init__(self, config=EVERYTHING, spec=None, curve=None, most_pictures=None):
        self.now = 100.0
        self.spec = spec or make_spec()
        self.buffer = ObservationBuffer(lambda: self.now)
        layout = ObservationLayout(self.spec, JOINTS)
        self.recording = EpisodeRecording(layout, self.buffer, config, curve, most_pictures)

    def say(self, t, goal=True, stamped=True):
        """Send what is so at `t` seconds: the goal, whose x is the time, then the joints."""
        self.now = 100.0 + t
        stamp = START_NS + round(t * 1e9) if stamped else 0
        if goal:
            self.buffer.put('point', 'goal', np.array([t, 0.0, 0.0]), stamp)
        self.buffer.put('joint_velocity', 'joint_states', speed(t), stamp)
        self.buffer.put('joint_position', 'joint_states', motion(t), stamp)
        self.recording.take(self.buffer.sample('joint_position', 'joint_states'))

    def run(self, seconds, rate_hz=25.0, **more):
        for k in range(round(seconds * rate_hz) + 1):
            self.say(k / rate_hz, **more)
        return self


def columns(episode):
    """Return position, velocity, command and goal of the observations."""
    return np.split(episode.observations, [3, 6, 9], axis=1)


@pytest.mark.parametrize('rate_hz', [25.0, 40.0, 100.0, 500.0])
@pytest.mark.parametrize('stamped', [True, False])
def test_observations_are_of_the_ticks_whatever_the_rate_of_joint_states(rate_hz, stamped):
    episode = Arm().run(3.0, rate_hz, stamped=stamped).recording.finish()
    position, velocity, command, goal = columns(episode)
    t = episode.windows.ticks * PERIOD_S
    assert len(t) > 60
    np.testing.assert_array_equal(np.diff(episode.windows.ticks), 1)
    np.testing.assert_allclose(position, motion(t), atol=5e-4)
    np.testing.assert_allclose(velocity, speed(t), atol=5e-4)
    np.testing.assert_allclose(command, motion(t + PERIOD_S / 2), atol=1e-3)
    # The goal is what was known when the first joint state of the tick came.
    late = goal[:, 0] - t
    assert late.min() > -0.1 * PERIOD_S - 1e-6 and late.max() < 1 / rate_hz + 1e-6
    reached = command[:, None] + np.cumsum(episode.actions, axis=1)
    k = np.arange(1, 1 + episode.actions.shape[1])
    np.testing.assert_allclose(reached, motion(t[:, None] + (k + 0.5) * PERIOD_S), atol=2e-3)


def test_a_drive_that_lags_is_commanded_ahead():
    config = replace(EVERYTHING, tracking_lag_s=0.06)
    episode = Arm(config).run(3.0, 100.0).recording.finish()
    t = episode.windows.ticks * PERIOD_S
    np.testing.assert_allclose(columns(episode)[2], motion(t + PERIOD_S / 2 + 0.06), atol=1e-3)
    np.testing.assert_allclose(columns(episode)[0], motion(t), atol=1e-3)


def test_commands_of_somebody_else_are_the_commands():
    curve = CommandCurve()
    curve.put(START_NS - 10**9, motion(-1.0))
    for k in range(301):
        curve.put(START_NS + k * 10_000_000, motion(k / 100 + 0.1))
    episode = Arm(curve=curve).run(3.0).recording.finish()
    t = episode.windows.ticks * PERIOD_S
    np.testing.assert_allclose(columns(episode)[2], motion(t + PERIOD_S / 2 + 0.1), atol=1e-3)
    np.testing.assert_allclose(episode.lag_s, 0.1, atol=0.01)
    np.testing.assert_allclose(columns(episode)[0], motion(t), atol=1e-6)


def test_ticks_before_the_first_command_are_left_out():
    curve = CommandCurve()
    with pytest.raises(Refused, match='nothing was commanded'):
        Arm(curve=curve).run(2.0).recording.finish()
    for k in range(100, 301):
        curve.put(START_NS + k * 10_000_000, motion(k / 100))
    config = replace(EVERYTHING, windows=WindowConfig(stride=4, idle_rad_s=0.0))
    episode = Arm(config, curve=curve).run(3.0).recording.finish()
    ticks = columns(episode)[3][:, 0] / PERIOD_S
    assert ticks[0] == pytest.approx(28)  # the first multiple of the stride after 1 s
    np.testing.assert_allclose(np.diff(ticks), 4, atol=1e-4)


def test_trajectories_are_played_like_their_controller_does():
    curve = CommandCurve()
    player = TrajectoryPlayer(curve, make_limits(), PERIOD_S)
    times = np.arange(1, 9) * PERIOD_S
    for k in range(0, 75, 4):  # each replaces the second half of the one before
        now = k * PERIOD_S
        at = now + times
        player.follow(
            START_NS / 1e9 + at, motion(at), speed(at), START_NS + round(now * 1e9), motion(now)
        )
    player.advance(START_NS + 3_000_000_000)
    at, values = curve.arrays(START_NS)
    assert at[-1] == pytest.approx(3.0)
    begun = at > PERIOD_S  # from rest, unlike the motion
    np.testing.assert_allclose(values[begun], motion(at[begun]), atol=1e-4)


def test_a_player_that_nobody_called_for_an_hour_fills_no_memory():
    curve = CommandCurve()
    player = TrajectoryPlayer(curve, make_limits(), PERIOD_S)
    times = START_NS / 1e9 + np.arange(1, 9) * PERIOD_S
    player.follow(times, motion(times), None, START_NS, motion(times[0]))
    player.advance(START_NS + 3600 * 10**9)
    at, values = curve.arrays(START_NS)
    assert len(at) <= 1001 and at[-1] == pytest.approx(3600.0)
    np.testing.assert_allclose(values[-1], motion(times[-1:])[0])
    curve.keep_last(20.0)
    assert 6 <= len(curve) <= 8 and curve.arrays(START_NS)[0][0] <= 3580.0


def test_an_outcome_ends_it_before_the_world_begins_anew():
    arm = Arm().run(2.0)
    for t in (2.04, 2.08):
        arm.say(t)
    whole = arm.recording.finish()
    part = arm.recording.finish(until_ns=START_NS + 1_000_000_000)
    assert part.windows.ticks[-1] == 24 - 1 - 6  # 24 whole periods, one of them for the last point
    assert whole.windows.ticks[-1] > part.windows.ticks[-1]
    np.testing.assert_array_equal(part.observations, whole.observations[: len(part.observations)])


def test_a_lost_joint_state_is_bridged_and_a_long_gap_is_not():
    arm = Arm()
    for k in range(50):
        if k != 20:
            arm.say(k * PERIOD_S)
    episode = arm.recording.finish()
    t = episode.windows.ticks * PERIOD_S
    np.testing.assert_allclose(columns(episode)[0], motion(t), atol=1e-3)
    arm.say(50 * PERIOD_S + 0.3)
    with pytest.raises(Refused, match=r'no joint_states for 0\.34 s \(0\.2 s allowed\)'):
        arm.recording.finish()


def test_a_stream_that_falls_silent_spoils_it():
    arm = Arm().run(1.0)
    for k in range(1, 12):
        arm.say(1.0 + k * PERIOD_S, goal=False)
    assert arm.recording.fault == 'stream goal: nothing new on goal for 0.2 s'
    arm.run(1.0)  # it is back: too late
    with pytest.raises(Refused, match='stream goal: nothing new'):
        arm.recording.finish()


def test_messages_that_are_read_late_are_not_the_robots_fault():
    arm = Arm().run(1.0)
    arm.now += 0.7  # held up: the joint states of then are read before the goal of then
    stamp = START_NS + 1_040_000_000
    arm.buffer.put('joint_position', 'joint_states', motion(1.04), stamp)
    arm.recording.take(arm.buffer.sample('joint_position', 'joint_states'))
    assert arm.recording.fault == ''


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda arm: arm.say(0.5), "the robot's clock was set back"),
        (lambda arm: arm.buffer.clear() or arm.say(2.04, goal=False), 'goal: nothing received'),
        (
            lambda arm: (
                arm.buffer.put('point', 'goal', np.zeros(2), START_NS) and arm.say(2.04, False)
            ),
            '2 numbers on goal, the policy needs 3',
        ),
        (lambda arm: [arm.say(2.0 + k / 25) for k in range(1, 30)], 'longer than max_episode_s 3'),
        (lambda arm: arm.recording.spoil('somebody said so'), 'somebody said so'),
    ],
)
def test_what_cannot_be_learned_from_is_refused(spoil, reason):
    arm = Arm(replace(EVERYTHING, max_episode_s=3.0)).run(2.0)
    spoil(arm)
    with pytest.raises(Refused, match=reason):
        arm.recording.finish()


def test_nothing_at_all_is_refused():
    with pytest.raises(Refused, match='there are no joint states in it'):
        Arm().recording.finish()
    arm = Arm()
    arm.say(0.0)
    arm.say(0.01)
    with pytest.raises(Refused, match='no command is known'):
        arm.recording.finish()


def test_joints_that_are_too_fast_are_noticed_while_they_move():
    arm = Arm().run(1.0)
    share, text = arm.recording.fastest
    assert 0.6 < share < 0.7 and text.startswith('base moves at 1.00 rad/s')
    stamp = START_NS + 1_040_000_000
    arm.buffer.put('joint_position', 'joint_states', motion(1.0) + [0.0, 0.2, 0.0], stamp)
    arm.recording.take(arm.buffer.sample('joint_position', 'joint_states'))
    share, text = arm.recording.fastest
    assert share > 4 and text == 'shoulder moves at 5.00 rad/s (limit 1.2)'


def test_pictures_are_kept_at_the_decisions():
    pytest.importorskip('cv2')
    from dipod_ros.serving.picture import read_raw

    eye = Stream('eye', 'image', 4, 'front/image_raw', image=ImageSettings(16, 16))
    spec = make_spec()
    spec = replace(spec, streams=(eye, *spec.streams))
    config = replace(EVERYTHING, windows=WindowConfig(stride=3, idle_rad_s=0.0))

    def film(arm):
        for k in range(51):
            arm.now = 100.0 + k * PERIOD_S
            picture = read_raw(32, 48, 'rgb8', 144, bytes([k]) * (32 * 144))
            arm.buffer.put('image', 'front/image_raw', picture, START_NS + k * 40_000_000)
            arm.say(k * PERIOD_S)
        return arm.recording

    episode = film(Arm(config, spec)).finish()
    shown = episode.images['eye']
    assert shown.shape == (len(episode.actions), 16, 16, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[:, 0, 0, 0], episode.windows.ticks)
    assert set(episode.windows.ticks % 3) == {0}
    np.testing.assert_array_equal(episode.observations[:, :4], 0.0)
    full = film(Arm(config, spec, most_pictures=10))
    assert full.fault.startswith('no room for more pictures than 10')


def test_what_is_no_good_is_not_kept():
    short = RecordingConfig(WindowConfig(idle_rad_s=0.0), max_episode_s=1.0)
    arm = Arm(short).run(3.0)
    recording = arm.recording
    assert 'max_episode_s' in recording.fault and recording.seconds > 1.0
    kept = [recording._times, recording._positions, recording._vectors, recording._velocities]
    assert sum(map(len, kept)) <= 2
    with pytest.raises(Refused, match='max_episode_s'):
        recording.finish()
