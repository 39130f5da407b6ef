# SPDX-License-Identifier: Apache-2.0
"""What the server asks of whatever runs a policy. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Golden

# rad per control step; float32 backends agree to 1e-6, a wrong weight or bias shows as 1e-2.
GOLDEN_TOLERANCE_RAD = 1e-4
WARM_UP_RUNS = 3


class EngineError(UserError):
    """An engine that is not there, or that cannot run this checkpoint."""


@dataclass(frozen=True)
class EngineInfo:
    """What runs the policy."""

    name: str  # onnx | torch | tensorrt
    version: str
    threads: int
    refitted: bool  # weights were put into an existing graph instead of building a new one


class PolicyEngine(Protocol):
    """Runs the whole K-step sampler of one checkpoint."""

    def run(self, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the chunk float32 [H, A] for observation float32 [O] and noise float32 [N]."""
        ...

    def refit(self, weights: Mapping[str, np.ndarray]) -> PolicyEngine:
        """Return an engine of the same graph with other weights; this one goes on unchanged."""
        ...

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        ...


def check_golden(engine: PolicyEngine, golden: Golden | None) -> None:
    """Run the engine on the manifest's golden values, which warms it up as well.

    Raises EngineError when there are none or when the engine disagrees: a backend that drops a bias
    or a checkpoint that was mixed up must never come to act.
    """
    if golden is None:
        raise EngineError('the manifest holds no golden values to check the engine against')
    for _ in range(WARM_UP_RUNS):
        chunk = engine.run(golden.observation, golden.noise)
    if chunk.shape != golden.chunk.shape:
        raise EngineError(
            f'the engine returns {chunk.shape}, the golden chunk {golden.chunk.shape}'
        )
    error = float(np.max(np.abs(chunk - golden.chunk)))
    if not error <= GOLDEN_TOLERANCE_RAD:  # catches NaN as well
        raise EngineError(
            f'golden check failed: {engine.info().name} differs from the stored chunk by '
            f'{error:.2g} rad, allowed {GOLDEN_TOLERANCE_RAD:g}'
        )
