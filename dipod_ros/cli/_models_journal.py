# SPDX-License-Identifier: Apache-2.0
"""What of `dipod models` is done for a task, on disk: a run that was killed goes on after it.

The journal is removed when everything is done: the next run makes everything again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dipod_ros.errors import UserError
from dipod_ros.policy.atomic import write_file

CHUNK = 1 << 20


class Journal:
    """Finished commands with a digest of what each made, and finished measurements."""

    def __init__(self, file: Path) -> None:
        """Read what an earlier run left; a file that cannot be read counts as none."""
        self._file = file
        self._done: dict[str, str] = {}
        self._figures: dict[str, Any] = {}
        try:
            kept = json.loads(file.read_text(encoding='utf-8'))
            self._done, self._figures = dict(kept['done']), dict(kept['figures'])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def is_done(self, command: str, made: Path) -> bool:
        """Return whether this command was finished and what it made is still there unchanged."""
        return command in self._done and self._done[command] == _digest(made)

    def note(self, command: str, made: Path) -> None:
        """Write down that a command is finished."""
        self._done[command] = _digest(made)
        self._write()

    def forget(self, commands: list[str]) -> None:
        """Take back commands whose input is made anew."""
        for command in commands:
            self._done.pop(command, None)

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a figure (plain JSON values), measured now unless it was before."""
        if name not in self._figures:
            self._figures[name] = measure()
            self._write()
        return self._figures[name]

    def remove(self) -> None:
        """Forget everything: all is done."""
        self._file.unlink(missing_ok=True)

    def _write(self) -> None:
        text = json.dumps({'done': self._done, 'figures': self._figures}, indent=1)
        try:
            write_file(self._file, text.encode())
        except OSError as error:
            raise UserError(f'cannot write {self._file}: {error.strerror or error}') from error


def _digest(made: Path) -> str:
    """Return the sha256 of a file, or of the files that a checkpoint's folder must have."""
    from dipod_ros.policy.checkpoint import MANIFEST_FILE, WEIGHTS_FILE

    files = [made / MANIFEST_FILE, made / WEIGHTS_FILE] if made.is_dir() else [made]
    sha = hashlib.sha256()
    try:
        for file in files:
            with open(file, 'rb') as handle:
                while block := handle.read(CHUNK):
                    sha.update(block)
    except OSError:
        return 'missing'
    return sha.hexdigest()
