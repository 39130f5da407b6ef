# SPDX-License-Identifier: Apache-2.0
"""In real time the policy server has two threads: one decides, one commits control points.

Both may have something to send. Whoever has makes it and sends it under one lock, so that commands
leave in the order in which they are made: a stop is never overtaken by a plan of before, nor the
plan that follows it by the stop. The executor's thread, which hears the e-stop, never takes it.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

from dipod_ros.nodes._policy_server_io import CommandOutput, RecordOutput
from dipod_ros.nodes._policy_server_output import StreamOutput
from dipod_ros.ros.runtime import EXIT_BUG, request_exit
from dipod_ros.ros.scheduling import RealTimePriority
from dipod_ros.serving.loop import Command, Loop
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.realtime import RealTimeLoop

# How often a thread looks up without being woken: bounds how late records and shutdown come.
IDLE_S = 0.1
# A thread that takes so much longer than the arm needs to stop hangs.
HANGS_S = 5.0
# How often the sensors are read while the arm brakes: drives close their loop through them.
SENSE_S = 0.002
# A thread that computes (one that builds a policy, say) gives the interpreter away after this.
# CPython's default is 5 ms, longer than the period of a fast stream.
SWITCH_INTERVAL_S = 1e-4


class ServerThreads:
    """Runs a loop from activation to deactivation."""

    def __init__(
        self,
        loop: RealTimeLoop,
        commands: CommandOutput | StreamOutput,
        records: RecordOutput,
        fail: Callable[[str], None],
        look: Callable[[Loop], None],
        priority: RealTimePriority,
        sense: Callable[[], None],
    ) -> None:
        """Take the loop and its outputs.

        `fail` is told why a thread died; `look` may look on after every turn. `priority` is given
        to both threads. `sense` takes what the sensors say while `stop` keeps the thread that
        listens to them.
        """
        self._loop = loop
        self._commands = commands
        self._records = records
        self._fail = fail
        self._look = look
        self._priority = priority
        self._sense = sense
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._order = threading.Lock()  # taken before the loop's `wake`, never while holding it
        self._newest: Sample | None = None  # joint states that were looked at
        streamed = isinstance(commands, StreamOutput)
        self._threads = [
            self._thread('decisions', self._decide),
            self._thread('control', self._stream if streamed else self._control),
        ]

    def start(self) -> None:
        """Begin to act."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        for thread in self._threads:
            thread.start()

    def news(self) -> None:
        """Look whether what just arrived makes a decision due.

        Joint states do, which come at least once per control period. Looking costs more than to
        store anything else that comes in between.
        """
        newest = self._loop.joint_sample()
        if newest is not self._newest:
            self._newest = newest
            self._loop.notify()

    def hurry(self) -> None:
        """Look for reasons to stop now instead of at the next control period."""
        self._hurry.set()

    @property
    def alive(self) -> bool:
        """Whether every thread runs."""
        return all(t.is_alive() for t in self._threads)

    def stop(self) -> bool:
        """Bring the arm to rest and end the threads; return whether that worked in time."""
        decisions, control = self._threads
        self._loop.stop()
        self._hurry.set()
        self._wait_for(control, self._loop.stopping_s + HANGS_S)
        self._stop.set()
        with self._loop.wake:
            self._loop.wake.notify_all()
        self._wait_for(control, self._loop.stopping_s)  # drives that it still has to bring to rest
        self._wait_for(decisions, HANGS_S)
        self._records.send(self._loop.finished_records(flush=True))
        return not any(t.is_alive() for t in self._threads)

    def _wait_for(self, thread: threading.Thread, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while thread.is_alive() and time.monotonic() < end_s:
            self._sense()
            thread.join(SENSE_S)

    def _decide(self) -> None:
        loop, stop = self._loop, self._stop
        sends = loop.config.interface == 'trajectory'  # positions are sent by the other thread
        while not stop.is_set():
            with loop.wake:
                if not (stop.is_set() or loop.ready()):
                    loop.wake.wait(IDLE_S)  # whoever wakes us has asked `ready`, and so will `step`
            thought, decided = loop.think(), None
            if thought is not None:
                with self._order:
                    decided = loop.act(thought)
                    if decided is not None and sends:
                        self._send(decided[0])
            if decided is not None:
                loop.sent(*decided)
            # After the command: a record is never worth a late arm.
            self._records.send(loop.finished_records())
            self._look(loop)

    def _control(self) -> None:
        loop = self._loop
        while not self._stop.is_set():
            with self._order:
                command = loop.control()
                if command is not None:
                    self._send(command)
            if loop.stopped:
                return
            wait_s = loop.next_control_s() - loop.clock()
            if wait_s > 0 and self._hurry.wait(wait_s):
                self._hurry.clear()

    def _send(self, command: Command) -> None:
        if not self._loop.void(command):
            self._commands.send(command, self._loop)

    def _stream(self) -> None:
        loop: RealTimeLoop = self._loop
        self._commands.run(loop, loop.buffer, self._stop, self._hurry)

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                self._priority.raise_this_thread()
                work()
            except Exception as error:
                if self._stop.is_set():
                    return  # the node is being torn down under a publisher
                traceback.print_exc()
                reason = f'the {name} thread failed: {type(error).__name__}: {error}'
                self._fail(reason)
                # Plans end at rest: the arm stops. Whoever supervises the process starts it again.
                request_exit(EXIT_BUG, reason)

        return threading.Thread(target=guarded, name=name, daemon=True)
