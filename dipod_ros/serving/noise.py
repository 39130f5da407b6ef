# SPDX-License-Identifier: Apache-2.0
"""Where a decision's noise comes from: a function of the seed and the decision's number. numpy."""

from __future__ import annotations

import secrets

import numpy as np

from dipod_ros.errors import UserError

KINDS = ('gaussian', 'zero')


class NoiseSource:
    """Noise that can be had again: `sample(n, size)` depends on the seed and on n alone."""

    def __init__(self, kind: str = 'gaussian', seed: int = -1) -> None:
        """Take the kind, and a seed; a negative one draws a fresh seed (see `seed`)."""
        if kind not in KINDS:
            raise UserError(f'noise {kind!r} is not one of {list(KINDS)}')
        self.kind = kind
        self.seed = seed if seed >= 0 else secrets.randbits(31)
        self._ready: tuple[int, np.ndarray] | None = None  # a number and its noise

    def prepare(self, number: int, size: int) -> None:
        """Draw the noise of a decision to come while there is time: seeding takes a while."""
        self._ready = number, self._draw(number, size)

    def sample(self, number: int, size: int) -> np.ndarray:
        """Return float32 [size] for decision `number`, prepared or not."""
        ready = self._ready
        if ready is not None and ready[0] == number and len(ready[1]) == size:
            return ready[1].copy()
        return self._draw(number, size)

    def _draw(self, number: int, size: int) -> np.ndarray:
        if self.kind == 'zero':
            return np.zeros(size, dtype=np.float32)
        generator = np.random.default_rng((self.seed, number))
        return generator.standard_normal(size, dtype=np.float32)
