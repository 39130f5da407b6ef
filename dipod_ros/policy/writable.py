# SPDX-License-Identifier: Apache-2.0
"""Whether a result can be written, asked before the work that makes it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dipod_ros.errors import UserError


def require_writable(path: str | Path, folder: bool = False) -> None:
    """Raise UserError where a file, or with `folder` a folder, could not be written later.

    Nothing is left behind, and folders that are missing are not made.
    """
    path = Path(path)
    try:
        if not folder and path.is_dir():
            raise UserError(f'cannot write {path}: it is a folder')
        if folder and path.exists() and not path.is_dir():
            raise UserError(f'cannot write {path}: it is a file, and a folder is to be there')
        above = next(p for p in path.absolute().parents if p.exists())
        # Tried, because permissions say little: of root, of read-only and of other file systems.
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error
