# SPDX-License-Identifier: Apache-2.0
"""`dipod inspect`: what a checkpoint is, and whether its weights are the ones it promises."""

from __future__ import annotations

import argparse

from dipod_ros.cli.arguments import find_checkpoint
from dipod_ros.cli.output import add_json_argument, printable, write_json

HELP = 'print what a checkpoint is and verify its weights'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('checkpoint', help='a shipped name or a folder')
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and print; needs no torch."""
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.policy.image import weights_of

    checkpoint = ckpt.load(find_checkpoint(args.checkpoint))
    manifest, spec = checkpoint.manifest, checkpoint.spec
    parameters = sum(v.size for k, v in checkpoint.weights.items() if k.startswith('net.'))
    limits = spec.limits
    lines = [
        f'{manifest.path}',
        f'  kind        {manifest.kind}, version {manifest.version}',
        f'  sha256      {manifest.sha256} (verified)',
        f'  task        {spec.task} on {spec.robot}',
        f'  network     {dict(spec.network)}, {parameters} parameters',
        f'  sampler     {spec.sampler}',
        f'  chunk       {spec.horizon} steps of {spec.control_period_s} s, {spec.action} (rad)',
        f'  golden      {"recorded" if manifest.golden is not None else "none"}',
        '  observation',
    ]
    for s in spec.streams:
        topic = f' on {s.topic}' if s.topic else ''
        lines.append(f'    {s.name:16} {s.size:3}  {s.source}{topic}, stale after {s.max_age_s} s')
        if s.image is not None:
            encoder = dict(s.image.encoder)
            lines.append(
                f'{"":25}{s.image.width}x{s.image.height} {s.image.encoding}, {encoder}, '
                f'{sum(v.size for v in weights_of(checkpoint.weights, s.name).values())} parameters'
            )
    lines.append('  joints          lower    upper  velocity  acceleration  (rad, s)')
    for i, joint in enumerate(spec.joints):
        lines.append(
            f'    {joint:12} {limits.lower[i]:8.3f} {limits.upper[i]:8.3f} '
            f'{limits.velocity[i]:9.3f} {limits.acceleration[i]:13.3f}'
        )
    for title, values in (('lineage', manifest.lineage), ('metrics', manifest.metrics)):
        if values:
            lines.append(f'  {title}')
            lines += [f'    {key:16} {value}' for key, value in values.items()]
    print('\n'.join(map(printable, lines)))
    if args.json:
        write_json(
            args.json,
            {
                'path': str(manifest.path),
                'kind': manifest.kind,
                'version': manifest.version,
                'sha256': manifest.sha256,
                'parameters': parameters,
                'spec': spec.to_dict(),
                'lineage': dict(manifest.lineage),
                'metrics': dict(manifest.metrics),
            },
        )
    return 0
