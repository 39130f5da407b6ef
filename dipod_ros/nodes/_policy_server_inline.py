# SPDX-License-Identifier: Apache-2.0
"""In lockstep the policy server decides where the observation's last message arrives: no threads.

The world waits for the answer, so there is nothing that a callback could keep from its turn, and
handing over to a thread and back would cost more than everything else that the server does.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from rclpy.node import Node

from dipod_ros.nodes._policy_server_io import CommandOutput, RecordOutput
from dipod_ros.ros.runtime import EXIT_BUG, request_exit, steady_clock
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.loop import Loop

# Records that nobody judged are given out when their patience is over, and that is how often
# somebody looks.
IDLE_S = 0.1


class InlineDecisions:
    """Runs a lockstep loop on the executor's thread, from activation to deactivation."""

    def __init__(
        self,
        node: Node,
        loop: LockstepLoop,
        commands: CommandOutput,
        records: RecordOutput,
        fail: Callable[[str], None],
        look: Callable[[Loop], None],
    ) -> None:
        """Take the loop and its outputs.

        `fail` is told why deciding failed; `look` may look on after every decision.
        """
        self._node = node
        self._loop = loop
        self._commands = commands
        self._records = records
        self._fail = fail
        self._look = look
        self._timer = None
        self.alive = True

    def start(self) -> None:
        """Begin to act."""
        self._timer = self._node.create_timer(IDLE_S, self._look_up, clock=steady_clock())
        self.news()  # the world may have been waiting already

    def news(self) -> None:
        """Answer the observation if what just arrived completes it."""
        self._guarded(self._decide)

    def hurry(self) -> None:
        """Do nothing: the world stands still until the next observation, and so does the arm."""

    def stop(self) -> bool:
        """Decide nothing more and give out all records; return True: no thread has to end.

        In lockstep nothing moves without an answer: the arm need not be brought to rest.
        """
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        self._records.send(self._loop.finished_records(flush=True))
        return True

    def _decide(self) -> None:
        decided = self._loop.step()
        if decided is None:
            return
        command, received_s = decided
        self._commands.send(command, self._loop)
        self._loop.sent(command, received_s)
        # After the command: a record is never worth a late arm.
        self._records.send(self._loop.finished_records())
        self._look(self._loop)

    def _look_up(self) -> None:
        self._guarded(lambda: self._records.send(self._loop.finished_records()))

    def _guarded(self, work: Callable[[], None]) -> None:
        if not self.alive:
            return
        try:
            work()
        except Exception as error:
            self.alive = False
            traceback.print_exc()
            reason = f'deciding failed: {type(error).__name__}: {error}'
            self._fail(reason)
            # The world waits, the arm stands. Whoever supervises the process starts it again.
            request_exit(EXIT_BUG, reason)
