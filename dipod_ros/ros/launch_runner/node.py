# SPDX-License-Identifier: Apache-2.0
"""One node to run and its command line. Starts nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NodeProcess:
    """One node to run."""

    label: str  # unique within the launch; prefixes the output
    program: tuple[str, ...]
    name: str | None
    namespace: str | None  # absolute
    arguments: tuple[str, ...]
    ros_arguments: tuple[str, ...]
    params: tuple[Path | dict[str, Any], ...]  # files and values, in their order
    remaps: tuple[tuple[str, str], ...]
    environment: dict[str, str]
    shutdown_on_exit: bool

    def command(self, save: Callable[[dict[str, Any]], Path]) -> list[str]:
        """Return the argv; `save` writes a parameter file and returns its path."""
        if self.name is not None and self.namespace is not None:
            target = f'{self.namespace.rstrip("/")}/{self.name}'
        else:
            target = '/**'
        words: list[str] = []
        for params in self.params:
            if isinstance(params, dict):
                params = save({target: {'ros__parameters': params}})
            words += ['--params-file', str(params)]
        return [*self._beginning(), *words, *self._end()]

    def describe(self) -> str:
        """Return the command for reading: values as `-p name:=value` instead of in files."""
        words: list[str] = []
        for params in self.params:
            if isinstance(params, dict):
                for name, value in params.items():
                    words += ['-p', f'{name}:={json.dumps(value)}']
            else:
                words += ['--params-file', str(params)]
        variables = [f'{k}={shlex.quote(v)}' for k, v in self.environment.items()]
        return ' '.join([*variables, shlex.join([*self._beginning(), *words, *self._end()])])

    def _beginning(self) -> list[str]:
        words = [*self.program, *self.arguments]
        if self.ros_arguments:
            words += ['--ros-args', *self.ros_arguments]
        words += ['--ros-args']
        if self.name is not None:
            words += ['-r', f'__node:={self.name}']
        if self.namespace is not None:
            words += ['-r', f'__ns:={self.namespace}']
        return words

    def _end(self) -> list[str]:
        return [word for source, target in self.remaps for word in ('-r', f'{source}:={target}')]
