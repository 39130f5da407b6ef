# SPDX-License-Identifier: Apache-2.0
"""`dipod gpu-check`: every GPU backend that is here, checked against the CPU and timed.

What passes in float32 for all networks is remembered for this GPU and these versions, and
`engine: auto` uses the fastest of it.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dipod_ros.cli.output import write_json
from dipod_ros.errors import UserError

HELP = 'check and time every GPU backend on this machine'

# About the sizes at which a GPU pays: 1 to 8 million weights, a horizon of 16.
NETWORKS = {
    'mlp': {'kind': 'residual_mlp', 'width': 512, 'depth': 4},
    'dit': {'kind': 'dit', 'width': 256, 'depth': 6, 'heads': 8},
    'unet': {'kind': 'unet', 'width': 128, 'depth': 3},
}
QUICK_NETWORKS = {
    'mlp': {'kind': 'residual_mlp', 'width': 64, 'depth': 2},
    'dit': {'kind': 'dit', 'width': 32, 'depth': 1, 'heads': 2},
    'unet': {'kind': 'unet', 'width': 16, 'depth': 2},
}
HORIZON = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        '--out', default='docs/results', metavar='DIR', help='folder of the report (%(default)s)'
    )
    parser.add_argument(
        '--quick', action='store_true', help='small networks, few calls: shows that it works'
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and write the report; 1 when a backend that is here failed."""
    from dipod_ros.cli._gpu_report import markdown
    from dipod_ros.policy.atomic import write_file
    from dipod_ros.policy.writable import require_writable
    from dipod_ros.serving.engines import verified
    from dipod_ros.serving.engines.cuda_driver import find_gpu

    gpu = find_gpu()
    if gpu is None:
        raise UserError('gpu-check: no NVIDIA GPU with its driver found on this machine')
    require_writable(args.out, folder=True)
    results = measure(gpu, args.quick)
    passed = trusted(results)
    if not args.quick:
        verified.write(gpu, passed)
    name = re.sub(r'[^a-z0-9]+', '-', gpu.name.lower()).strip('-')
    report = markdown(results)
    stem = Path(args.out) / f'gpu-{name}'
    write_json(stem.with_suffix('.json'), results)
    try:
        write_file(stem.with_suffix('.md'), report.encode())
    except OSError as error:
        raise UserError(f'cannot write {stem}.md: {error.strerror or error}') from error
    print(report)
    print(f'results: {stem}.md, {stem}.json')
    failed = sorted({r['backend'] for r in _rows(results) if not r['passed']})
    print(f'passed in float32: {", ".join(passed) or "none"}')
    if failed:
        print(f'failed: {", ".join(failed)}')
    return 1 if failed else 0


def measure(gpu: Any, quick: bool) -> dict[str, Any]:
    """Return everything that is measured, as plain values."""
    import os
    import tempfile

    from tqdm import tqdm

    from dipod_ros.cli import _gpu_measure as measuring
    from dipod_ros.cli._bench_networks import random_checkpoint
    from dipod_ros.cli.arguments import find_checkpoint
    from dipod_ros.cli.bench_report import machine_facts
    from dipod_ros.policy.checkpoint import read_manifest
    from dipod_ros.policy.spec import SamplerSpec
    from dipod_ros.serving.engines.backends import BACKENDS

    effort = measuring.Effort(10, 2, 3) if quick else measuring.Effort(500, 5, 50)
    sampler = SamplerSpec('midpoint', 1 if quick else 5)
    spec = read_manifest(find_checkpoint('pillar_reach_flow')).spec
    spec = replace(spec, horizon=HORIZON, sampler=sampler)
    cuda_torch = _cuda_torch()
    results: dict[str, Any] = {
        'quick': quick,
        'machine': machine_facts(),
        'gpu': {**asdict(gpu), 'sm': gpu.sm},
        'sampler': str(sampler),
        'launch_us': measuring.launch_us() if cuda_torch else None,
        'backends': {b.name: b.missing() for b in BACKENDS.values() if b.gpu},
        'networks': {},
    }
    here = [b for b in BACKENDS.values() if b.gpu and not b.missing()]
    work = [
        (name, backend, precision)
        for name in NETWORKS
        for backend in (*here, BACKENDS['onnx'])
        for precision in backend.precisions
    ]
    networks = QUICK_NETWORKS if quick else NETWORKS
    before = os.environ.get('XDG_CACHE_HOME')
    with tempfile.TemporaryDirectory(prefix='dipod_gpu_') as folder, tqdm(total=len(work)) as bar:
        os.environ['XDG_CACHE_HOME'] = folder  # every build is a first one
        try:
            for name, backend, precision in work:
                bar.set_postfix_str(f'{name} {backend.name} {precision}')
                first, second = (random_checkpoint(spec, networks[name], s) for s in (0, 1))
                if name not in results['networks']:
                    results['networks'][name] = _network(
                        measuring, first, networks[name], gpu, effort, cuda_torch
                    )
                row = measuring.check_backend(backend, precision, first, second, effort)
                results['networks'][name]['engines'].append(row)
                bar.update()
        finally:
            del os.environ['XDG_CACHE_HOME']
            if before is not None:
                os.environ['XDG_CACHE_HOME'] = before
    return results


def trusted(results: dict[str, Any]) -> dict[str, float]:
    """Return the GPU backends that passed in float32 for all networks, with their MLP's median."""
    rows = [r for r in _rows(results) if r['precision'] == 'fp32' and r['backend'] != 'onnx']
    names = {r['backend'] for r in rows}
    good = {n for n in names if all(r['passed'] for r in rows if r['backend'] == n)}
    mlp = results['networks']['mlp']['engines']
    return {
        r['backend']: r['run_us'] for r in mlp if r['backend'] in good and r['precision'] == 'fp32'
    }


def _network(
    measuring: Any, checkpoint: Any, network: dict, gpu: Any, effort: Any, cuda_torch: bool
) -> dict[str, Any]:
    weights = sum(v.nbytes for k, v in checkpoint.weights.items() if k.startswith('net.'))
    evaluations = checkpoint.spec.sampler.evaluations
    count = measuring.operators(checkpoint)
    found: dict[str, Any] = {
        'sizes': dict(network),
        'evaluations': evaluations,
        'weight_bytes': weights,
        'operators': count,
        # Every evaluation reads every weight once, unless a cache holds them.
        'weight_floor_us': 1e6 * weights * evaluations / gpu.bandwidth if gpu.bandwidth else None,
        'engines': [],
    }
    if cuda_torch:
        found['torch_eager'] = measuring.torch_eager(checkpoint, effort)
        found['launch_floor_us'] = count * measuring.launch_us()
        for precision in ('fp32', 'bf16'):
            found[f'train_{precision}_ms'] = measuring.training_step_ms(
                checkpoint, precision, effort
            )
    return found


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for network in results['networks'].values() for row in network['engines']]


def _cuda_torch() -> bool:
    import torch

    return torch.cuda.is_available()
