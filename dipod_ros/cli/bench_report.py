# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks say about the machine they ran on, and their results as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ('torch', 'onnxruntime', 'mujoco', 'rclpy')


def machine_facts() -> dict[str, Any]:
    """Return the processor, its cores, the load of the last minutes, and versions."""
    return {
        'cpu': _cpu_model(),
        'cores': os.cpu_count(),
        'cores_allowed': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'loadavg': [round(load, 2) for load in os.getloadavg()],
        'python': platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def table(title: str, results: Mapping[str, Any]) -> str:
    """Return results as text: one line per figure, its p99 and maximum beside it.

    A nested mapping becomes a table of its own below, and so does a list of rows.
    """
    lines = [f'\n{title:28}{"median":>12}{"p99":>12}{"max":>12}']
    below = []
    for key, value in results.items():
        if isinstance(value, Mapping):
            below.append(table(f'{title} {key}', value))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            below.append(_rows(f'{title} {key}', value))
        elif not key.endswith(('_p99', '_max')):
            tail = [results[k] for k in (f'{key}_p99', f'{key}_max') if k in results]
            lines.append(f'  {key:26}' + ''.join(f'{_text(v):>12}' for v in (value, *tail)))
    return '\n'.join([*lines, *below])


def _rows(title: str, rows: list[Mapping[str, Any]]) -> str:
    """Return rows that have the same keys as text, one line each."""
    lines = [list(rows[0]), *([_text(v).strip() for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ('  '.join(f'{t:>{w}}' for t, w in zip(line, widths, strict=True)) for line in lines)
    return '\n'.join([f'\n{title}', *text])


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return f' {value}'
    # Four digits say all that a shared machine can mean.
    return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _cpu_model() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not installed'
