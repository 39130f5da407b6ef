# SPDX-License-Identifier: Apache-2.0
"""The processes that share one run of the tests: how many, what is each one's own, and turns.

pytest-xdist starts them; without it there is one process, and nobody to take turns with.
"""

import fcntl
import os
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

FOLDER = 'dipod_ros_shared'  # the key under which a worker is told of the folder


def domain():
    """Return a ROS domain of this process's own: 1..100, clear of ephemeral ports."""
    worker = os.environ.get('PYTEST_XDIST_WORKER')  # 'gw0', 'gw1', ...; their parent is the same
    number = os.getppid() + int(worker[2:]) if worker else os.getpid()
    return number % 100 + 1


def tell(node, stash, key):
    """Tell a worker that is about to start of a folder that all workers of this run share."""
    if key not in stash:
        stash[key] = tempfile.TemporaryDirectory(prefix='dipod_test_')
        node.config.add_cleanup(stash[key].cleanup)
    node.workerinput[FOLDER] = stash[key].name


def shared_folder(config):
    """Return the folder that this worker was told of; None where there are no workers."""
    told = getattr(config, 'workerinput', {}).get(FOLDER)
    return told and Path(told)


def count():
    """Return how many processes to share a run among: many tests wait more than they compute."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def give_way():
    """Let whoever has not done so run first, wherever both want a core."""
    os.nice(10)


class Turns:
    """Tests run beside each other; whoever runs another gives way to one that must be punctual.

    A process cannot take its priority back, so it keeps it until its first other test. A punctual
    test that comes later than that has the machine for itself. There is one at a time.

    Locks on files, which the kernel drops with their process. Whoever wants the machine keeps the
    door while the others leave, so that nobody new comes in and no waiting is endless.
    """

    def __init__(self, folder, give_way=give_way):
        self._turn, self._door, self._room = (
            open(folder / name, 'w')  # noqa: SIM115
            for name in ('turn', 'door', 'room')
        )
        self._give_way, self._gave_way = give_way, False

    @contextmanager
    def take(self, punctual):
        """Wait for the turn of one test and keep it meanwhile."""
        with ExitStack() as taken:
            if punctual:
                taken.enter_context(_locked(self._turn, fcntl.LOCK_EX))
                if self._gave_way:
                    taken.enter_context(_locked(self._door, fcntl.LOCK_EX))
                    taken.enter_context(_locked(self._room, fcntl.LOCK_EX))
            else:
                if not self._gave_way:
                    self._give_way()
                    self._gave_way = True
                with _locked(self._door, fcntl.LOCK_SH):
                    taken.enter_context(_locked(self._room, fcntl.LOCK_SH))
            yield


@contextmanager
def _locked(file, kind):
    fcntl.flock(file, kind)
    try:
        yield
    finally:
        # In so many words, not by closing: a child that was forked meanwhile has it open.
        fcntl.flock(file, fcntl.LOCK_UN)
