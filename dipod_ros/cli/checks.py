# SPDX-License-Identifier: Apache-2.0
"""What is asked of the arguments of every command. Loads nothing: `dipod doctor` needs it too."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.policy.writable import require_writable

# Of what matplotlib writes; it takes the format from the ending.
PICTURES = ('.png', '.pdf', '.svg')


def require_finite(args: argparse.Namespace) -> None:
    """Raise UserError where an argument is NaN, which is below and above nothing, or infinite."""
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'--{name.replace("_", "-")} must be a finite number, got {value}')


def require_outputs(args: argparse.Namespace) -> None:
    """Raise UserError where `--json`, `--plot` or `--video` could not be written after the work."""
    for name in ('json', 'plot', 'video'):
        path = getattr(args, name, None)
        if path is not None:
            require_writable(path)
    plot = getattr(args, 'plot', None)
    if plot is not None and Path(plot).suffix not in PICTURES:
        raise UserError(f'--plot {plot}: name a file that ends in {", ".join(PICTURES)}')
