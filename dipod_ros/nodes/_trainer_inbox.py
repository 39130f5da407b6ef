# SPDX-License-Identifier: Apache-2.0
"""Replay payloads between the executor's thread, which hears them, and the one that learns."""

from __future__ import annotations

import threading
from collections import deque

from dipod_ros.policy.decision import MAX_BYTES

# Payloads waiting for the worker; an update of 3 s at 500 decisions/s leaves 1500 behind.
MAX_WAITING = 50_000
# They are a kilobyte or so each. Whatever else is published there must not fill the memory.
MAX_WAITING_BYTES = 256 << 20


class Inbox:
    """The newest payloads, bounded in number and in bytes; the oldest make room."""

    def __init__(self, max_payloads: int = MAX_WAITING, max_bytes: int = MAX_WAITING_BYTES) -> None:
        """Take the bounds on what waits."""
        self._payloads: deque[bytes] = deque()
        self._max_payloads, self._max_bytes = max_payloads, max_bytes
        self._lock = threading.Lock()
        self.waiting_bytes = 0
        self.oversized = 0  # refused: no decision is as large
        self.dropped = 0  # made room for newer ones

    def admits(self, size: int) -> bool:
        """Tell whether a payload of `size` bytes may be one; one that may not is counted."""
        fits = size <= MAX_BYTES
        self.oversized += not fits
        return fits

    def put(self, payload: bytes) -> None:
        """Keep a payload, the newest."""
        with self._lock:
            self._payloads.append(payload)
            self.waiting_bytes += len(payload)
            while len(self._payloads) > self._max_payloads or self.waiting_bytes > self._max_bytes:
                self.waiting_bytes -= len(self._payloads.popleft())
                self.dropped += 1

    def take(self) -> bytes | None:
        """Return the oldest payload that waits, None when none does."""
        with self._lock:
            if not self._payloads:
                return None
            payload = self._payloads.popleft()
            self.waiting_bytes -= len(payload)
            return payload
