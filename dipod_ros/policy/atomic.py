# SPDX-License-Identifier: Apache-2.0
"""Writes a file or a folder of files whole or not at all, whenever the writer dies.

Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

# linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_file(path: Path, payload: bytes) -> None:
    """Write a file, in place of the one that is there.

    It is written and flushed under a hidden name beside it, then renamed. What an earlier writer
    left when it was killed is cleared. Raises OSError; the old file is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _aside(path)
    try:
        _write(staging, payload)
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    _clear_leftovers(path)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` (contents by plain name) as `folder`, in place of the folder that is there.

    They are written and flushed under a hidden name beside it, then renamed. What an earlier
    writer left when it was killed is cleared. Raises OSError; the old folder is still there then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that two writers cannot mix their files.
    staging = _aside(folder)
    staging.mkdir()
    try:
        for name, payload in files.items():
            _write(staging / name, payload)
        if folder.exists():
            _replace(folder, staging)
        else:
            os.rename(staging, folder)
        descriptor = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _clear_leftovers(folder)


def _aside(path: Path) -> Path:
    return path.parent / f'.{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}'


def _write(path: Path, payload: bytes) -> None:
    with open(path, 'wb') as handle:
        handle.write(payload)
        handle.flush()
        os.fsync(handle.fileno())


def _replace(folder: Path, staging: Path) -> None:
    try:
        _exchange(staging, folder)
        retired = staging
    except OSError:
        # This file system cannot swap two folders in one call: the old one steps aside first, and
        # a kill just between the two calls leaves no folder under the name.
        retired = _aside(folder)
        os.rename(folder, retired)
        try:
            os.rename(staging, folder)
        except BaseException:
            os.rename(retired, folder)
            raise
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one call (Linux, most file systems); raises OSError where it cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError('the C library has no renameat2') from error
    paths = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _clear_leftovers(path: Path) -> None:
    """Remove what writers of this path left that are no longer alive."""
    pattern = re.compile(re.escape(f'.{path.name}.') + r'(\d+)-[0-9a-f]{8}')
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _alive(int(match.group(1))):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
