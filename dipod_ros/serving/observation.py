# SPDX-License-Identifier: Apache-2.0
"""The newest sample per stream, its age, and the observation vector made of them. numpy only.

Nothing is ever filled in: a stream without a usable sample is a problem with a name, and there is
no observation until it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import PolicySpec, Stream

if TYPE_CHECKING:
    from dipod_ros.serving.picture import Picture

# Two stamps closer than this are the same instant (float seconds of today resolve ~0.25 us).
SAME_STAMP_NS = 1000
# No joint gets this far (rad) outside its limits, two turns: such a position is no measurement.
ABSURD_RAD = 4 * np.pi


@dataclass(frozen=True, eq=False)
class Sample:
    """One accepted sample; joint arrays are in the robot's joint order."""

    values: np.ndarray | Picture  # float64; a picture for the source `image`
    stamp_ns: int  # the sender's clock; 0 when it gave none
    received_s: float  # steady clock


@dataclass(frozen=True)
class StreamProblem:
    """Why a stream cannot be used now."""

    stream: str
    topic: str
    kind: str  # 'missing' | 'stale' | 'size'
    text: str


class Snapshot:
    """The samples of one moment; reads like the buffer that it came from."""

    def __init__(self, samples: dict[tuple[str, str], Sample]) -> None:
        self._samples = samples

    def sample(self, source: str, topic: str) -> Sample | None:
        """Return the sample that was the newest accepted one."""
        return self._samples.get((source, topic))


class ObservationBuffer:
    """Samples by (source, topic); filled by callbacks, read by the decision thread.

    One reference is replaced per sample, so a reader sees the old sample or the new one, whole.
    """

    def __init__(self, clock: Callable[[], float], limits: JointLimits | None = None) -> None:
        """Take a steady clock in seconds, and the limits by which joint positions are absurd."""
        self.clock, self._limits = clock, limits
        self._samples: dict[tuple[str, str], Sample] = {}
        self._rejections: dict[tuple[str, str], str] = {}
        self.rejected = 0
        # Judges (source, topic, stamp, receipt): why a sample is refused, '' when it is not.
        self.judge: Callable[[str, str, int, float], str] = _refuses_nothing

    def trust(self) -> None:
        """Refuse no stamp: whoever knew the robot's clock does not follow it any more."""
        self.judge = _refuses_nothing

    def put(
        self,
        source: str,
        topic: str,
        values: np.ndarray | Picture,
        stamp_ns: int,
        received_s: float | None = None,
    ) -> bool:
        """Keep a sample; return False when it is refused: not finite, or stamped at another time.

        `received_s` is when its message came, by `clock`; None for one that came just now.
        A stamp that repeats does not renew the age: a driver that died behind a relay keeps
        sending its last message. (Stamp 0 means that the sender has no clock.)
        """
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            self.reject(source, topic, 'its last sample held numbers that are not finite')
            return False
        key = (source, topic)
        received = self.clock() if received_s is None else received_s
        reason = self._absurd(source, values) or self.judge(source, topic, stamp_ns, received)
        if reason:
            self.reject(source, topic, reason)
            return False
        before = self._samples.get(key)
        if before is not None and stamp_ns and stamp_ns == before.stamp_ns:
            received = before.received_s
        self._samples[key] = Sample(values, stamp_ns, received)
        self._rejections.pop(key, None)
        return True

    def _absurd(self, source: str, values: np.ndarray | Picture) -> str:
        limits = self._limits
        if source != 'joint_position' or limits is None or len(values) != len(limits.joints):
            return ''
        beyond = np.maximum(values - limits.upper, limits.lower - values)
        if np.all(beyond <= ABSURD_RAD):
            return ''
        joint = limits.joints[int(np.argmax(beyond))]
        return f'its last sample held a position of joint {joint} that no joint has'

    def reject(self, source: str, topic: str, reason: str) -> None:
        """Note that a sample could not be used, and why; the last good one grows old."""
        self._rejections[source, topic] = reason
        self.rejected += 1

    def note(self, source: str, topic: str, reason: str) -> None:
        """Note why nothing is heard of a stream, where nothing better is known."""
        self._rejections.setdefault((source, topic), reason)

    def rejection(self, source: str, topic: str) -> str:
        """Return ' (why)' when the newest sample could not be used, else ''."""
        reason = self._rejections.get((source, topic))
        return f' ({reason})' if reason else ''

    def sample(self, source: str, topic: str) -> Sample | None:
        """Return the newest accepted sample."""
        return self._samples.get((source, topic))

    def snapshot(self) -> Snapshot:
        """Return the present samples, which later ones leave alone."""
        return Snapshot(self._samples.copy())

    def age_s(self, source: str, topic: str) -> float | None:
        """Return the age of the newest accepted sample on the steady clock."""
        sample = self.sample(source, topic)
        return None if sample is None else self.clock() - sample.received_s

    def problem(
        self, source: str, topic: str, max_age_s: float, name: str = ''
    ) -> StreamProblem | None:
        """Say what is wrong with a stream, or return None."""
        age = self.age_s(source, topic)
        if age is not None and age <= max_age_s:
            return None
        name = name or topic
        because = self.rejection(source, topic)
        if age is None:
            text = f'stream {name}: nothing received on {topic}{because}'
            return StreamProblem(name, topic, 'missing', text)
        # The age itself stays out of the text, so that a lasting problem is one problem.
        text = f'stream {name}: nothing new on {topic} for {max_age_s:g} s{because}'
        return StreamProblem(name, topic, 'stale', text)

    def clear(self) -> None:
        """Forget everything."""
        self._samples.clear()
        self._rejections.clear()


