# SPDX-License-Identifier: Apache-2.0
"""Built engines kept on disk, each with a JSON beside it that says what it is. No GPU needed here.

A plan fits one graph, one version of TensorRT, one GPU: all of that is in its key, weights are not,
since they are put in by refitting. Files appear whole (written beside, renamed), one writer at a
time (a lock that the kernel drops with its process). What fails to load is set aside under another
name, so that it is never loaded again and can still be looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 4 << 30  # all plans together; the least recently used go first
MAX_BAD = 3  # files set aside that are kept
LOCK_TIMEOUT_S = 60.0


def plan_key(facts: Mapping[str, Any]) -> str:
    """Return the key of a plan: a hash of the facts, which must be plain JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class PlanCache:
    """A folder of plans by key; several processes may use it at once."""

    def __init__(self, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Take the folder, by default $XDG_CACHE_HOME/dipod_ros/plans, and its size limit."""
        if folder is None:
            root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
            folder = Path(root).expanduser() / 'dipod_ros' / 'plans'
        self.folder, self.max_bytes = folder, max_bytes

    def read(self, key: str) -> bytes | None:
        """Return a plan, None when there is none or it is not what its JSON says.

        One that was cut short or altered is set aside.
        """
        try:
            with self._locked():
                plan = self._plan(key).read_bytes()
                try:
                    stated = json.loads(self._sidecar(key).read_text(encoding='utf-8'))
                    whole = stated['sha256'] == hashlib.sha256(plan).hexdigest()
                except (OSError, ValueError, KeyError, TypeError):
                    whole = False
                if not whole:
                    self._set_aside(key)
                    return None
                os.utime(self._plan(key))  # used just now
                return plan
        except OSError:
            return None

    def write(self, key: str, plan: bytes, facts: Mapping[str, Any]) -> bool:
        """Keep a plan with its facts; return whether that worked.

        A folder that cannot be written is no error, only a longer start next time.
        """
        if len(plan) > self.max_bytes:
            return False
        sidecar = {
            'sha256': hashlib.sha256(plan).hexdigest(),
            'bytes': len(plan),
            'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            **facts,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                # The JSON first: a plan without one is not read, a JSON without a plan is nothing.
                self._put(self._sidecar(key), json.dumps(sidecar, indent=2).encode())
                self._put(self._plan(key), plan)
                self._evict(keep=key)
            return True
        except OSError:
            return False

    def set_aside(self, key: str) -> None:
        """Rename a plan that does not work, so that it is not loaded again."""
        with contextlib.suppress(OSError), self._locked():
            self._set_aside(key)

    def read_timing(self, name: str) -> bytes:
        """Return the timing cache kept under a name, empty when there is none."""
        try:
            return (self.folder / f'{name}.timing').read_bytes()
        except OSError:
            return b''

    def write_timing(self, name: str, timing: bytes) -> None:
        """Keep a timing cache; the last writer wins."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._put(self.folder / f'{name}.timing', timing)

    def keys(self) -> list[str]:
        """Return the keys of all plans, least recently used first."""
        return [p.stem for p in self._by_use()]

    def _plan(self, key: str) -> Path:
        return self.folder / f'{key}.plan'

    def _sidecar(self, key: str) -> Path:
        return self.folder / f'{key}.json'

    def _by_use(self) -> list[Path]:
        return sorted(self.folder.glob('*.plan'), key=lambda p: (p.stat().st_mtime_ns, p.name))

    def _set_aside(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._plan(key), self.folder / f'{key}.plan.bad')
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._sidecar(key), self.folder / f'{key}.json.bad')
        bad = sorted(self.folder.glob('*.plan.bad'), key=lambda p: p.stat().st_mtime_ns)
        for old in bad[:-MAX_BAD]:
            old.unlink(missing_ok=True)
            old.with_name(old.name.replace('.plan.', '.json.')).unlink(missing_ok=True)

    def _evict(self, keep: str) -> None:
        plans = self._by_use()
        total = sum(p.stat().st_size for p in plans)
        for plan in plans:
            if total <= self.max_bytes:
                break
            if plan.stem != keep:
                total -= plan.stat().st_size
                plan.unlink()
                self._sidecar(plan.stem).unlink(missing_ok=True)

    def _put(self, path: Path, content: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self.folder, suffix='.part')
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; raises OSError when it is not there or not given in time."""
        handle = os.open(self.folder / '.lock', os.O_RDWR | os.O_CREAT, 0o600)
        try:
            give_up = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(0.005)
            yield
        finally:
            os.close(handle)  # which releases the lock
