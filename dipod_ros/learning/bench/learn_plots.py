# SPDX-License-Identifier: Apache-2.0
"""Pictures of the benchmark of learning. matplotlib, no display."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipod_ros.learning.bench.experiment_result import smooth
from dipod_ros.learning.bench.jobs import Job, update_config
from dipod_ros.learning.bench.methods import METHODS, SWEEP, SWEPT
from dipod_ros.learning.bench.regimes import REGIMES, TASKS
from dipod_ros.learning.bench.suites import SUITES
from dipod_ros.learning.pyplot import pyplot

if TYPE_CHECKING:
    from dipod_ros.learning.bench.learn_report import Report

POINTS = 200
# In one picture; the tables have all of them.
MOST_METHODS = 8
# Regimes that differ in the clip alone. In between no line is drawn over a clip of CLIPS that was
# not measured.
CLIP_REGIMES = ('default', 'clip_0.05', 'clip_0.5', 'clip_1.0')
CLIPS = (0.05, 0.2, 0.5, 1.0)
# A method that is another one but for its clip.
SAME_BUT_CLIP = {'small_clip': 'fpo++'}
# What is asked of these is another question than how wide the clip should be.
CONTROLS = set(SUITES['controls'].methods) - set(SUITES['clip'].methods)
Curve = tuple[np.ndarray, np.ndarray]


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw whatever the results are enough for; return the paths of the pictures."""
    pictures = []
    for task, regime in dict.fromkeys(
        (key[0], key[1]) for key, runs in report.results.items() if runs
    ):
        runs = {k[2]: v for k, v in report.results.items() if k[:2] == (task, regime) and v}
        name = f'{task}_{regime}'
        kind = TASKS[task].score_kind
        title = f'{task}, {REGIMES[regime].about}'
        if set(runs) <= set(SWEPT):
            pictures.append(_settings(folder / f'settings_{task}.png', runs, kind, title))
            continue
        runs = _readable(runs)
        pictures += [
            _curves(folder / f'curve_{name}.png', runs, _learning, kind, title),
            _curves(folder / f'gap_{name}.png', runs, _gap, 'exact ELBO gap (nats)', title),
            _sweep(folder / f'sweep_{name}.png', runs, kind, title),
        ]
    for task in dict.fromkeys(key[0] for key in report.results):
        pictures.append(_clips(folder / f'clip_{task}.png', report, task))
        pictures.append(_ends(folder / f'long_{task}.png', report, task))
    return [path for path in pictures if path is not None]


