# SPDX-License-Identifier: Apache-2.0
"""The seed of a training run that nobody gave one: drawn when it begins, kept when it goes on."""

from __future__ import annotations

import secrets
from pathlib import Path

from dipod_ros.learning.run_folder import STATE
from dipod_ros.learning.state_io import load_info


def seed_of_run(run_dir: Path, seed: int) -> int:
    """Return `seed`; a negative one asks for that of the run in `run_dir`, or for a fresh one.

    A run keeps its seed with its state, so one that ended before its first update has none. For one
    process: several would draw several. Raises UserError when the state cannot be read.
    """
    if seed >= 0:
        return seed
    state = Path(run_dir) / STATE
    kept = load_info(state).get('seed') if state.is_file() else None
    return kept if isinstance(kept, int) and kept >= 0 else secrets.randbits(31)
