# SPDX-License-Identifier: Apache-2.0
"""Problems that last: each is told once when it begins and once when it is over. No ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable

# (is a problem, text): what is told, True when it begins and False when it is over.
Listener = Callable[[bool, str], None]


class Notices:
    """The problems at hand by key; tells a listener about changes only.

    A control loop meets a dead sensor 25 times a second; a log wants to hear of it twice.
    """

    def __init__(self, listener: Listener = lambda problem, text: None) -> None:
        """Take the listener; it is called from whichever thread notices."""
        self._listener = listener
        self._lock = threading.Lock()
        self._active: dict[str, str] = {}

    def set(self, key: str, text: str) -> None:
        """There is a problem `key`; told when it is new or its text changed."""
        if self._active.get(key) == text:
            return
        with self._lock:
            self._active[key] = text
        self._listener(True, text)

    def clear(self, key: str, text: str = '') -> None:
        """Problem `key` is over; told when there was one."""
        if key not in self._active:
            return
        with self._lock:
            was = self._active.pop(key, None)
        if was is not None:
            self._listener(False, text or f'over: {was}')

    def event(self, text: str) -> None:
        """Tell of something that happened once and does not last."""
        self._listener(True, text)

    def forget(self) -> None:
        """Drop all problems untold: whoever met them acts no more, and would not see them end."""
        with self._lock:
            self._active.clear()

    @property
    def active(self) -> list[str]:
        """The texts of all problems at hand."""
        with self._lock:
            return list(self._active.values())
