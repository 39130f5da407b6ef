# SPDX-License-Identifier: Apache-2.0
"""A node of the package as the process that it is in real life."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TIMEOUT_S = 120.0  # far above anything but a machine that is swamped


class NodeProcess:
    """Runs `dipod_ros.nodes.<node>`; parameters by name, `limits__velocity` for nested ones.

    A parameter that is None is not given; `environment` is added to that of this process.
    """

    def __init__(self, folder, node, parameters, params_files=(), remaps=(), environment=()):
        self.log_path = Path(folder) / f'{node}-{time.monotonic_ns()}.log'
        command = [sys.executable, '-m', f'dipod_ros.nodes.{node}', '--ros-args']
        for path in params_files:
            command += ['--params-file', str(path)]
        for name, value in parameters.items():
            if value is not None:
                command += ['-p', f'{name.replace("__", ".")}:={json.dumps(value)}']
        for remap in remaps:
            command += ['-r', remap]
        with open(self.log_path, 'w') as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {'RCUTILS_COLORIZED_OUTPUT': '0'} | dict(environment),
            )

    @property
    def log(self):
        return self.log_path.read_text()

    def stop(self, number=signal.SIGINT):
        """Ask the process to end and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.exit_code()

    def exit_code(self):
        """Wait for the process to end; one that does not is killed, and TimeoutExpired raised."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
