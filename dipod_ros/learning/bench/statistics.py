# SPDX-License-Identifier: Apache-2.0
"""Statistics of a few runs: interquartile mean, stratified bootstrap, probability of improvement.

They are those of Agarwal et al., arXiv 2108.13264 (sections 4.1 to 4.3). numpy and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import numpy_rng

RESAMPLES = 2000
LEVEL = 0.95
# With fewer runs than this an interval says little: their spread itself is hardly known.
FEW = 3


@dataclass(frozen=True)
class Estimate:
    """An interquartile mean with the bounds of its 95 % bootstrap interval."""

    iqm: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{short(self.iqm)} [{short(self.low)}, {short(self.high)}]'


def short(value: float) -> str:
    """Return a number as text with about three digits; huge ones have an exponent."""
    return f'{value:.0f}' if 100 <= abs(value) < 1e6 else f'{value:.3g}'


def interquartile_mean(scores: Sequence[float]) -> float:
    """Return the mean of the middle half of `scores` [R].

    A quarter of the runs, rounded down, is left out at either end: with fewer than four runs it is
    the mean.
    """
    return float(stats.trim_mean(np.asarray(scores, dtype=float), 0.25))


def estimate(
    scores: Mapping[str, Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return the interquartile mean over all runs of all tasks, with its interval.

    Args:
        scores: runs by task; the numbers of runs may differ.
        resamples: of the bootstrap, in which the runs of each task are drawn anew with replacement
            (stratified: a task is never lost or counted twice). Percentile interval.
        seed: of the bootstrap.

    Raises UserError when there is no run.

    """
    groups = [np.asarray(runs, dtype=float) for runs in scores.values() if len(runs)]
    if not groups:
        raise UserError('no runs: an estimate needs at least one')
    rng = numpy_rng(seed, 'bootstrap')
    drawn = [runs[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in groups]
    values = stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(interquartile_mean(np.concatenate(groups)), float(low), float(high))


def probability_of_improvement(
    mine: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]
) -> float:
    """Return how often a run of `mine` beats one of `other`, ties counted half; mean over tasks.

    P(X > Y) is the Mann-Whitney statistic over the number of pairs. Tasks that only one of them
    has are left out; NaN when they share none.
    """
    shares = []
    for task in (name for name in mine if name in other):
        x, y = np.asarray(mine[task], dtype=float), np.asarray(other[task], dtype=float)
        if len(x) and len(y):
            difference = x[:, None] - y[None, :]
            shares.append(((difference > 0) + 0.5 * (difference == 0)).mean())
    return float(np.mean(shares)) if shares else math.nan


def few_runs(counts: Mapping[str, int]) -> list[str]:
    """Return warnings about names with too few runs for their interval to mean anything."""
    one = [name for name, count in counts.items() if count == 1]
    few = [name for name, count in counts.items() if 1 < count < FEW]
    warnings = []
    if one:
        warnings.append(
            f'ONE seed only, so no interval at all, compare nothing with: {", ".join(one)}'
        )
    if few:
        warnings.append(f'fewer than {FEW} seeds, the interval means little: {", ".join(few)}')
    return warnings
