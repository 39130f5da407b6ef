# SPDX-License-Identifier: Apache-2.0
"""Runs the nodes of a launch file as processes and brings all of them to an end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from dipod_ros.ros.launch_runner.node import NodeProcess
from dipod_ros.ros.launch_runner.plan import plan
from dipod_ros.ros.launch_runner.text import LaunchError

POLL_S = 0.05
# Exits that are no failure once the end was asked for: also programs that do not catch the signals.
CLEAN_ENDS = {0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}


@dataclass
class _Child:
    node: NodeProcess
    process: subprocess.Popen
    reader: threading.Thread
    ended: bool = False


class LaunchRunner:
    """One run of a launch file: start, poll or wait, stop. Not thread-safe; poll it regularly.

    When a node fails, the others are ended and the exit code is that of the first failure; so they
    are when a node with `on_exit: shutdown` ends in whatever way. Nodes run in sessions of their
    own: Ctrl-C reaches them through this class, once.
    """

    def __init__(
        self,
        path: str | Path,
        arguments: Mapping[str, str] | None = None,
        *,
        log_file: str | Path | None = None,
        keep_going: bool = False,
    ) -> None:
        """Read the file; raises UserError when it cannot be run with these arguments.

        Output goes to `log_file` when given, else to stdout, each line behind the node's name. With
        `keep_going` the other nodes outlive a failed one.
        """
        what = plan(Path(path), arguments or {})
        self.nodes = what.nodes
        # How long nodes may take to end after a signal before the next, harsher one.
        self._patience_s = {
            signal.SIGINT: what.sigterm_timeout_s,
            signal.SIGTERM: what.sigkill_timeout_s,
        }
        self.keep_going = keep_going
        self._log_path = log_file
        self._log: TextIO | None = None
        self._write_lock = threading.Lock()
        self._children: list[_Child] = []
        self._folder: tempfile.TemporaryDirectory | None = None
        self._code: int | None = None  # of the first failure
        self._signal: signal.Signals | None = None  # the last one sent to all
        self._signal_time = 0.0

    def start(self) -> None:
        """Start every node; raises UserError, with none left running, when one cannot start.

        The nodes are told to end when the thread that calls this does, however that comes about.
        """
        self._folder = tempfile.TemporaryDirectory(prefix='dipod_launch_')
        try:
            if self._log_path is not None:
                Path(self._log_path).parent.mkdir(parents=True, exist_ok=True)
                self._log = open(self._log_path, 'w', encoding='utf-8')  # noqa: SIM115
            for node in self.nodes:
                self._children.append(self._start(node))
        except OSError as error:
            self.stop()
            raise LaunchError(f'cannot start the nodes: {error}') from error
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Watch the nodes; return None while any runs, then the exit code of the whole."""
        for child in self._children:
            if not child.ended and child.process.poll() is not None:
                child.ended = True
                self._on_end(child)
        running = [child for child in self._children if not child.ended]
        if not running:
            self._clean_up()
            return self._code or 0
        waited = time.monotonic() - self._signal_time
        if waited > self._patience_s.get(self._signal, float('inf')):
            self.escalate()
        return None

    def wait(self) -> int:
        """Block until all nodes have ended and return the exit code."""
        while (code := self.poll()) is None:
            self.pause()
        return code

    def pause(self) -> None:
        """Wait a moment before the next poll()."""
        time.sleep(POLL_S)

    def request_stop(self) -> None:
        """Ask all nodes to end, as Ctrl-C would; poll() or wait() sees to it."""
        if self._signal is None:
            self._send(signal.SIGINT)

    def escalate(self) -> None:
        """Send the next harsher signal to the nodes that still run, without further patience."""
        self._send(
            {None: signal.SIGINT, signal.SIGINT: signal.SIGTERM}.get(self._signal, signal.SIGKILL)
        )

    def stop(self) -> int:
        """End all nodes and return the exit code; does nothing where none runs."""
        self.request_stop()
        return self.wait()

    def _start(self, node: NodeProcess) -> _Child:
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **node.environment}
        child = str(Path(__file__).with_name('child.py'))
        process = subprocess.Popen(
            # -S -E: no site-packages needed, and none of their start-up hooks.
            [sys.executable, '-S', '-E', child, str(os.getpid()), *node.command(self._save)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=environment,
            start_new_session=True,
        )
        reader = threading.Thread(
            target=self._forward, args=(node.label, process.stdout), daemon=True
        )
        reader.start()
        return _Child(node, process, reader)

    def _save(self, params: dict[str, Any]) -> Path:
        handle, name = tempfile.mkstemp(dir=self._folder.name, suffix='.yaml')
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            yaml.safe_dump(params, file)
        return Path(name)

    def _on_end(self, child: _Child) -> None:
        child.reader.join(1.0)  # what it said last; longer only if someone else holds its stdout
        status = child.process.returncode
        failed = status != 0 if self._signal is None else status not in CLEAN_ENDS
        if failed:
            code = status if status > 0 else 128 - status  # a signal, as shells count
            self._write(child.node.label, f'failed with exit code {code}')
            self._code = self._code or code
        elif self._signal is None:
            self._write(child.node.label, 'ended')
        if self._signal is None and (
            child.node.shutdown_on_exit or (failed and not self.keep_going)
        ):
            self.request_stop()

    def _send(self, number: signal.Signals) -> None:
        self._signal, self._signal_time = number, time.monotonic()
        for child in self._children:
            if child.process.poll() is not None:
                continue
            if number == signal.SIGKILL:
                self._write(child.node.label, 'did not end in time and is killed')
                os.killpg(child.process.pid, number)  # with whatever it started
            else:
                child.process.send_signal(number)

    def _forward(self, label: str, stream: TextIO) -> None:
        with stream:
            for line in stream:
                self._write(label, line.rstrip('\n'))

    def _write(self, label: str, line: str) -> None:
        # Nodes must not block or die because nobody reads their output any more.
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            print(f'[{label}] {line}', file=self._log or sys.stdout, flush=True)

    def _clean_up(self) -> None:
        for child in self._children:
            child.reader.join(1.0)
        with self._write_lock:
            if self._log is not None:
                self._log.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
