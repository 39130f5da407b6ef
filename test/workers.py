# SPDX-License-Identifier: Apache-2.0
"""The processes that share one run of the tests: what is each one's own, and turns at the machine.

pytest-xdist starts them; without it there is one process, and nobody to take turns with.
"""

import fcntl
import os
import tempfile
from contextlib import contextmanager
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


class Turns:
    """Tests run beside each other, but for those that need the machine: these run alone.

    Two locks on files, which the kernel drops with their process. Whoever wants to be alone keeps
    the door while the others leave, so that nobody new comes in and no waiting is endless.
    """

    def __init__(self, folder):
        self._door = open(folder / 'door', 'w')  # noqa: SIM115
        self._room = open(folder / 'room', 'w')  # noqa: SIM115
        self._kept = False

    @contextmanager
    def take(self, alone, next_alone=False):
        """Wait for the turn of one test and keep it meanwhile.

        One that is alone is followed at once by the next of its process that has to be: for each
        to wait until the others have done one more of theirs would cost more than it gives them.
        """
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            if not self._kept:
                fcntl.flock(self._door, kind)
                fcntl.flock(self._room, kind)
            if not alone:
                fcntl.flock(self._door, fcntl.LOCK_UN)
            self._kept = alone and next_alone
            yield
        finally:
            if not self._kept:
                # In so many words, not by closing: a child that was forked meanwhile has them open.
                fcntl.flock(self._room, fcntl.LOCK_UN)
                fcntl.flock(self._door, fcntl.LOCK_UN)
