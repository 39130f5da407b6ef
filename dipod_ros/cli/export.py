# SPDX-License-Identifier: Apache-2.0
"""`dipod export`: a checkpoint as one ONNX file that runs wherever ONNX does, with its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'write a checkpoint as an ONNX file for other runtimes'

PRECISIONS = ('fp32', 'fp16')
GRAPH_FILE, MANIFEST_FILE = 'policy.onnx', 'policy.json'
SAMPLES = 32  # random observations and noises of the parity check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('checkpoint', help='name of a shipped model, or a folder')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the files')
    parser.add_argument(
        '--precision', choices=PRECISIONS, default='fp32', help='of the network (%(default)s)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export, check, and write only what passed."""
    from dipod_ros.cli.arguments import find_checkpoint
    from dipod_ros.errors import UserError
    from dipod_ros.policy.atomic import write_file
    from dipod_ros.policy.checkpoint import load
    from dipod_ros.policy.writable import require_writable

    out = Path(args.out)
    files = [out / GRAPH_FILE, out / MANIFEST_FILE]
    if not args.overwrite and any(f.exists() for f in files):
        raise UserError(f'{out} holds an export already; choose another --out or add --overwrite')
    require_writable(out, folder=True)
    checkpoint = load(find_checkpoint(args.checkpoint))
    graph, manifest = checked_export(checkpoint, args.precision)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The graph first: a manifest never speaks of a graph that is not there.
        write_file(files[0], graph)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror or error}') from error
    write_json(files[1], manifest)
    print(
        f'{files[0]}: {len(graph)} bytes, {args.precision}, '
        f'parity {manifest["parity"]["max_abs"]:.2g} (allowed {manifest["parity"]["allowed"]:g})'
    )
    if args.json:
        write_json(args.json, manifest)
    return 0


def checked_export(checkpoint: Any, precision: str) -> tuple[bytes, dict[str, Any]]:
    """Return the ONNX model of a checkpoint and its manifest.

    Raises EngineError when the model is not valid ONNX or differs from PyTorch by more than is
    allowed, in normalised actions: such a file must not come to act anywhere.
    """
    import hashlib
    from importlib.metadata import version

    import onnx

    from dipod_ros.policy.export import OPSET, export_onnx
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.serving.engines.base import PARITY_STD, EngineError

    policy = FlowPolicy.from_checkpoint(checkpoint)
    graph = export_onnx(policy, precision)
    model = onnx.load_model_from_string(graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        reason = str(error).split('\n')[0]
        raise EngineError(f'the exported graph is not valid ONNX: {reason}') from error
    worst, allowed = _parity(graph, policy), PARITY_STD[precision]
    if not worst <= allowed:  # catches NaN as well
        raise EngineError(
            f'the {precision} graph differs from PyTorch by {worst:.2g} in normalised actions, '
            f'allowed {allowed:g}; export it with another --precision'
        )
    manifest, spec = checkpoint.manifest, checkpoint.spec
    return graph, {
        'file': GRAPH_FILE,
        'sha256': hashlib.sha256(graph).hexdigest(),
        'bytes': len(graph),
        'precision': precision,
        'opset': OPSET,
        'inputs': {
            'observation': {'shape': [1, spec.observation_size], 'dtype': 'float32'},
            'noise': {
                'shape': [1, spec.noise_size],
                'dtype': 'float32',
                'distribution': 'standard normal',
            },
        },
        'outputs': {
            'chunk': {
                'shape': [1, spec.horizon, len(spec.joints)],
                'dtype': 'float32',
                'unit': 'rad per control step',
            }
        },
        'parity': {'against': 'torch float32', 'max_abs': worst, 'allowed': allowed},
        'checkpoint': {
            'name': manifest.path.name,
            'sha256': manifest.sha256,
            'spec': spec.to_dict(),
        },
        'weights': {k: list(v.shape) for k, v in sorted(checkpoint.weights.items())},
        'versions': {name: version(name) for name in ('torch', 'onnx', 'onnxruntime')},
    }


def _parity(graph: bytes, policy: Any) -> float:
    """Return the largest difference from PyTorch in standard deviations of the actions."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
    spec, rng = policy.spec, np.random.default_rng(0)
    mean = policy.normalizer.observation_mean.numpy()
    std = policy.normalizer.observation_std.numpy()
    scale = policy.normalizer.action_std.numpy().reshape(1, spec.horizon, -1)
    worst = 0.0
    for _ in range(SAMPLES):
        o = mean + std * rng.standard_normal((1, spec.observation_size), dtype=np.float32)
        z = rng.standard_normal((1, spec.noise_size), dtype=np.float32)
        chunk = session.run(['chunk'], {'observation': o, 'noise': z})[0]
        error = np.abs(chunk.astype(np.float64) - policy.act(o, z)) / scale
        worst = max(worst, float(np.max(error))) if np.isfinite(error).all() else float('nan')
        if worst != worst:
            break
    return worst
