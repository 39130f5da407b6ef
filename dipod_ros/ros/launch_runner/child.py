# SPDX-License-Identifier: Apache-2.0
"""Becomes a node's process that cannot outlive its launch: `python child.py PARENT_PID COMMAND...`.

A launch that is killed outright cannot end its nodes, and a lockstep simulator and its server would
go on forever. Linux can: it signals a process whose parent has died. Run as a program of its own,
because code between fork and exec is not safe in a parent with threads. Imports only the standard
library.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>; survives exec


def main() -> None:
    """Ask for the signal, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # A shell lets its background jobs ignore Ctrl-C, and so what they start: it ends nodes here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f'cannot start {command[0]}: {error.strerror}')


if __name__ == '__main__':
    main()
