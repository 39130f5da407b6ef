# SPDX-License-Identifier: Apache-2.0
"""Replaces the acting policy while it acts: built and checked aside, taken at a boundary. No ROS.

    request -> building (thread) -> ready -> taken at a chunk boundary
                       or failed: the old policy was never touched
    offer (built already) --------> ready

Only the newest request or offer counts: one that waits is dropped for it, one that is being built
is finished and then discarded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest

P = TypeVar('P')

IDLE, BUILDING, READY, FAILED = 'idle', 'building', 'ready', 'failed'
HISTORY = 32


@dataclass(frozen=True)
class SwapRecord:
    """One request and what became of it."""

    sha256: str
    path: str
    source: str  # parameter | reload | trainer | approval | rollback | alarm
    result: str  # active | failed | superseded | refused
    reason: str
    build_s: float


@dataclass(frozen=True)
class _Request:
    manifest: Manifest
    source: str
    why: str = ''  # goes into the record when the policy comes to act


class HotSwap(Generic[P]):
    """Builds requested policies on a thread of its own and hands over the newest that works."""

    def __init__(
        self,
        build: Callable[[Manifest], P],
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the builder (load, warm up, golden check; it raises UserError) and a clock.

        `on_change` is called after every change of state, from whichever thread made it; after
        `take` only by `tell`, because whoever takes is in a hurry.
        """
        self._build = build
        self._clock = clock
        self._on_change = on_change
        self._wake = threading.Condition()
        self._newest: _Request | None = None
        self._waiting: _Request | None = None
        self._untold = False
        self._dropped_for = ''  # why what is being built is no longer wanted
        self._ready: tuple[_Request, P, float] | None = None
        self._closed = False
        self.requested: Manifest | None = None  # the newest request, until it acts
        self.state = IDLE
        self.error = ''
        self.history: deque[SwapRecord] = deque(maxlen=HISTORY)
        self.count = 0  # policies taken
        self._thread = threading.Thread(target=self._run, name='hot_swap', daemon=True)
        self._thread.start()

    def request(self, manifest: Manifest, source: str) -> None:
        """Ask for a policy; returns at once."""
        request = _Request(manifest, source)
        with self._wake:
            if self._closed:
                return
            self._supersede('a newer request came')
            self._newest = self._waiting = request
            self.requested, self.state, self.error = manifest, BUILDING, ''
            self._wake.notify_all()
        self._on_change()

    def offer(self, policy: P, manifest: Manifest, source: str, why: str = '') -> None:
        """Have a policy that is built already taken at the next boundary."""
        request = _Request(manifest, source, why)
        with self._wake:
            if self._closed:
                return
            self._supersede(f'{source} came')
            self._newest, self._ready = request, (request, policy, 0.0)
            self.requested, self.state, self.error = manifest, READY, ''
        self._on_change()

    def cancel(self, reason: str) -> bool:
        """Give up what is requested; return whether there was anything."""
        with self._wake:
            if self._newest is None:
                return False
            self._supersede(reason)
            self._newest, self.requested, self.state = None, None, IDLE
        self._on_change()
        return True

    @property
    def pending_source(self) -> str:
        """Who asked for what is being built or ready; '' when nothing is."""
        newest = self._newest
        return '' if newest is None else newest.source

    def note(self, manifest: Manifest, source: str, result: str, reason: str) -> None:
        """Put something into the history that never came to be requested."""
        with self._wake:
            self._note(_Request(manifest, source), result, reason, 0.0)

    def take(self, install: Callable[[P], None]) -> bool:
        """Hand the policy that is ready to `install`, once; call it where a chunk ends.

        `tell` is to follow when the command is out.
        """
        if self._ready is None:  # read without the lock: this runs for every chunk
            return False
        with self._wake:
            if self._ready is None:
                return False
            request, policy, build_s = self._ready
            self._newest = self._ready = None
            install(policy)
            self.count += 1
            self.requested, self.state = None, IDLE
            self._note(request, 'active', request.why, build_s)
            self._untold = True
        return True

    def tell(self) -> None:
        """Tell of a policy that was taken, if that has not been done yet."""
        if self._untold:
            self._untold = False
            self._on_change()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; a build that is under way is waited for."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._waiting is None and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                request, self._waiting = self._waiting, None
            start = self._clock()
            policy, reason = None, ''
            try:
                policy = self._build(request.manifest)
            except UserError as error:
                reason = str(error)
            except Exception as error:  # a bug in a backend must not take the server down
                reason = f'{type(error).__name__}: {error}'
            self._finish(request, policy, reason, self._clock() - start)

    def _finish(self, request: _Request, policy: P | None, reason: str, build_s: float) -> None:
        with self._wake:
            if request is not self._newest:
                self._note(request, 'superseded', reason or self._dropped_for, build_s)
                return
            if policy is None:
                self._newest = None
                self.requested, self.state, self.error = None, FAILED, reason
                self._note(request, 'failed', reason, build_s)
            else:
                self._ready = (request, policy, build_s)
                self.state = READY
        self._on_change()

    def _supersede(self, reason: str) -> None:
        """Drop what waits or is ready; what is being built finds out when it is."""
        if self._waiting is not None:
            self._note(self._waiting, 'superseded', reason, 0.0)
        if self._ready is not None:
            self._note(self._ready[0], 'superseded', reason, self._ready[2])
        self._waiting = self._ready = None
        self._dropped_for = reason

    def _note(self, request: _Request, result: str, reason: str, build_s: float) -> None:
        manifest = request.manifest
        self.history.append(
            SwapRecord(manifest.sha256, str(manifest.path), request.source, result, reason, build_s)
        )
