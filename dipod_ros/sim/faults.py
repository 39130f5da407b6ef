# SPDX-License-Identifier: Apache-2.0
"""Owns what goes wrong on purpose: which faults there are, and those of a joint sensor. No ROS."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from dipod_ros.sim.inactive import check_spans

T = TypeVar('T')


@dataclass(frozen=True)
class FaultConfig:
    """Faults of joint_states and of the arm controller; all off by default."""

    drop_every: int = 0  # leave out every n-th sample; 0 is none
    delay: int = 0  # samples arrive this many later, with the stamp of when they were taken
    inactive_s: tuple[float, ...] = ()  # the controller is inactive [from, to, from, to, ...]

    def __post_init__(self) -> None:
        check_spans(self.inactive_s)


class SampleFaults(Generic[T]):
    """Passes samples on, late or not at all."""

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._count = 0
        self._late: deque[T] = deque()

    def pass_on(self, sample: T) -> T | None:
        """Return the sample that arrives now, None when there is none."""
        self._count += 1
        every = self._config.drop_every
        dropped = every > 0 and self._count % every == 0
        if self._config.delay == 0:
            return None if dropped else sample
        if not dropped:
            self._late.append(sample)
        return self._late.popleft() if len(self._late) > self._config.delay else None
