# SPDX-License-Identifier: Apache-2.0
"""One episode as it is recorded: samples in, decisions out. numpy, no ROS, no threads.

The robot's stamps are the clock: control ticks lie a period apart from the first joint state on,
and an observation is what the policy server would have had when the joint state of its tick came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.command_curve import CommandCurve
from dipod_ros.learning.demonstrations.windows import Refused, WindowConfig, Windows, cut, resample
from dipod_ros.serving.forecast import TrackingLag
from dipod_ros.serving.observation import (
    SAME_STAMP_NS,
    ObservationBuffer,
    ObservationLayout,
    Sample,
    StreamProblem,
)
from dipod_ros.serving.stamp_clock import NS_PER_S

# A joint state this much (parts of a period) before a tick still shows the arm at that tick.
FRESH = 0.1
# A command that nobody repeats is held; the next one comes as a ramp of so many periods.
HOLD_PERIODS = 2.0


@dataclass(frozen=True)
class RecordingConfig:
    """What is recorded and when it is no good."""

    windows: WindowConfig = WindowConfig()
    joint_topic: str = 'joint_states'
    joint_max_age_s: float = 0.2
    max_episode_s: float = 120.0
    # Where the measured positions are the commands: how far the arm will follow behind them.
    tracking_lag_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.max_episode_s > 0 and self.joint_max_age_s > 0 and self.tracking_lag_s >= 0):
            raise UserError(
                'max_episode_s and joint_max_age_s must be above 0, tracking_lag_s at least 0'
            )


@dataclass(frozen=True, eq=False)
class Episode:
    """The decisions of one episode, as learning/demonstrations/dataset.py has them."""

    observations: np.ndarray  # float32 [M, O]
    actions: np.ndarray  # float32 [M, H, A]
    windows: Windows
    seconds: float  # from the first decision to the end of what is known
    images: Mapping[str, np.ndarray] = field(default_factory=dict)  # uint8 [M, H, W, C]
    # How far each joint [A] followed behind what was commanded; empty where nobody commanded.
    lag_s: np.ndarray = field(default_factory=lambda: np.zeros(0))


class EpisodeRecording:
    """Takes joint states as they come; `fault` says why what was recorded is no good."""

    def __init__(
        self,
        layout: ObservationLayout,
        buffer: ObservationBuffer,
        config: RecordingConfig,
        curve: CommandCurve | None = None,
        most_pictures: int | None = None,
    ) -> None:
        """Take where the other streams are.

        Args:
            layout: of a spec in the robot's joint order.
            buffer: the newest samples of all streams.
            config: see there.
            curve: what is commanded; None takes what the joints did.
            most_pictures: decisions that there is room for, where the policy looks at pictures.

        """
        self._layout, self._buffer, self._config = layout, buffer, config
        self._curve, self._most = curve, most_pictures
        self._period_ns = round(layout.spec.control_period_s * NS_PER_S)
        self._times: list[int] = []
        self._positions: list[np.ndarray] = []
        self._velocities: list[np.ndarray] = []
        self._vectors: list[np.ndarray] = []  # one per tick, as the streams were then
        self._pictures: dict[int, dict[str, np.ndarray]] = {}  # by tick
        self._from_joints = any(
            s.source == 'joint_velocity' and s.topic == config.joint_topic for s in layout.sensed
        )
        self._last_at_tick: tuple[int, np.ndarray] | None = None
        self.fault = ''
        self.fastest = (0.0, '')  # share of its speed limit that a joint reached, and how

    @property
    def seconds(self) -> float:
        """How long it is so far."""
        return (self._times[-1] - self._times[0]) / NS_PER_S if self._times else 0.0

    @property
    def begun_ns(self) -> int | None:
        """The time of its first joint state, None while there is none."""
        return self._times[0] if self._times else None

    def spoil(self, reason: str) -> None:
        """Take nothing more: it is no good. The first reason counts.

        What was taken is dropped: until somebody comes to stop it, hours may pass.
        """
        self.fault = self.fault or reason
        del self._times[1:-1]  # the length is still told
        for kept in (self._positions, self._velocities, self._vectors, self._pictures):
            kept.clear()

    def take(self, joints: Sample) -> None:
        """Take the newest joint positions; the other streams are looked up in the buffer."""
        if self.fault:
            return
        time_ns = sample_ns(joints)
        if self._times:
            since_ns = time_ns - self._times[-1]
            if since_ns == 0:
                return
            if since_ns < 0:
                self.spoil("the robot's clock was set back")
                return
            if since_ns > self._config.joint_max_age_s * NS_PER_S:
                self.spoil(
                    f'no {self._config.joint_topic} for {since_ns / NS_PER_S:.2f} s '
                    f'({self._config.joint_max_age_s:g} s allowed)'
                )
                return
        problems = usable_problems(self._layout, self._buffer, joints)
        if problems:
            self.spoil('; '.join(p.text for p in problems))
            return
        self._times.append(time_ns)
        self._positions.append(joints.values)
        if self._from_joints:
            velocity = self._buffer.sample('joint_velocity', self._config.joint_topic)
            self._velocities.append(velocity.values)
        # A joint state that was lost leaves two ticks to do here, both with what is seen now.
        slack_ns = round(FRESH * self._period_ns)
        while not self.fault and self._tick_ns(len(self._vectors)) <= time_ns + slack_ns:
            self._tick(len(self._vectors), joints)
        if self.seconds > self._config.max_episode_s:
            self.spoil(f'longer than max_episode_s {self._config.max_episode_s:g}')

    def finish(self, until_ns: int | None = None) -> Episode:
        """Return the episode, of what was so before `until_ns`; raises Refused."""
        if self.fault:
            raise Refused(self.fault)
        spec = self._layout.spec
        dt = spec.control_period_s
        count = len(self._times)
        if until_ns is not None:
            count = int(np.searchsorted(self._times, until_ns - SAME_STAMP_NS))
        if count < 2:
            raise Refused('too short: there are no joint states in it')
        times = np.array([t - self._times[0] for t in self._times[:count]]) / NS_PER_S
        positions = np.array(self._positions[:count])
        # The command of a tick lies ahead of it: half a period by its spline, and a drive's lag.
        ahead_s, carrier = dt / 2, (times, positions)
        if self._curve is None:
            ahead_s += self._config.tracking_lag_s
        else:
            carrier = self._curve.arrays(self._times[0])
        ticks = np.arange(len(self._vectors)) * dt
        known = ticks + ahead_s <= times[-1] + 1e-9
        if self._curve is not None:
            if not len(self._curve):
                raise Refused('nothing was commanded')
            known &= ticks + ahead_s >= carrier[0][0]
        rows = np.flatnonzero(known)
        if len(rows) < 2:
            raise Refused('too short: no command is known in it')
        ticks = ticks[rows]
        hold_s = math.inf if self._curve is None else HOLD_PERIODS * dt
        points = resample(*carrier, ticks + ahead_s, hold_s)
        cut_out = cut(points, spec.horizon, spec.limits, dt, self._config.windows, int(rows[0]))
        chosen = rows[cut_out.ticks]
        observations = np.array(self._vectors)[chosen]
        self._fill(observations, cut_out, ticks[cut_out.ticks], times, positions, count)
        images = {
            stream.name: np.stack([self._pictures[int(k)][stream.name] for k in chosen])
            for stream, _ in spec.images
        }
        seconds = float(ticks[cut_out.ticks[-1]] - ticks[cut_out.ticks[0]]) + spec.horizon * dt
        lag_s = np.zeros(0)
        if self._curve is not None:
            lag_s = _lag_s(resample(times, positions, ticks), resample(*carrier, ticks, hold_s), dt)
        actions = cut_out.actions.astype(np.float32)
        return Episode(observations, actions, cut_out, seconds, images, lag_s)

    def _tick_ns(self, tick: int) -> int:
        return self._times[0] + tick * self._period_ns

    def _tick(self, tick: int, joints: Sample) -> None:
        """Note what there is to see at a tick; what the joints say of it is filled in later."""
        spec = self._layout.spec
        vector = self._layout.assemble(self._buffer, np.zeros(len(spec.joints)))
        for _, place in spec.images:
            vector[place] = 0.0
        if spec.images and tick % self._config.windows.stride == 0:
            if self._most is not None and len(self._pictures) >= self._most:
                self.spoil(
                    f'no room for more pictures than {self._most} of this recording: record into '
                    'another output, with a larger stride, or smaller pictures'
                )
                return
            from dipod_ros.serving.picture import fit

            seen = self._layout.pictures(self._buffer)
            self._pictures[tick] = {
                stream.name: fit(picture, stream.image)
                for (stream, _), picture in zip(spec.images, seen, strict=True)
            }
        self._vectors.append(vector)
        self._watch_speed(sample_ns(joints), joints.values)

    def _watch_speed(self, time_ns: int, position: np.ndarray) -> None:
        if self._last_at_tick is not None and time_ns > self._last_at_tick[0]:
            before_ns, before = self._last_at_tick
            speed = np.abs(position - before) / ((time_ns - before_ns) / NS_PER_S)
            limits = self._layout.spec.limits
            j = int((speed / limits.velocity).argmax())
            share = float(speed[j] / limits.velocity[j])
            if share > self.fastest[0]:
                text = f'{limits.joints[j]} moves at {speed[j]:.2f} rad/s'
                self.fastest = share, f'{text} (limit {limits.velocity[j]:g})'
        self._last_at_tick = time_ns, position

    def _fill(
        self,
        observations: np.ndarray,
        cut_out: Windows,
        ticks: np.ndarray,
        times: np.ndarray,
        positions: np.ndarray,
        count: int,
    ) -> None:
        """Put in the joints as they were at the ticks [M], and the command."""
        at = 0
        for stream in self._layout.spec.streams:
            place = slice(at, at + stream.size)
            at += stream.size
            if stream.source == 'command':
                observations[:, place] = cut_out.command
            elif stream.topic != self._config.joint_topic:
                continue
            elif stream.source == 'joint_position':
                observations[:, place] = resample(times, positions, ticks)
            elif stream.source == 'joint_velocity':
                velocities = np.array(self._velocities[:count])
                observations[:, place] = resample(times, velocities, ticks)


def _lag_s(measured: np.ndarray, commanded: np.ndarray, dt: float) -> np.ndarray:
    """Return how far in time [A] the arm follows, from positions [T, A] (rad) at the ticks."""
    lag = TrackingLag(measured.shape[1], dt)
    for error, velocity in zip(
        measured - commanded, np.gradient(commanded, dt, axis=0), strict=True
    ):
        lag.observe(error, velocity)
    return lag.seconds


def sample_ns(sample: Sample) -> int:
    """Return when a sample was so: its stamp, or its receipt where its sender has no clock."""
    return sample.stamp_ns or round(sample.received_s * NS_PER_S)


def usable_problems(
    layout: ObservationLayout, buffer: ObservationBuffer, joints: Sample
) -> list[StreamProblem]:
    """Return what is wrong with the streams when these joint states came.

    A sample is fresh by its receipt, as it is to the policy server, or by the stamps: a recorder
    that was held up reads old messages late, and the robot is not to blame for that.
    """
    streams = {s.name or s.topic: s for s in layout.sensed}

    def fresh(problem: StreamProblem) -> bool:
        stream = streams[problem.stream]
        sample = buffer.sample(stream.source, stream.topic)
        if problem.kind != 'stale' or not (joints.stamp_ns and sample.stamp_ns):
            return False
        return abs(joints.stamp_ns - sample.stamp_ns) <= stream.max_age_s * NS_PER_S

    return [p for p in layout.problems(buffer) if not fresh(p)]
