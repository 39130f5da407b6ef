# SPDX-License-Identifier: Apache-2.0
"""Owns how much of a text file is read: settings are kilobytes, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from dipod_ros.errors import UserError

MAX_BYTES = 1 << 20


def read_text(path: str | Path, what: str = '', max_bytes: int = MAX_BYTES) -> str:
    """Return a UTF-8 text; `what` it is stands before its path in errors.

    Raises UserError when it cannot be read, is no text, or is larger than `max_bytes`, of which no
    byte more than one is read: a device or a pipe has no size.
    """
    named = f'{what} {path}'.strip()
    try:
        with open(Path(path).expanduser(), 'rb') as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f'cannot read {named}: {getattr(error, "strerror", None) or error}'
        ) from error
    if len(content) > max_bytes:
        raise UserError(f'{named} is larger than {max_bytes} bytes; it is no file of settings')
    try:
        return content.decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{named} is no UTF-8 text: {error}') from error
