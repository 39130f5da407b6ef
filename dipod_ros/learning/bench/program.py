# SPDX-License-Identifier: Apache-2.0
"""Which program made a result: its version, and its commit where it runs from a checkout."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import dipod_ros

# Of results that an older program wrote, which did not say.
UNKNOWN = 'unknown'


@functools.cache
def program() -> str:
    """Return e.g. '0.1.0 1a2b3c4d'; with '+' after a commit that files were changed since.

    Only the version where the package is no part of a checkout, or git is not there.
    """
    package = Path(dipod_ros.__file__).resolve().parent
    try:
        # From a folder that another project keeps in git the commit would be that project's.
        _git(package, 'ls-files', '--error-unmatch', '__init__.py')
        commit = _git(package, 'rev-parse', '--short=8', 'HEAD').strip()
        changed = _git(package, 'status', '--porcelain', '--untracked-files=no', '.').strip()
    except (OSError, subprocess.SubprocessError):
        return dipod_ros.__version__
    return f'{dipod_ros.__version__} {commit}{"+" if changed else ""}'


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ['git', '-C', str(folder), *arguments],
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip
