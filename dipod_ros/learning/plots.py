# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: learning curves and success against evaluations. matplotlib, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dipod_ros.learning.evaluate import SuccessRate
from dipod_ros.learning.pyplot import pyplot

BLUE, ORANGE, GREEN, GREY = '#2458a6', '#d9731a', '#2e8540', '#888888'


def plot_learning_curve(
    path: Path,
    rows: Sequence[Mapping[str, float]],
    evaluations: Mapping[str, SuccessRate],
    title: str,
) -> Path:
    """Draw success, drift and exploration over control steps.

    Args:
        path: PNG to write.
        rows: metrics of each update, see `run.read_metrics`.
        evaluations: separate evaluations by name, drawn at the right edge with their intervals.
        title: of the picture.

    """
    plt = pyplot()
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout='constrained'
    )
    steps = np.array([r['control_steps'] for r in rows]) / 1000
    success = np.array([r['success_rate'] for r in rows])
    episodes = np.array([r['episodes'] for r in rows])
    top.plot(steps, success, '.', color=BLUE, alpha=0.4, label='each update')
    top.plot(steps, _smooth(success, episodes), color=BLUE, label='last 256 episodes')
    edge = steps[-1] if len(steps) else 1.0
    colors = (GREY, ORANGE, GREEN, BLUE)
    for i, (name, rate) in enumerate(evaluations.items()):
        x = edge * (1.04 + 0.03 * i)
        error = [[rate.success - rate.low], [rate.high - rate.success]]
        label = f'{name}: {rate.success:.2f}'
        top.errorbar(
            [x], [rate.success], error, fmt='o', capsize=3, color=colors[i % 4], label=label
        )
    top.set(ylim=(0, 1.02), ylabel='success', title=title)
    top.grid(alpha=0.3)
    top.legend(loc='lower right', fontsize=8)
    for name, color, label in (
        ('action_std_ratio', GREEN, 'action std, relative to the start'),
        ('cfm_ratio', ORANGE, 'CFM loss of own actions, relative'),
    ):
        bottom.plot(steps, [r.get(name, np.nan) for r in rows], color=color, label=label)
    bottom.set(xlabel='control steps (thousands)', ylabel='drift', ylim=(0, None))
    bottom.grid(alpha=0.3)
    bottom.legend(loc='lower left', fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def plot_evaluations(path: Path, rates: Mapping[str, SuccessRate], title: str) -> Path:
    """Draw success with 95 % intervals, one bar for each named evaluation."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(rates), 4), layout='constrained')
    values = [r.success for r in rates.values()]
    errors = np.array([[r.success - r.low, r.high - r.success] for r in rates.values()]).T
    axes.bar(list(rates), values, color=BLUE, yerr=errors, capsize=4)
    for i, value in enumerate(values):
        axes.text(i, 0.02, f'{value:.2f}', ha='center', color='white', fontsize=9)
    axes.set(ylim=(0, 1.02), ylabel='success', title=title)
    axes.tick_params(axis='x', rotation=20)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def _smooth(success: np.ndarray, episodes: np.ndarray, window: int = 256) -> np.ndarray:
    """Mean success over about the last `window` episodes, at each update."""
    out = np.empty_like(success)
    for i in range(len(success)):
        weights = episodes[: i + 1][::-1]
        keep = np.cumsum(weights) - weights < window
        values = success[: i + 1][::-1]
        out[i] = np.average(values[keep], weights=weights[keep])
    return out
