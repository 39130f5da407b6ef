# SPDX-License-Identifier: Apache-2.0
"""Random generators named by keys, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def _entropy(keys: tuple[int | str, ...]) -> list[int]:
    # The count first, since SeedSequence pads with zeros: (0, 'x') is not (0, 'x', 0). Modulo,
    # because it takes no negative numbers and a seed of -1 is a seed.
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) % 2**64 for k in keys]
    return [len(keys), *words]


def numpy_rng(*keys: int | str) -> np.random.Generator:
    """Return a numpy generator that depends on `keys` alone, e.g. (seed, 'rollout', 12)."""
    return np.random.default_rng(_entropy(keys))


def torch_rng(*keys: int | str) -> torch.Generator:
    """Return a torch generator that depends on `keys` alone."""
    state = np.random.SeedSequence(_entropy(keys)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
