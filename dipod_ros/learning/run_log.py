# SPDX-License-Identifier: Apache-2.0
"""The metrics of a training run, written and read: metrics.jsonl and TensorBoard. No ROS.

run_dir/metrics.jsonl          one line per update
run_dir/tensorboard/           the same, for TensorBoard
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dipod_ros.errors import UserError

METRICS = 'metrics.jsonl'


class RunLog:
    """Appends one line per update; for one process at a time."""

    def __init__(self, run_dir: Path, tensorboard: bool) -> None:
        """Go on with the log in `run_dir`, which must exist; raises OSError."""
        self.file = Path(run_dir) / METRICS
        if self.file.is_file() and not self.file.read_bytes().endswith(b'\n'):
            # A kill cut the last line short: the next one must not continue it.
            with open(self.file, 'a', encoding='utf-8') as handle:
                handle.write('\n')
        self._board = _open_board(Path(run_dir) / 'tensorboard') if tensorboard else None

    def record(self, metrics: dict[str, float], update: int) -> None:
        """Write what an update measured; raises UserError when it cannot be written."""
        # JSON has no NaN and no infinity.
        plain = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        try:
            with open(self.file, 'a', encoding='utf-8') as handle:
                handle.write(json.dumps(plain) + '\n')
        except OSError as error:
            raise UserError(f'cannot write {self.file}: {error.strerror or error}') from error
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f'dipod/{name}', value, update)
            self._board.flush()

    def close(self) -> None:
        """Flush."""
        if self._board is not None:
            self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, one dict per update; a line cut short by a kill is left out."""
    file = Path(run_dir) / METRICS
    if not file.is_file():
        raise UserError(f'{run_dir} holds no {METRICS}; is it the folder of a run?')
    rows = []
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional dependency: metrics.jsonl has the same numbers
        return None
    return SummaryWriter(str(folder))
