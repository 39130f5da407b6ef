# SPDX-License-Identifier: Apache-2.0
"""The folders that checkpoints may come from, as parameters name them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dipod_ros.errors import UserError


def folder_of(given: str, parameter: str) -> Path:
    """Return the folder that a parameter names; raises UserError for none, and for all there is.

    A name that is empty, of a launch argument that was left empty perhaps, would be the working
    directory, whatever that is.
    """
    if not given.strip():
        raise UserError(
            f'{parameter} holds an empty name: name a folder (. is the working directory), or '
            f'leave {parameter} out'
        )
    try:
        folder = Path(given).expanduser()
        whole = folder.resolve() == folder.resolve().parent
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, no such user
        raise UserError(f'{parameter}: {given[:80]!r} names no folder: {error}') from error
    if whole:
        raise UserError(f'{parameter}: {given!r} is everything on this machine; name one folder')
    return folder


def folders_of(given: Iterable[str], parameter: str = 'model_dirs') -> list[Path]:
    """Return the folders that a list names; raises UserError as `folder_of`."""
    return [folder_of(name, parameter) for name in given]
