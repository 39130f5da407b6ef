# SPDX-License-Identifier: Apache-2.0
"""What the server asks of whatever runs a policy. numpy only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Checkpoint, Golden

PRECISIONS = ('fp32', 'fp16', 'bf16')
# rad per control step; float32 backends agree to 1e-6, a wrong weight or bias shows as 1e-2.
GOLDEN_TOLERANCE_RAD = 1e-4
# Largest difference from float32 PyTorch in normalised actions (standard deviations of the data).
PARITY_STD = {'fp32': 1e-5, 'fp16': 2e-3, 'bf16': 3e-2}
WARM_UP_RUNS = 3


class EngineError(UserError):
    """An engine that is not there, or that cannot run this checkpoint."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is told when it is built."""

    threads: int = 1  # of a CPU
    precision: str = 'fp32'  # of the network; inputs, outputs and the integration are float32
    guided: bool = False  # can continue known steps

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineError(f'precision {self.precision!r} is not one of {list(PRECISIONS)}')
        if self.threads < 1:
            raise EngineError(f'threads must be at least 1, got {self.threads}')


@dataclass(frozen=True)
class EngineInfo:
    """What runs the policy."""

    name: str  # one of backends.NAMES
    version: str
    threads: int
    refitted: bool  # weights were put into an existing graph instead of building a new one
    device: str = 'cpu'
    precision: str = 'fp32'
    build_s: float = 0.0  # from weights to an engine that can run
    warm_up_s: float = 0.0  # of the first run, 0 before it
    memory_bytes: int = 0  # weights and buffers as the backend reports them, 0 when it does not
    detail: str = ''  # for a person: cache hit, captured graph, ...


class PolicyEngine(Protocol):
    """Runs the whole K-step sampler of one checkpoint.

    `run` is called from one thread at a time. Infinite or NaN weights or inputs give a chunk that
    is not finite, never an exception: the safety filter brakes on it.
    """

    @classmethod
    def build(cls, checkpoint: Checkpoint, options: EngineOptions) -> PolicyEngine:
        """Return an engine for a checkpoint; raises EngineError or CheckpointError."""
        ...

    def run(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        prefix: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the chunk float32 [H, A] for observation float32 [O] and noise float32 [N].

        An engine that was built guided continues known steps: `prefix` float32 [H, A], as far as
        `weights` float32 [H] within 0..1 say (policy/guidance.py). Without them, or with weights of
        0, the chunk is the plain sample. Others raise EngineError when a prefix is given.
        """
        ...

    def refit(self, weights: Mapping[str, np.ndarray]) -> PolicyEngine:
        """Return an engine of the same graph with other weights; this one goes on unchanged.

        Raises EngineError or CheckpointError when they are not the weights of this network.
        """
        ...

    def golden_check(self, golden: Golden | None) -> None:
        """Run on golden values and compare; raises EngineError, see check_golden."""
        ...

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        ...


class EngineBase:
    """What all engines do alike: the golden check and the time of the first run."""

    warm_up_s = 0.0
    golden_tolerance_rad = GOLDEN_TOLERANCE_RAD

    def golden_check(self, golden: Golden | None) -> None:
        """Run on golden values and compare; raises EngineError, see check_golden."""
        check_golden(self, golden)


def golden_tolerance_rad(precision: str, action_std: np.ndarray) -> float:
    """Return the tolerance of a golden check for a precision, rad per control step.

    Below float32 it is the parity that is promised in normalised actions, for the action with the
    largest standard deviation.
    """
    if precision == 'fp32':
        return GOLDEN_TOLERANCE_RAD
    return max(GOLDEN_TOLERANCE_RAD, PARITY_STD[precision] * float(np.max(action_std)))


def check_golden(engine: PolicyEngine, golden: Golden | None) -> None:
    """Run the engine on the manifest's golden values, which warms it up as well.

    Raises EngineError when there are none or when the engine disagrees: a backend that drops a bias
    or a checkpoint that was mixed up must never come to act.
    """
    if golden is None:
        raise EngineError('the manifest holds no golden values to check the engine against')
    start = time.perf_counter()
    chunk = engine.run(golden.observation, golden.noise)
    if isinstance(engine, EngineBase) and not engine.warm_up_s:
        engine.warm_up_s = time.perf_counter() - start
    for _ in range(WARM_UP_RUNS - 1):
        chunk = engine.run(golden.observation, golden.noise)
    if chunk.shape != golden.chunk.shape:
        raise EngineError(
            f'the engine returns {chunk.shape}, the golden chunk {golden.chunk.shape}'
        )
    error = float(np.max(np.abs(chunk - golden.chunk)))
    allowed = getattr(engine, 'golden_tolerance_rad', GOLDEN_TOLERANCE_RAD)
    if not error <= allowed:  # catches NaN as well
        what = f'{error:.2g} rad' if np.isfinite(error) else 'a value that is not finite'
        raise EngineError(
            f'golden check failed: {engine.info().name} differs from the stored chunk by '
            f'{what}, allowed {allowed:g}'
        )
