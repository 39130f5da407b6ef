# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks take time: what is varied, rounds of calls, medians with their tails.

Imports numpy only.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Options:
    """What all benchmarks are told."""

    flow: Path  # checkpoint folder of the policy of many steps
    student: Path  # checkpoint folder of the policy of few steps
    quick: bool  # few repetitions
    realtime_priority: int = 0  # of what keeps time, in `realtime` and `swap`; 0 is none

    def pick(self, full: int, quick: int) -> int:
        """Return the number of repetitions of this run."""
        return quick if self.quick else full


def time_calls(call: Callable[[int], object], count: int) -> np.ndarray:
    """Return the seconds [count] that each of call(0), call(1), ... takes."""
    seconds = np.empty(count)
    clock = time.perf_counter
    for i in range(count):
        start = clock()
        call(i)
        seconds[i] = clock() - start
    return seconds


def spread(name: str, values: np.ndarray | Sequence[float]) -> dict[str, float]:
    """Return the median of values as `name`, with `name_p99` and `name_max`; raises on none."""
    median, p99, most = np.percentile(np.asarray(values, dtype=float), (50, 99, 100)).tolist()
    return {name: median, f'{name}_p99': p99, f'{name}_max': most}


def ratio_of_medians(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Return the median over rounds of the ratio of a round's medians; both [rounds, calls].

    Both were measured within the same round, so what slows down the machine for a while slows both
    and cancels; a ratio over the whole run would compare one's good minute with the other's bad.
    """
    return float(np.median(np.median(numerator, axis=1) / np.median(denominator, axis=1)))


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector, which scans all of torch's objects, out of what is timed."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
