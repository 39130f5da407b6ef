# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of the trainer has to pass before it may act. No ROS, no threads."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.serving.shadow import ShadowFigures

AT_ONCE, SHADOW, APPROVAL = MODES = ('at_once', 'shadow', 'approval')
MAX_REJECTED = 256


@dataclass(frozen=True)
class PromotionConfig:
    """What a candidate may do in the shadow of the acting policy and still take over."""

    decisions: int = 50  # that it is compared in
    rms_rad: float = 0.05  # root mean square distance between the targets of the two
    clamp_share: float = 0.1  # how much larger than the acting one's its share of clamps may be
    latency_s: float = 0.05  # 99th percentile of one inference

    def __post_init__(self) -> None:
        if self.decisions < 1:
            raise UserError(f'promotion_decisions must be at least 1, got {self.decisions}')
        for name in ('rms_rad', 'clamp_share', 'latency_s'):
            value = getattr(self, name)
            if not value >= 0:
                raise UserError(f'promotion_{name} must be 0 or more, got {value}')

    def refusal(self, figures: ShadowFigures) -> str:
        """Return why a candidate with these figures must not take over, '' when it may."""
        if figures.faults:
            return f'it failed in the shadow: {figures.fault}'
        if figures.rms_rad > self.rms_rad:
            return (
                f'its targets are {figures.rms_rad:.3g} rad (rms) away from those of the acting '
                f'policy, allowed {self.rms_rad:g}'
            )
        if figures.clamp_share > figures.active_clamp_share + self.clamp_share:
            return (
                f'{figures.clamp_share:.0%} of its decisions would be clamped, '
                f"{figures.active_clamp_share:.0%} of the acting policy's, "
                f'allowed {self.clamp_share:.0%} more'
            )
        if figures.latency_p99_s > self.latency_s:
            return (
                f'an inference takes {figures.latency_p99_s * 1e3:.3g} ms (p99), '
                f'allowed {self.latency_s * 1e3:g}'
            )
        return ''

    def decided(self, figures: ShadowFigures) -> bool:
        """Tell whether there is enough to go by: the decisions are full, or it failed."""
        return bool(figures.faults) or figures.compared >= self.decisions


@dataclass(frozen=True)
class Candidate:
    """A checkpoint on its way to acting."""

    manifest: Manifest
    mode: str  # shadow | approval


class Rejected:
    """Checkpoints that nobody but a person may bring back, by their sha256; the newest of them."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[str, str] = OrderedDict()

    def add(self, sha256: str, reason: str) -> None:
        """Reject a checkpoint."""
        self._reasons[sha256] = reason
        self._reasons.move_to_end(sha256)
        while len(self._reasons) > MAX_REJECTED:
            self._reasons.popitem(last=False)

    def forgive(self, sha256: str) -> None:
        """Forget that a checkpoint was rejected."""
        self._reasons.pop(sha256, None)

    def reason(self, sha256: str) -> str:
        """Return why a checkpoint was rejected, '' when it was not."""
        return self._reasons.get(sha256, '')

    def newest(self, count: int) -> list[dict[str, str]]:
        """Return the last ones rejected, oldest first."""
        return [{'sha256': k, 'reason': v} for k, v in list(self._reasons.items())[-count:]]