def _readable(runs: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Leave out the methods with the fewest seeds, until the others fit into one picture."""
    for least in sorted({len(results) for results in runs.values()}):
        shown = {method: results for method, results in runs.items() if len(results) >= least}
        if len(shown) <= MOST_METHODS:
            return shown
    return shown


def band(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, mean, lowest and highest of curves (steps, values), where all have values."""
    start = max(x[0] for x, _ in curves)
    end = min(x[-1] for x, _ in curves)
    grid = np.linspace(start, max(start, end), POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(0), values.min(0), values.max(0)


def _learning(run: dict[str, Any]) -> Curve:
    name = 'success_rate' if run['score_kind'] == 'success' else 'return_mean'
    x = np.array([row['control_steps'] for row in run['curve']], dtype=float)
    y = np.array([row[name] for row in run['curve']], dtype=float)
    smoothed = smooth(y)
    known = np.isfinite(smoothed)
    # A run too short to smooth is drawn as it is.
    return (x[known], smoothed[known]) if known.any() else (x, y)


def _gap(run: dict[str, Any]) -> Curve:
    """Return the exact gap; it needs a sampler without noise of its own."""
    points = [(p[0], p[2]) for p in run['gap_curve'] if len(p) > 2 and p[2] is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def _curves(
    path: Path,
    runs: dict[str, list[dict[str, Any]]],
    read: Callable[[dict[str, Any]], Curve],
    label: str,
    title: str,
) -> Path | None:
    """Draw the mean of the seeds and, where there are several, from the lowest to the highest."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    for method, results in runs.items():
        curves = [curve for curve in map(read, results) if len(curve[0])]
        if not curves:
            continue
        x, mean, low, high = band(curves)
        color = _color(method)
        axes.plot(x / 1000, mean, color=color, label=f'{method} ({len(curves)})')
        if len(curves) > 1:
            axes.fill_between(x / 1000, low, high, color=color, alpha=0.12, linewidth=0)
    if not axes.lines:
        plt.close(figure)
        return None
    axes.set(xlabel='control steps (thousands)', ylabel=label, title=title)
    if label == 'success':
        axes.set_ylim(0, 1.02)
    return _save(plt, figure, axes, path)


def _sweep(
    path: Path, runs: dict[str, list[dict[str, Any]]], label: str, title: str
) -> Path | None:
    """Draw the score over the number of evaluations, and the one-step student."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 4.5), layout='constrained')
    shown = {m: [r for r in results if r['sweep']] for m, results in runs.items()}
    shown = {m: results for m, results in shown.items() if results}
    for i, (method, results) in enumerate(shown.items()):
        names = [*results[0]['sweep'], 'student']
        scores = [[*r['sweep'].values(), r['student']] for r in results]
        place = np.arange(len(names)) + (i - (len(shown) - 1) / 2) * 0.8 / len(shown)
        axes.bar(place, np.mean(scores, 0), 0.8 / len(shown), color=_color(method), label=method)
        axes.set_xticks(range(len(names)), [f'K={n}' for n in names[:-1]] + ['student'])
        for row in scores:
            axes.plot(place, row, 'k.', markersize=3)
    if not shown:
        plt.close(figure)
        return None
    axes.set(ylabel=label, title=title)
    return _save(plt, figure, axes, path)


def _settings(path: Path, runs: dict[str, list[dict[str, Any]]], label: str, title: str) -> Path:
    """Draw what each setting of the sweep ends with: a bar, and a point for each seed."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 1 + 0.2 * len(runs)), layout='constrained')
    families = {name: family for family in SWEEP for name in runs if name.startswith(family)}
    for place, (name, results) in enumerate(runs.items()):
        scores = [run['score'] for run in results]
        axes.barh(place, np.mean(scores), color=_color(families[name]), alpha=0.6)
        axes.plot(scores, [place] * len(scores), 'k.', markersize=4)
    axes.set_yticks(range(len(runs)), [name.replace('_', ' ') for name in runs], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel=label, title=title)
    return _save(plt, figure, axes, path, legend=False)


Points = dict[float, dict[str, Any]]


def over_clip(rows: Sequence[dict[str, Any]], task: str) -> dict[str, Points]:
    """Return method -> clip -> row of a task's results that differ in the clip alone.

    `small_clip` is FPO++ at its clip, unless FPO++ itself was run with that one. Controls are left
    out, and so is what has one clip only.
    """
    found: dict[str, Points] = {}
    # Names of their own first: they keep their place.
    for row in sorted(rows, key=lambda row: row['method'] in SAME_BUT_CLIP):
        method = SAME_BUT_CLIP.get(row['method'], row['method'])
        wanted = row['task'] == task and row['regime'] in CLIP_REGIMES and row['seeds']
        if not wanted or method in CONTROLS or METHODS[method].module == 'outside':
            continue
        clip = update_config(Job(task, row['method'], 0, row['regime'])).clip
        found.setdefault(method, {}).setdefault(clip, row)
    return {method: points for method, points in found.items() if len(points) > 1}


def unbroken(clips: Iterable[float]) -> list[list[float]]:
    """Return ascending clips in groups within which no clip of CLIPS is missing."""
    groups: list[list[float]] = []
    for clip in sorted(clips):
        near = groups and not any(groups[-1][-1] < known < clip for known in CLIPS)
        if near:
            groups[-1].append(clip)
        else:
            groups.append([clip])
    return groups


def _clips(path: Path, report: Report, task: str) -> Path | None:
    """Draw the score over the clip, one line per method; None with fewer than two clips."""
    shown = over_clip(report.rows, task)
    if not shown:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for method, points in shown.items():
        for i, group in enumerate(unbroken(points)):
            _points(axes, group, [points[clip] for clip in group], method, named=i == 0)
    clips = sorted({clip for points in shown.values() for clip in points})
    axes.set(xlabel='clip', ylabel=TASKS[task].score_kind, xscale='log', title=task)
    axes.set_xticks(clips, [f'{clip:g}' for clip in clips])
    axes.minorticks_off()
    return _save(plt, figure, axes, path)


def _ends(path: Path, report: Report, task: str) -> Path | None:
    """Draw the end of the long runs; None without any."""
    rows = [r for r in report.rows if r['task'] == task and r['regime'] == 'long' and r['seeds']]
    if not rows:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for i, row in enumerate(rows):
        _points(axes, [i], [row], row['method'])
        axes.plot(np.full(len(row['scores']), i + 0.12), row['scores'], 'k.', markersize=4)
    axes.set(ylabel=TASKS[task].score_kind, title=f'{task}, end of the long runs')
    axes.set_xticks(range(len(rows)), [row['method'] for row in rows], rotation=20)
    return _save(plt, figure, axes, path)


def _points(
    axes, x: list[float], rows: list[dict[str, Any]], method: str, named: bool = True
) -> None:
    middle = np.array([row['iqm'] for row in rows])
    error = [
        middle - [row['ci_low'] for row in rows],
        [row['ci_high'] for row in rows] - middle,
    ]
    # With few runs the middle may lie outside its own percentile interval by round-off.
    error = np.maximum(error, 0)
    label = method if named else None
    axes.errorbar(x, middle, error, fmt='o-', capsize=3, color=_color(method), label=label)


def _color(method: str):
    """Return a color that belongs to the method in every picture."""
    import matplotlib

    colors = [c for name in ('tab20', 'tab20b') for c in matplotlib.colormaps[name].colors]
    return colors[list(METHODS).index(method) % len(colors)]


def _save(plt, figure, axes, path: Path, legend: bool = True) -> Path:
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
