# SPDX-License-Identifier: Apache-2.0
"""Which settings of a parameter file a launch file replaces by values of its own.

A launch file hands its arguments to nodes by name, with their defaults too, and such a value wins
over any file. Who set it in a file would otherwise find out from what the robot does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dipod_ros.errors import UserError
from dipod_ros.policy.plain_yaml import read_yaml
from dipod_ros.ros.launch_runner.node import NodeProcess


def set_in_vain(node: NodeProcess) -> list[str]:
    """Return a line for each parameter that a file sets to another value than the node gets.

    What a later file says replaces an earlier one, and is no mistake. A file that cannot be read is
    the node's to complain about.
    """
    if node.name is None:
        return []  # its program names it, and nobody here knows how
    full_name = f'{(node.namespace or "/").rstrip("/")}/{node.name}'
    said: dict[str, tuple[Any, Path]] = {}
    lines = []
    for params in node.params:
        if isinstance(params, Path):
            for name, value in _settings(params, full_name):
                said[name] = value, params
            continue
        for name, value in params.items():
            wanted, file = said.pop(name, (value, None))
            if wanted != value:
                lines.append(
                    f'{node.label}: {file.name} sets {name} to {_text(wanted)}, the launch file '
                    f'sets it to {_text(value)}: give it as an argument of the launch file'
                )
    return lines


def _settings(path: Path, full_name: str) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what a parameter file says to a node, nested names with dots."""
    try:
        tree = read_yaml(path)
    except UserError:
        return
    for pattern, params in _blocks(tree, ''):
        if _matches(pattern, full_name):
            yield from _flat(params, '')


def _blocks(tree: Any, above: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, below in tree.items():
            if key == 'ros__parameters':
                yield above, below
            else:
                yield from _blocks(below, f'{above}/{str(key).lstrip("/")}')


def _matches(pattern: str, full_name: str) -> bool:
    """Tell whether a block is for a node: * is one part of its name, ** any number of them."""
    known = {'**': r'(/\w+)*', '*': r'/\w+'}
    parts = (known.get(part, f'/{re.escape(part)}') for part in pattern.split('/') if part)
    return re.fullmatch(''.join(parts), full_name) is not None


def _flat(params: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(params, Mapping):
        for key, value in params.items():
            if isinstance(value, Mapping):
                yield from _flat(value, f'{prefix}{key}.')
            else:
                yield f'{prefix}{key}', value


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix('\n').removesuffix('\n...')
