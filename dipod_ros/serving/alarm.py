# SPDX-License-Identifier: Apache-2.0
"""Tells when a policy that just took over does worse than the one before. No ROS, no threads.

Counts decisions, never seconds, so that the same decisions raise the same alarm.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dipod_ros.errors import UserError
from dipod_ros.serving.loop import Decided


@dataclass(frozen=True)
class AlarmConfig:
    """When a policy is too bad to go on with."""

    window: int = 50  # decisions after a swap that are watched; 0 watches none
    clamp_rad: float = 0.02  # a decision counts as clamped when its command was moved further
    clamp_share: float = 0.3  # how much larger than before the share of clamped ones may be

    def __post_init__(self) -> None:
        if self.window < 0:
            raise UserError(f'alarm_window must be 0 or more, got {self.window}')
        if not self.clamp_rad >= 0:
            raise UserError(f'alarm_clamp_rad must be 0 or more, got {self.clamp_rad}')
        if not 0 <= self.clamp_share <= 1:
            raise UserError(f'alarm_clamp_share must be within 0..1, got {self.clamp_share}')


def was_clamped(decided: Decided, clamp_rad: float) -> bool:
    """Tell whether a chunk was moved by more than `clamp_rad` (rad), cut short or too late.

    What was slowed down for another reason (a start, a late stream) says nothing about the policy.
    """
    chunk, plan = decided.sampled.chunk, decided.plan
    if not decided.sampled.usable:
        return False
    if plan is None:
        return True  # it took longer than the chunk lasts
    if plan.chunk_start is None or plan.chunk_start + len(chunk) > plan.chunk_end:
        return True  # the rest of it would leave the workspace
    return not plan.motion.altered and plan.motion.clamp_rad > clamp_rad


class SwapAlarm:
    """Watches the decisions after a swap; `observe` belongs to one thread."""

    def __init__(self, config: AlarmConfig) -> None:
        """Start with whatever policy decides first; it is watched by nobody."""
        self._config = config
        self._policy: object = None
        self._recent: deque[bool] = deque(maxlen=max(1, config.window))  # of the acting policy
        self._left = 0  # decisions that are still to be watched
        self._clamped = 0
        self.share_before = 0.0  # of clamped decisions, under the policy before

    @property
    def watching(self) -> int:
        """How many decisions are still to be watched."""
        return self._left

    def observe(self, decided: Decided) -> str:
        """Take a decision; return why its policy must go, '' while it may stay.

        An engine's error or a chunk that is not finite is enough. Otherwise the clamped decisions
        are counted: more than (share before + clamp_share) x window of them raise the alarm, as
        soon as that is certain.
        """
        config, sampled = self._config, decided.sampled
        if sampled.policy is not self._policy:
            self._begin(sampled.policy)
        clamped = was_clamped(decided, config.clamp_rad)
        self._recent.append(clamped)
        if not self._left:
            return ''
        self._left -= 1
        self._clamped += clamped
        reason = self._reason(decided)
        if reason:
            self._left = 0
        return reason

    def _begin(self, policy: object) -> None:
        if self._policy is not None and self._config.window:
            self.share_before = sum(self._recent) / max(1, len(self._recent))
            self._left = self._config.window
        self._policy = policy
        self._recent.clear()
        self._clamped = 0

    def _reason(self, decided: Decided) -> str:
        config, sampled = self._config, decided.sampled
        if sampled.fault:
            return f'the engine failed: {sampled.fault}'
        if not sampled.usable:
            return 'the policy gave numbers that are not finite'
        if self._clamped > (self.share_before + config.clamp_share) * config.window:
            return (
                f'{self._clamped} of {config.window - self._left} decisions were moved by more '
                f'than {config.clamp_rad:g} rad by the limits, cut short or too late; '
                f'{self.share_before:.0%} of those before the swap were'
            )
        return ''
