# SPDX-License-Identifier: Apache-2.0
"""Arguments and look-ups that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.resources import share_dir


def parse_sampler(text: str) -> SamplerSpec:
    """Read a sampler written as SOLVER-STEPS, for example midpoint-5 or euler-1."""
    solver, _, steps = text.partition('-')
    if not steps.isdigit():
        raise UserError(f'sampler {text!r}: write SOLVER-STEPS, such as midpoint-5 or euler-1')
    return SamplerSpec(solver, int(steps))


def find_checkpoint(name_or_path: str) -> Path:
    """Return the folder of a shipped model or of any path: on the command line the user decides.

    Nodes are stricter: they take checkpoints from their model folders only.
    """
    given = Path(name_or_path).expanduser()
    if given.is_dir():
        return ckpt.read_manifest(given).path
    return ckpt.resolve(name_or_path, [share_dir() / 'models'])


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--threads N` for torch."""
    parser.add_argument(
        '--threads', type=int, default=1, help='threads of torch (default %(default)s)'
    )


def set_threads(count: int) -> None:
    """Set torch's threads; one by default, since busy shared cores make more threads crawl."""
    import torch

    if count < 1:
        raise UserError(f'--threads must be at least 1, got {count}')
    torch.set_num_threads(count)
