# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of learning says of a method over several tasks at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipod_ros.learning.bench.methods import BASELINE, baseline
from dipod_ros.learning.bench.regimes import TASKS
from dipod_ros.learning.bench.statistics import (
    FEW,
    Estimate,
    estimate,
    probability_of_improvement,
)

# (task, regime, method) -> results of its seeds
Results = Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Aggregate:
    """The score of a method over all its tasks that are judged by success."""

    whole: Estimate
    tasks: tuple[str, ...]
    seeds: int  # of each task
    # The method that it is compared with, how often a seed of it beats one of that (NaN without
    # a common task), and the tasks that both have: these may be fewer than `tasks`.
    baseline: str | None
    better: float
    compared: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **vars(self.whole),
            'tasks': list(self.tasks),
            'seeds': self.seeds,
            'baseline': self.baseline,
            'better_than_baseline': self.better,
            'compared_on': list(self.compared),
        }


def aggregates(results: Results) -> dict[tuple[str, str], Aggregate]:
    """Return (regime, method) -> aggregate, where there are several tasks with the same score."""
    found = {}
    for regime, method in dict.fromkeys((key[1], key[2]) for key in results):
        mine = _success(results, regime, method)
        if len(mine) < 2:
            continue
        rival = None if method == BASELINE else baseline(method)
        other = {} if rival is None else _success(results, regime, rival)
        fewest = min(map(len, mine.values()))
        found[regime, method] = Aggregate(
            # As many runs of each task, the first ones, so that each counts the same.
            whole=estimate({task: runs[:fewest] for task, runs in mine.items()}),
            tasks=tuple(mine),
            seeds=fewest,
            baseline=rival,
            better=probability_of_improvement(mine, other) if other else math.nan,
            compared=tuple(task for task in mine if task in other),
        )
    return found


def _success(results: Results, regime: str, method: str) -> dict[str, list[float]]:
    """Return a method's final scores by task; returns of other tasks have other units.

    Tasks with fewer than FEW seeds are left out: their spread is not known, and the interval over
    all tasks would be too narrow.
    """
    return {
        key[0]: [run['score'] for run in runs]
        for key, runs in results.items()
        if key[1:] == (regime, method)
        and len(runs) >= FEW
        and TASKS[key[0]].score_kind == 'success'
    }
