# SPDX-License-Identifier: Apache-2.0
"""How much of the velocity limit may be used at each tick: ramp-in and slow mode. numpy only.

Counted in ticks, so the same run has the same scales however long anything takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError

# Where a ramp begins: slow enough to be stopped by hand, fast enough to be seen.
RAMP_START = 0.1


@dataclass(frozen=True)
class SpeedConfig:
    """When an arm goes slower than it could; the defaults never slow it down."""

    # After activation, an e-stop reset and a resync the limit rises to its full value in this time.
    ramp_in_s: float = 0.0
    # A stream older than this share of its maximum age makes the arm slow (real time); 1 is never.
    slow_age_share: float = 1.0
    # What is left of the velocity limit then.
    slow_speed_scale: float = 0.3

    def __post_init__(self) -> None:
        if not self.ramp_in_s >= 0:
            raise UserError(f'ramp_in_s must not be negative, got {self.ramp_in_s}')
        for name in ('slow_age_share', 'slow_speed_scale'):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f'{name} must be above 0 and at most 1, got {getattr(self, name)}')


class SpeedScale:
    """The share of the velocity limit that each control period may use."""

    def __init__(self, config: SpeedConfig, dt: float) -> None:
        """Take the settings and the control period in seconds."""
        self.config = config
        self.slow = False  # whether a stream is late
        self._periods = round(config.ramp_in_s / dt)
        self._ramp_tick: int | None = None

    def ramp_in(self, tick: int) -> None:
        """Begin at a small scale with the step that leads from `tick` to the next one."""
        self._ramp_tick = tick if self._periods else None

    def scales(self, tick: int, count: int) -> np.ndarray | None:
        """Return the scales [count] of the steps after `tick`; None when all of them are 1."""
        slow = self.config.slow_speed_scale if self.slow else 1.0
        # A plan may begin before the ramp (it replaces one that is void): there the scale is least.
        done = 0 if self._ramp_tick is None else max(tick - self._ramp_tick, 0)
        if self._ramp_tick is None or done >= self._periods:
            return np.full(count, slow) if self.slow else None
        part = np.minimum(np.arange(done, done + count) / self._periods, 1.0)
        return np.minimum(RAMP_START + (1 - RAMP_START) * part, slow)

    def at(self, tick: int) -> float:
        """Return the scale of the step after `tick`."""
        scales = self.scales(tick, 1)
        return 1.0 if scales is None else float(scales[0])
