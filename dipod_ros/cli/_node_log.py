# SPDX-License-Identifier: Apache-2.0
"""Why a node of a launch file failed, out of the log that the launch runner wrote."""

from __future__ import annotations

import re
from pathlib import Path

_FAILED = re.compile(r'(\[[^\]]+\]) failed with exit code')


def failure(log: Path) -> str:
    """Return what the first node that failed said last, or '' where the log does not tell."""
    try:
        lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return ''
    for i, line in enumerate(lines):
        found = _FAILED.match(line)
        if found:
            own = [text for text in lines[:i] if text.startswith(f'{found[1]} ')]
            return own[-1] if own else ''
    return ''
