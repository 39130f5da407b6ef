# SPDX-License-Identifier: Apache-2.0
"""Arguments and look-ups that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.resources import share_dir

# As the nodes' parameters: torch ends in a crash where there cannot be so many.
MAX_THREADS = 256


def parse_sampler(text: str) -> SamplerSpec:
    """Read a sampler written as SOLVER-STEPS, for example midpoint-5 or euler-1."""
    return SamplerSpec.parse(text)


def require_at_least(args: argparse.Namespace, **least: float) -> None:
    """Raise UserError where an argument is below its least value, or no number; None is left out.

    `require_at_least(args, episodes=1, seed=0)`
    """
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise UserError(f'--{name.replace("_", "-")} must be at least {low}, got {value}')


def find_checkpoint(name_or_path: str) -> Path:
    """Return the folder of a shipped model or of any path: on the command line the user decides.

    Nodes are stricter: they take checkpoints from their model folders only. Raises UserError where
    there is none, and for the folder of a run, which holds many.
    """
    given = Path(name_or_path).expanduser()
    if (given / 'run.json').is_file():
        kept = sorted(p for p in (given / 'checkpoints').glob('v*') if p.is_dir())
        hint = f'give one of its checkpoints, such as {kept[-1]}' if kept else 'without checkpoints'
        raise UserError(f'{given} is a run: {hint}')
    if given.is_dir():
        return ckpt.read_manifest(given).path
    return ckpt.resolve(name_or_path, [share_dir() / 'models'])


def require_simulated(task: str) -> None:
    """Raise UserError for the task of a policy that was recorded on a robot: none here can tell."""
    from dipod_ros.sim.external.registry import EXTERNAL
    from dipod_ros.sim.tasks.registry import task_names

    if task not in task_names() and task not in EXTERNAL:
        raise UserError(
            f'task {task!r} is not simulated here (simulated: {", ".join(task_names())}): eval, '
            'finetune, distill and drift need that; on the arm use the trainer'
        )


def require_teacher(path: Path) -> None:
    """Raise UserError where a checkpoint is a student, which nothing can be made of."""
    if ckpt.read_manifest(path).kind == 'student':
        raise UserError(f'{path} is a student: give its teacher')


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--threads N` for torch."""
    parser.add_argument(
        '--threads', type=int, default=1, help='threads of torch (default %(default)s)'
    )


def set_threads(count: int) -> None:
    """Set torch's threads; one by default, since busy shared cores make more threads crawl."""
    import torch

    if not 1 <= count <= MAX_THREADS:
        raise UserError(f'--threads must be within 1..{MAX_THREADS}, got {count}')
    torch.set_num_threads(count)
