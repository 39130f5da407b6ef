# SPDX-License-Identifier: Apache-2.0
"""Which arguments a launch file takes, with those of the files that it includes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dipod_ros.ros.launch_runner.file import (
    Action,
    Arg,
    Group,
    Include,
    check_depth,
    read_launch_file,
)
from dipod_ros.ros.launch_runner.text import LaunchError, Scope


@dataclass(frozen=True)
class Argument:
    """An argument that a launch file declares."""

    name: str
    description: str
    default: str | None  # as written in the file; None is required
    choices: tuple[str, ...]
    conditional: bool  # declared only when some condition holds


def declared_arguments(
    path: Path,
    given: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Argument]:
    """Return the arguments of `path` and of the files it includes, each once.

    What an include is given by its includer is no argument any more. An included file whose place
    depends on an argument that is not given is left out.
    """
    environment = os.environ if environment is None else environment
    scope = Scope(path.resolve(), dict(given or {}), environment)
    found: dict[str, Argument] = {}
    _declare(read_launch_file(path), scope, found, fixed=set(), conditional=False, depth=0)
    return list(found.values())


def _declare(
    actions: tuple[Action, ...],
    scope: Scope,
    found: dict[str, Argument],
    fixed: set[str],
    conditional: bool,
    depth: int,
) -> None:
    for action in actions:
        maybe = conditional or action.condition is not None
        if isinstance(action, Arg) and action.name not in fixed:
            argument = Argument(
                action.name, action.description, action.default_source, action.choices, maybe
            )
            found.setdefault(action.name, argument)
            if action.default is not None and action.name not in scope.variables:
                try:
                    scope.variables[action.name] = action.default.evaluate(scope)
                except LaunchError:
                    continue
        elif isinstance(action, Group):
            _declare(action.children, scope, found, fixed, maybe, depth)
        elif isinstance(action, Include):
            check_depth(action, depth)
            try:
                file = Path(action.file.evaluate(scope))
                given = {n.evaluate(scope): v.evaluate(scope) for n, v in action.arguments}
            except LaunchError:
                continue
            below = replace(scope, file=file, variables=scope.variables | given)
            _declare(read_launch_file(file), below, found, fixed | set(given), maybe, depth + 1)


def refuse_unknown(given: Mapping[str, str], known: list[Argument], path: Path) -> None:
    """Raise LaunchError when `given` has an argument that is not known: it is a misspelt one."""
    names = [argument.name for argument in known]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f', did you mean {close[0]}?' if close else ''
            listed = ', '.join(names) or 'none'
            raise LaunchError(f'{path.name} has no argument {name!r}{hint} (arguments: {listed})')
