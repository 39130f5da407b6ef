# SPDX-License-Identifier: Apache-2.0
"""The report of `dipod gpu-check` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """Return the report: the machine, one table per network, what failed, what was not here."""
    gpu, machine = results['gpu'], results['machine']
    lines = [
        f'# {gpu["name"]}',
        '',
        f'- {gpu["sm"]}, {gpu["memory_bytes"] / 1e9:.1f} GB, '
        f'{"shared with the CPU, " if gpu["integrated"] else ""}driver CUDA {gpu["driver"] / 1e3:g}'
        f', memory peak {_number(gpu["bandwidth"] / 1e9 or None)} GB/s by clock and bus',
        f'- {machine["cpu"]}, torch {machine["torch"]}, onnxruntime {machine["onnxruntime"]}',
        f'- sampler {results["sampler"]}, batch 1, observation and noise in, chunk out, transfers '
        'included; random weights',
        f'- one launch takes {_number(results["launch_us"])} us',
    ]
    if results['quick']:
        lines.append('- QUICK: small networks, few calls; the times mean nothing')
    for name, network in results['networks'].items():
        lines += ['', *_network(name, network)]
    absent = {k: v for k, v in results['backends'].items() if v}
    lines += ['', *(f'Not here: {k} ({", ".join(v)}).' for k, v in absent.items())]
    return '\n'.join(lines).rstrip() + '\n'


def _network(name: str, network: Mapping[str, Any]) -> list[str]:
    eager = network.get('torch_eager')
    lines = [
        f'## {name}',
        '',
        f'{network["sizes"]}, {network["weight_bytes"] / 1e6:.1f} MB of float32 weights, '
        f'{network["evaluations"]} evaluations, {network["operators"]} operators. Floors: weights '
        f'from memory {_number(network["weight_floor_us"])} us, launches '
        f'{_number(network.get("launch_floor_us"))} us.',
        '',
        '| backend | precision | p50 us | p99 us | x eager | parity | build s | refit ms | |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    if eager:
        lines.append(
            f'| torch eager | fp32 | {_number(eager["run_us"])} | {_number(eager["run_us_p99"])} '
            '| 1 | | | | baseline |'
        )
    for row in network['engines']:
        ratio = eager['run_us'] / row['run_us'] if eager and 'run_us' in row else None
        cells = (
            row['backend'] + (' (CPU)' if row['backend'] == 'onnx' else ''),
            row['precision'],
            *(_number(row.get(k)) for k in ('run_us', 'run_us_p99')),
            _number(ratio),
            *(_number(row.get(k)) for k in ('parity', 'build_s', 'refit_ms')),
            'ok' if row['passed'] else 'FAILED: ' + '; '.join(row['failures']).replace('|', '/'),
        )
        lines.append(f'| {" | ".join(cells)} |')
    if 'train_fp32_ms' in network:
        fp32, bf16 = network['train_fp32_ms'], network['train_bf16_ms']
        lines += [
            '',
            f'Training step, batch 256: float32 {fp32:.3g} ms, bfloat16 {bf16:.3g} ms '
            f'({fp32 / bf16:.2f} x).',
        ]
    return lines


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.3g}'