class ObservationLayout:
    """How one policy's observation vector is made from a buffer, whatever the joint order."""

    def __init__(self, spec: PolicySpec, robot_joints: Sequence[str]) -> None:
        """Take a spec whose joints are those of the robot, in any order."""
        self.spec = spec
        # values_of_policy = values_of_robot[order]
        self.order = np.array([robot_joints.index(j) for j in spec.joints], dtype=np.intp)
        self._identity = bool(np.all(self.order == np.arange(len(self.order))))
        self.sensed: tuple[Stream, ...] = tuple(s for s in spec.streams if s.source != 'command')
        self.images = spec.images
        # A multiarray carries no stamp: in lockstep its newest sample counts.
        self.stamped = tuple(s for s in self.sensed if s.source != 'vector')

    def to_policy(self, values: np.ndarray) -> np.ndarray:
        """Reorder the last axis [..., A] from the robot's joint order to the policy's."""
        return values if self._identity else values[..., self.order]

    def to_robot(self, values: np.ndarray) -> np.ndarray:
        """Reorder the last axis [..., A] from the policy's joint order to the robot's."""
        if self._identity:
            return values
        out = np.empty_like(values)
        out[..., self.order] = values
        return out

    def problems(self, buffer: ObservationBuffer) -> list[StreamProblem]:
        """Return what keeps an observation from being made now, stream by stream."""
        found = (buffer.problem(s.source, s.topic, s.max_age_s, s.name) for s in self.sensed)
        return [p for p in found if p is not None] + self._wrong_sizes(buffer)

    def complete_at(self, buffer: ObservationBuffer | Snapshot, stamp_ns: int) -> bool:
        """Tell whether every stream has a sample, and the stamped ones that of `stamp_ns`."""
        for stream in self.sensed:
            sample = buffer.sample(stream.source, stream.topic)
            if sample is None or not _fits(stream, sample):
                return False
            if stream.source != 'vector' and abs(sample.stamp_ns - stamp_ns) > SAME_STAMP_NS:
                return False
        return True

    def complete(self, seen: Snapshot) -> bool:
        """Tell whether every stream has a sample of its size, whatever its age."""
        samples = ((s, seen.sample(s.source, s.topic)) for s in self.sensed)
        return all(sample is not None and _fits(s, sample) for s, sample in samples)

    def same_vector(self, other: ObservationLayout) -> bool:
        """Tell whether another policy sees the very same observation vector."""
        mine, theirs = (
            [(s.source, s.topic, s.size) for s in layout.spec.streams] for layout in (self, other)
        )
        return mine == theirs and np.array_equal(self.order, other.order)

    def assemble(self, buffer: ObservationBuffer | Snapshot, command: np.ndarray) -> np.ndarray:
        """Return the observation float32 [O]; `command` [A] is in the robot's joint order.

        The places of image streams are NaN: whoever runs the policy looks at the `pictures`.
        Raises KeyError when a stream was never received: ask `problems` or `complete_at` first.
        """
        vector = np.empty(self.spec.observation_size, dtype=np.float32)
        at = 0
        for stream in self.spec.streams:
            if stream.source == 'command':
                values = self.to_policy(command)
            elif stream.source == 'image':
                values = np.nan
            else:
                sample = buffer.sample(stream.source, stream.topic)
                if sample is None:
                    raise KeyError(stream.name)
                values = sample.values
                if stream.source in ('joint_position', 'joint_velocity'):
                    values = self.to_policy(values)
            vector[at : at + stream.size] = values
            at += stream.size
        return vector

    def pictures(self, buffer: ObservationBuffer | Snapshot) -> tuple[Picture, ...]:
        """Return the newest picture of every image stream, in the order of the policy.

        Raises KeyError when one was never received, as `assemble`.
        """
        found = []
        for stream, _ in self.images:
            sample = buffer.sample(stream.source, stream.topic)
            if sample is None:
                raise KeyError(stream.name)
            found.append(sample.values)
        return tuple(found)

    def _wrong_sizes(self, buffer: ObservationBuffer) -> list[StreamProblem]:
        wrong = []
        for stream in self.sensed:
            sample = buffer.sample(stream.source, stream.topic)
            if sample is not None and not _fits(stream, sample):
                text = (
                    f'stream {stream.name}: {len(sample.values)} numbers on {stream.topic}, '
                    f'the policy needs {stream.size}'
                )
                wrong.append(StreamProblem(stream.name, stream.topic, 'size', text))
        return wrong


def _refuses_nothing(source: str, topic: str, stamp_ns: int, received_s: float) -> str:
    return ''


def _fits(stream: Stream, sample: Sample) -> bool:
    """Tell whether a sample has the size that a stream needs; pictures are resized."""
    return stream.source == 'image' or len(sample.values) == stream.size
