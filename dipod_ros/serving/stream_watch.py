# SPDX-License-Identifier: Apache-2.0
"""Whether the streams that a policy acts on are alive, in real time. An injected clock, no ROS."""

from __future__ import annotations

from collections.abc import Callable, Set

from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import (
    SAME_STAMP_NS,
    ObservationBuffer,
    ObservationLayout,
    StreamProblem,
)

# Publishers need a moment to be found: a stream that is missing is no news before that.
GRACE_S = 2.0


class StreamWatch:
    """Finds streams that are missing, late or silent, and tells of the silent ones.

    The joint states are always watched: they say where the arm is, whatever the policy looks at.
    """

    def __init__(
        self,
        buffer: ObservationBuffer,
        notices: Notices,
        joint_topic: str,
        joint_max_age_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Begin to watch; `clock` is steady, in seconds."""
        self._buffer = buffer
        self._notices = notices
        self._joint_topic = joint_topic
        self._joint_max_age_s = joint_max_age_s
        self._clock = clock
        self._begun_s = clock()
        self._silent: Set[str] = set()  # streams that a notice is about
        self._layout: ObservationLayout | None = None  # whose streams were looked at last
        self._found: list[StreamProblem] = []  # among them, whether anybody heeds them or not
        self._reset: tuple[int, float] | None = None  # stamp and receipt of the last, until seen

    def world_was_reset(self, stamp_ns: int) -> None:
        """Wait for joint states of after a reset of the world: the arm is somewhere else."""
        self._reset = stamp_ns, self._clock()

    def problems(self, layout: ObservationLayout) -> list[StreamProblem]:
        """Return what keeps the streams of a policy, and the joint states, from being used now."""
        found = layout.problems(self._buffer)
        topic = self._joint_topic
        joint = self._buffer.problem('joint_position', topic, self._joint_max_age_s)
        if joint is None and self._reset is not None:
            if self._seen_since(*self._reset):
                self._reset = None
            else:
                text = f'stream {topic}: nothing since the reset of the world'
                joint = StreamProblem(topic, topic, 'stale', text)
        covered = joint is None or any(p.topic == topic for p in found)
        found = found if covered else [*found, joint]
        self._layout, self._found = layout, found
        return found

    def tell(self, problems: list[StreamProblem]) -> None:
        """Tell, once each, which streams fell silent and which are there again, or not needed."""
        early = self._clock() - self._begun_s < GRACE_S
        silent = {
            f'stream {p.stream}': p.text for p in problems if not (early and p.kind == 'missing')
        }
        for key in self._silent - silent.keys():
            there = key in self._there()
            self._notices.clear(key, f'{key} is there again' if there else f'{key}: not needed now')
        for key, text in silent.items():
            self._notices.set(key, text)
        self._silent = silent.keys()

    def late(self, layout: ObservationLayout, share: float) -> str:
        """Return the name of a stream older than `share` of its maximum age, '' without one."""
        if share >= 1:
            return ''
        topic = self._joint_topic
        joints = ('joint_position', topic, self._joint_max_age_s, topic)
        others = ((s.source, s.topic, s.max_age_s, s.name) for s in layout.sensed)
        for source, topic, max_age_s, name in (joints, *others):
            age = self._buffer.age_s(source, topic)
            if age is not None and age > share * max_age_s:
                return name
        return ''

    def _there(self) -> Set[str]:
        """Return the keys of the streams that were looked at last and are no problem."""
        names = {self._joint_topic, *(s.name for s in self._layout.sensed)}
        return {f'stream {n}' for n in names - {p.stream for p in self._found}}

    def _seen_since(self, stamp_ns: int, received_s: float) -> bool:
        sample = self._buffer.sample('joint_position', self._joint_topic)
        if sample.stamp_ns:
            return sample.stamp_ns >= stamp_ns - SAME_STAMP_NS
        return sample.received_s > received_s
