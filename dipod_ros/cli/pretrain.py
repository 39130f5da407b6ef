# SPDX-License-Identifier: Apache-2.0
"""`dipod pretrain`: behaviour cloning of a flow policy from demonstrations."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.cli.arguments import (
    add_threads_argument,
    parse_sampler,
    require_at_least,
    set_threads,
)
from dipod_ros.cli.output import add_json_argument, write_json
from dipod_ros.errors import UserError

HELP = 'clone a flow policy from demonstrations'
# Chunks per step, and where the encoder learns with the flow, and is what costs, flow samples per
# chunk too.
BATCH, PICTURE_BATCH, PICTURE_SAMPLES = 512, 64, 4
ENCODER_STEPS = 10_000

# Sizes of each network where the command line gives none.
SIZES = {
    'residual_mlp': {'width': 256, 'depth': 3},
    'dit': {'width': 128, 'depth': 4, 'heads': 4},
    'unet': {'width': 64, 'depth': 2},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('demos', help='dataset written by `dipod demos` or by the recorder')
    parser.add_argument(
        '--only-success', action='store_true', help='leave out the episodes that failed'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the checkpoint')
    parser.add_argument('--sampler', default='midpoint-5', help='default %(default)s')
    parser.add_argument(
        '--network', choices=tuple(SIZES), default='residual_mlp', help='default %(default)s'
    )
    for name in ('width', 'depth', 'heads'):
        given = ', '.join(f'{k} {s[name]}' for k, s in SIZES.items() if name in s)
        parser.add_argument(f'--{name}', type=int, help=f'default {given}')
    parser.add_argument('--steps', type=int, default=4500, help='default %(default)s')
    parser.add_argument(
        '--encoder-steps',
        type=int,
        metavar='STEPS',
        help='first teach the encoder where things are, and keep it (default '
        f'{ENCODER_STEPS} where the dataset knows, else 0: it learns with the flow)',
    )
    parser.add_argument(
        '--batch',
        type=int,
        help=f'default {BATCH}, where the encoder learns with the flow {PICTURE_BATCH}',
    )
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the checkpoint that is there'
    )
    add_threads_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train with a progress bar; a run that was interrupted goes on where it stopped."""
    import time
    from dataclasses import replace

    from tqdm import tqdm

    from dipod_ros.learning.demonstrations.dataset import Demonstrations
    from dipod_ros.learning.pretrain import PretrainConfig, pretrain
    from dipod_ros.policy.checkpoint import CheckpointError
    from dipod_ros.policy.writable import require_writable

    set_threads(args.threads)
    require_at_least(args, batch=1, seed=0)
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise CheckpointError(f'{out} exists already; choose another --out or add --overwrite')
    require_writable(out, folder=True)
    demonstrations = Demonstrations.load(args.demos)
    if args.only_success:
        demonstrations = demonstrations.successful()
    spec = replace(
        demonstrations.spec,
        sampler=parse_sampler(args.sampler),
        network=_network(args),
    )
    start = time.monotonic()
    encoders, taught = _teach_encoders(args, spec, demonstrations, out)
    end_to_end = bool(spec.images) and encoders is None
    config = PretrainConfig(
        steps=args.steps,
        batch=args.batch or (PICTURE_BATCH if end_to_end else BATCH),
        samples=PICTURE_SAMPLES if end_to_end else 1,
        seed=args.seed,
    )
    loss = 0.0
    with tqdm(total=config.steps, unit='step', desc='cloning') as bar:

        def progress(done: int, latest: float) -> None:
            nonlocal loss
            loss = latest
            bar.set_postfix(loss=f'{latest:.3f}', refresh=False)
            bar.update(done - bar.n)

        policy = pretrain(
            spec,
            demonstrations,
            config,
            encoders=encoders,
            state_file=out.parent / f'.{out.name}.pretrain',
            progress=progress,
        )
    manifest = policy.save(
        out,
        lineage={
            'method': 'behaviour cloning',
            'demonstrations': Path(args.demos).name,
            'episodes': len(demonstrations.success),
            'demonstrator_success': float(demonstrations.success.mean()),
            'steps': config.steps,
            'seed': config.seed,
            **taught,
        },
        overwrite=args.overwrite,
    )
    _encoder_state(out).unlink(missing_ok=True)
    print(f'{out}: {manifest.sha256[:12]}, {spec.sampler}, loss {loss:.3f}')
    if args.json:
        write_json(
            args.json,
            {
                'checkpoint': str(out),
                'sha256': manifest.sha256,
                'loss': loss,
                'steps': config.steps,
                **taught,
                'seconds': time.monotonic() - start,
            },
        )
    return 0


def _teach_encoders(args, spec, demonstrations, out: Path):
    """Return trained encoders and what the lineage says of them; None and {} where not wanted."""
    from tqdm import tqdm

    from dipod_ros.learning.locating import LocateConfig, locate

    knows = bool(spec.images) and bool(demonstrations.privileged)
    steps = args.encoder_steps
    if steps is None:
        steps = ENCODER_STEPS if knows else 0
    config = LocateConfig(steps=steps)
    if steps == 0:
        return None, {}
    with tqdm(total=steps, unit='step', desc='looking') as bar:

        def progress(done: int, latest: float) -> None:
            bar.set_postfix(loss=f'{latest:.3f}', refresh=False)
            bar.update(done - bar.n)

        encoders, located = locate(
            spec,
            demonstrations,
            config,
            args.seed,
            state_file=_encoder_state(out),
            progress=progress,
        )
    print(f'held-out pictures: {located}')
    return encoders, {'encoder_steps': steps, 'located': str(located)}


def _encoder_state(out: Path) -> Path:
    return out.parent / f'.{out.name}.encoder'


def _network(args: argparse.Namespace) -> dict[str, str | int]:
    sizes = SIZES[args.network]
    given = {k: v for k in ('width', 'depth', 'heads') if (v := getattr(args, k)) is not None}
    if given.keys() - sizes.keys():
        raise UserError(f'network {args.network} has no --heads')
    return {'kind': args.network, **sizes, **given}
