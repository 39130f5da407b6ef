# SPDX-License-Identifier: Apache-2.0
"""Drift of several policy versions as one picture. matplotlib, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dipod_ros.learning.plots import BLUE, GREEN, GREY, ORANGE
from dipod_ros.learning.pyplot import pyplot

_COLORS = (BLUE, ORANGE, GREEN, GREY, '#7d3ea3', '#b02a37')


def plot_drift(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Draw gap, alignment and few-step success against the version; one line for each `series`.

    Args:
        path: PNG to write.
        rows: each with `series`, `version`, `report` (DriftReport.to_dict) and `success`
            ({sampler: SuccessRate.to_dict}, may be empty).
        title: of the picture.

    """
    plt = pyplot()
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.5), layout='constrained')
    gap, cosine, success = panels
    for i, series in enumerate(dict.fromkeys(r['series'] for r in rows)):
        own = sorted((r for r in rows if r['series'] == series), key=lambda r: r['version'])
        version = np.array([r['version'] for r in own])
        color = _COLORS[i % len(_COLORS)]
        reports = [r['report'] for r in own]
        _line(gap, version, reports, 'gap_mean', 'gap_error', color, '-o', series)
        _line(gap, version, reports, 'gap_negative', None, color, '--v', f'{series}, A < 0')
        _line(gap, version, reports, 'g1_gap', None, color, ':s', f'{series}, G1 (fitted)')
        for kind, style in (('elbo', '-o'), ('cfm', ':s')):
            found = [(r['alignment'] or {}).get(kind, {}) for r in reports]
            _line(cosine, version, found, 'value', 'error', color, style, f'{series}, {kind}')
        _success(success, version, own, color, series)
    gap.set(xlabel='version', ylabel='log-likelihood - ELBO (nats)', title='gap', ylim=(0, None))
    cosine.set(
        xlabel='version', ylabel='cosine', title='with the true policy gradient', ylim=(-1.1, 1.4)
    )
    cosine.axhline(1, color='black', linewidth=0.5)
    cosine.axhline(0, color='black', linewidth=0.5)
    success.set(xlabel='version', ylabel='success', title='evaluations', ylim=(0, 1.02))
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.has_data() and panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def _line(axes, x, values, name, error, color, style, label) -> None:
    y = np.array([v.get(name, np.nan) for v in values], dtype=float)
    if np.all(np.isnan(y)):
        return
    bars = None if error is None else np.array([v.get(error, np.nan) for v in values], dtype=float)
    axes.errorbar(x, y, bars, fmt=style, color=color, capsize=3, markersize=4, label=label)


def _success(axes, version, rows, color, series) -> None:
    samplers = list(dict.fromkeys(name for r in rows for name in r['success']))
    for j, name in enumerate(samplers):
        rates = [r['success'].get(name, {}).get('success', np.nan) for r in rows]
        fade = 0.3 + 0.7 * (j + 1) / len(samplers)  # the more evaluations, the stronger
        axes.plot(version, rates, '-o', color=color, alpha=fade, markersize=4)
        axes.annotate(
            name.split(' ')[0], (version[-1], rates[-1]), fontsize=7, color=color, alpha=fade
        )
    if samplers:
        axes.plot([], [], '-o', color=color, label=series)
