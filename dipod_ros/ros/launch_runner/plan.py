# SPDX-License-Identifier: Apache-2.0
"""Evaluates a launch file for given arguments: which nodes run, and how. Starts nothing.

Follows launch and launch_ros of Jazzy: variables live in one scope per group, an include shares the
scope of its includer, values given by name go to the node's full name and so win over wildcards in
parameter files. Stricter in two things: an argument that no file declares is an error, and so is a
parameter file that does not exist.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dipod_ros.resources import PACKAGE
from dipod_ros.ros.launch_runner.arguments import declared_arguments, refuse_unknown
from dipod_ros.ros.launch_runner.file import (
    Action,
    Arg,
    Condition,
    Group,
    Include,
    Let,
    NodeAction,
    Param,
    PushNamespace,
    check_depth,
    located,
    read_launch_file,
)
from dipod_ros.ros.launch_runner.node import NodeProcess
from dipod_ros.ros.launch_runner.text import (
    LaunchError,
    Scope,
    Text,
    check_value,
    find_executable,
    to_value,
    truth,
)

# Variables that launch and launch_ros know by these names, too.
NAMESPACE = 'ros_namespace'
PATIENCE = ('sigterm_timeout', 'sigkill_timeout')


@dataclass(frozen=True)
class Plan:
    """What a launch file runs, and how it ends."""

    nodes: tuple[NodeProcess, ...]
    # Between SIGINT and SIGTERM, and between SIGTERM and SIGKILL; the defaults are launch's.
    sigterm_timeout_s: float = 5.0
    sigkill_timeout_s: float = 5.0


def plan(
    path: Path, given: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> Plan:
    """Return what `path` runs with the `given` arguments; raises LaunchError."""
    environment = os.environ if environment is None else environment
    refuse_unknown(given, declared_arguments(path, given, environment), path)
    scope = Scope(path.resolve(), dict(given), environment)
    nodes = list(_visit(read_launch_file(path), scope, 0))
    count, seen = Counter(n.label for n in nodes), Counter()
    for i, node in enumerate(nodes):
        if count[node.label] > 1:
            seen[node.label] += 1
            nodes[i] = replace(node, label=f'{node.label}-{seen[node.label]}')
    timeouts = {
        f'{name}_s': to_value(scope.variables[name], 'float')
        for name in PATIENCE
        if name in scope.variables
    }
    return Plan(tuple(nodes), **timeouts)


def _visit(actions: tuple[Action, ...], scope: Scope, depth: int) -> Iterator[NodeProcess]:
    for action in actions:
        with located(action.where):
            if not _holds(action.condition, scope):
                continue
        if isinstance(action, Group):
            inner = replace(scope, variables=dict(scope.variables))
            yield from _visit(action.children, inner, depth)
        elif isinstance(action, Include):
            with located(action.where):
                check_depth(action, depth)
                file = Path(action.file.evaluate(scope))
                for name, value in action.arguments:
                    scope.variables[name.evaluate(scope)] = value.evaluate(scope)
            # The same dict of variables: an include is no scope.
            yield from _visit(read_launch_file(file), replace(scope, file=file), depth + 1)
        else:
            with located(action.where):
                if not isinstance(action, NodeAction):
                    _apply(action, scope)
                    continue
                node = _node(action, scope)
            yield node


def _apply(action: Action, scope: Scope) -> None:
    variables = scope.variables
    if isinstance(action, Arg):
        if action.name not in variables:
            if action.default is None:
                raise LaunchError(
                    f'needs a value: give {action.name}:=VALUE ({action.description})'
                )
            variables[action.name] = action.default.evaluate(scope)
        if action.choices and variables[action.name] not in action.choices:
            raise LaunchError(
                f'{variables[action.name]!r} is not one of {", ".join(action.choices)}'
            )
    elif isinstance(action, Let):
        variables[action.name.evaluate(scope)] = action.value.evaluate(scope)
    elif isinstance(action, PushNamespace):
        pushed = action.namespace.evaluate(scope)
        variables[NAMESPACE] = _join_namespaces(variables.get(NAMESPACE), pushed)


def _holds(condition: Condition | None, scope: Scope) -> bool:
    return condition is None or truth(condition.text.evaluate(scope)) == condition.wanted


def _node(action: NodeAction, scope: Scope) -> NodeProcess:
    def optional(text: Text | None) -> str | None:
        return None if text is None else text.evaluate(scope)

    package, executable = action.package.evaluate(scope), action.executable.evaluate(scope)
    name, namespace = optional(action.name), optional(action.namespace)
    if name is not None and not re.fullmatch(r'[A-Za-z_]\w*', name, re.ASCII):
        raise LaunchError(f'{name!r} is no node name: letters, digits and _')
    pushed = scope.variables.get(NAMESPACE)
    if namespace is not None or pushed is not None:
        namespace = _join_namespaces(pushed, namespace or '')
    own = (namespace or '/').strip('/')
    return NodeProcess(
        label=f'{own}/{name or executable}' if own else name or executable,
        program=_program(package, executable, scope),
        name=name,
        namespace=namespace,
        arguments=tuple(action.arguments.split(scope)) if action.arguments else (),
        ros_arguments=tuple(action.ros_arguments.split(scope)) if action.ros_arguments else (),
        params=_params(action.params, scope),
        remaps=tuple((a.evaluate(scope), b.evaluate(scope)) for a, b in action.remaps),
        environment={a.evaluate(scope): b.evaluate(scope) for a, b in action.environment},
        shutdown_on_exit=action.shutdown_on_exit,
    )


def _program(package: str, executable: str, scope: Scope) -> tuple[str, ...]:
    if package != PACKAGE:
        return (str(find_executable(package, executable, scope.environment)),)
    nodes = Path(__file__).parents[2] / 'nodes'
    known = sorted(p.stem for p in nodes.glob('[!_]*.py'))
    if executable not in known:
        raise LaunchError(f'{PACKAGE} has no node {executable!r}; it has {", ".join(known)}')
    return sys.executable, '-m', f'{PACKAGE}.nodes.{executable}'


def _params(params: tuple[Param, ...], scope: Scope) -> tuple[Path | dict[str, Any], ...]:
    """Return files and values in their order; values in a row become one dict."""
    result: list[Path | dict[str, Any]] = []
    for param in params:
        if param.file is not None:
            result.append(_param_file(param.file, scope))
            continue
        if not result or not isinstance(result[-1], dict):
            result.append({})
        result[-1].update(_values(param, scope))
    return tuple(result)


def _param_file(text: Text, scope: Scope) -> Path:
    path = Path(text.evaluate(scope))
    if not path.is_file():
        raise LaunchError(f'parameter file {path} does not exist')
    return path.absolute()


def _values(param: Param, scope: Scope, prefix: str = '') -> dict[str, Any]:
    """Return name and value; nested parameters get names with dots."""
    name = prefix + param.name.evaluate(scope)
    if param.children:
        return {
            full: value
            for child in param.children
            for full, value in _values(child, scope, f'{name}.').items()
        }
    with located(f'parameter {name}'):
        return {name: _value(param.value, param.kind, scope)}


def _value(value: Any, kind: str | None, scope: Scope) -> Any:
    if isinstance(value, list):
        item_kind = kind.removeprefix('list_of_') if kind else None
        items = [_value(item, item_kind, scope) for item in value]
        return check_value(items, kind)
    if isinstance(value, Text):
        return to_value(value.evaluate(scope), kind)
    return check_value(value, kind)


def _join_namespaces(base: str | None, pushed: str) -> str:
    """Return the absolute namespace; an absolute `pushed` replaces the base."""
    joined = pushed if pushed.startswith('/') or not base else f'{base.rstrip("/")}/{pushed}'
    joined = '/' + joined.strip('/')
    if not re.fullmatch(r'/|(/[A-Za-z_]\w*)+', joined, re.ASCII):
        raise LaunchError(f'{pushed!r} is no namespace: names of letters, digits and _ between /')
    return joined
