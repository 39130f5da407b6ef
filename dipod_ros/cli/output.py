# SPDX-License-Identifier: Apache-2.0
"""Writes what a command says: results where `--json FILE` says, never half a file; plain text."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dipod_ros.errors import UserError


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE`, the same for every command that has results."""
    parser.add_argument('--json', metavar='FILE', help='write the results to FILE as JSON')


def printable(text: str, keep: str = '') -> str:
    """Return a text with `?` for what a terminal would obey; for words out of files."""
    return ''.join(c if c.isprintable() or c in keep else '?' for c in text)


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Make the folder of a file that is written inside; raises UserError where it cannot be."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def write_json(path: str | Path, results: dict[str, Any]) -> Path:
    """Write results to path in one step and return the path.

    numpy scalars and arrays and Paths are converted; NaN and infinity become null, because JSON
    has neither. Raises UserError when the folder cannot be made or written.
    """
    path = Path(path)
    text = json.dumps(_plain(results), indent=2, allow_nan=False) + '\n'
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; results are for everyone
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(
            f'cannot write {path}: {error.strerror}; give a path that can be written'
        ) from None
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, 'tolist'):  # numpy array or scalar
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, Path):
        return str(value)
    return value
