# SPDX-License-Identifier: Apache-2.0
"""On which cores, and how urgently, the operating system runs this process. Knows no node.

Both are Linux's, per thread, and may be forbidden; then the process runs as it would without, and
says so once.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from dipod_ros.errors import UserError

_PR_SET_TIMERSLACK = 29


def check_cores(cores: Sequence[int]) -> None:
    """Raise UserError for cores that this machine does not have, or that are named twice."""
    count = os.cpu_count() or 1
    if len(set(cores)) != len(cores) or any(not 0 <= c < count for c in cores):
        raise UserError(
            f'cpu_affinity is {list(cores)}; name cores of 0 to {count - 1}, each once, or none'
        )


def use_cores(cores: Sequence[int]) -> str:
    """Bind all threads of this process, and those that they start, to `cores`; none is no change.

    Returns why that did not work, '' when it did. Raises UserError as `check_cores` does.
    """
    check_cores(cores)
    if not cores:
        return ''
    try:
        for thread in Path('/proc/self/task').iterdir():
            try:
                os.sched_setaffinity(int(thread.name), cores)
            except ProcessLookupError:
                continue  # it ended meanwhile
    except (AttributeError, OSError) as error:
        return (
            f'cpu_affinity {list(cores)} is not possible here ({_reason(error)}): any core is used'
        )
    return ''


class RealTimePriority:
    """Runs chosen threads with SCHED_FIFO; what they start is ordinary again."""

    def __init__(self, priority: int, tell: Callable[[str], None]) -> None:
        """Take the priority, 0 for none, and who is told, once, when it is not permitted."""
        self._priority = priority
        self._tell = tell
        self._lock = threading.Lock()
        self._told = False
        self.policy = 'ordinary'  # that the last thread got

    def raise_this_thread(self) -> None:
        """Give the calling thread the priority, where that is permitted."""
        if not self._priority:
            return
        try:
            # Threads of libraries and builders of policies must not inherit it: they would keep
            # everything else on their core waiting.
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(self._priority))
        except (AttributeError, OSError) as error:
            with self._lock:
                news, self._told = not self._told, True
            if news:
                self._tell(
                    f'realtime_priority {self._priority} is not permitted ({_reason(error)}): '
                    'ordinary priority is used; rtprio in limits.conf or CAP_SYS_NICE allows it'
                )
            return
        self.policy = f'SCHED_FIFO {self._priority}'


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or type(error).__name__


def sharpen_sleep() -> None:
    """Let the calling thread's sleeps end on time: Linux rounds them up by 50 us otherwise."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
