# SPDX-License-Identifier: Apache-2.0
r"""Substitutions and typed values of launch files, as the standard YAML front end defines them.

Owns the text inside a launch file: `$(var ...)`, `$(env ...)`, `$(find-pkg-share ...)`,
`$(dirname)`, their nesting, quoting and `\` escapes, conditions, and how a text becomes a parameter
value. Knows no actions and starts nothing; needs no rclpy, no launch and no ament index.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dipod_ros.errors import UserError
from dipod_ros.resources import PACKAGE, share_dir


class LaunchError(UserError):
    """A launch file, or an argument given to it, that cannot be run as it is."""


@dataclass
class Scope:
    """What substitutions see."""

    file: Path
    variables: dict[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclass(frozen=True)
class Substitution:
    """`$(name argument ...)`; each argument is a Text of its own."""

    name: str
    arguments: tuple[Text, ...]


@dataclass(frozen=True)
class Text:
    """A parsed text: literal pieces and substitutions in their order."""

    parts: tuple[str | Substitution, ...]

    @property
    def has_substitutions(self) -> bool:
        """Whether the text depends on anything."""
        return any(isinstance(part, Substitution) for part in self.parts)

    def evaluate(self, scope: Scope) -> str:
        """Return the text with every substitution done; raises LaunchError."""
        return ''.join(
            p if isinstance(p, str) else _SUBSTITUTIONS[p.name][1](scope, *p.arguments)
            for p in self.parts
        )

    def split(self, scope: Scope) -> list[str]:
        """Return the words of a command line; what a substitution yields is never split."""
        values: list[str] = []
        marked = ''
        for part in self.parts:
            if isinstance(part, str):
                marked += part
            else:
                marked += f'\0{len(values)}\0'
                values.append(Text((part,)).evaluate(scope))
        try:
            words = shlex.split(marked)
        except ValueError as error:
            raise LaunchError(f'cannot split {marked!r} into words: {error}') from None
        return [re.sub('\0(\\d+)\0', lambda m: values[int(m.group(1))], word) for word in words]


def parse_text(text: str) -> Text:
    """Parse a text of a launch file; raises LaunchError at what the runner does not know."""
    parts, end = _parse(text, 0, stop='')
    assert end == len(text)
    return Text(tuple(parts))


def find_share(package: str, environment: Mapping[str, str]) -> Path:
    """Return the share folder of an installed package."""
    if package == PACKAGE:
        return share_dir()
    for prefix in prefixes(environment):
        if (prefix / 'share' / package).is_dir():
            return prefix / 'share' / package
    raise LaunchError(f'package {package!r} not found: {_searched(environment)}')


def prefixes(environment: Mapping[str, str]) -> list[Path]:
    """Return the install prefixes of the sourced ROS workspaces; none on a pip-only machine."""
    return [Path(p) for p in environment.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]


def find_executable(package: str, name: str, environment: Mapping[str, str]) -> Path:
    """Return lib/<package>/<name> of the first workspace that has it."""
    for prefix in prefixes(environment):
        path = prefix / 'lib' / package / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise LaunchError(f'no executable {name!r} of package {package!r}: {_searched(environment)}')


def truth(text: str) -> bool:
    """Return what an `if` or `unless` says; true, 1, false, 0 in any case are all there is."""
    values = {'true': True, '1': True, 'false': False, '0': False}
    try:
        return values[text.strip().lower()]
    except KeyError:
        raise LaunchError(f'a condition must be true, 1, false or 0, not {text!r}') from None


def to_value(text: str, kind: str | None) -> Any:
    """Turn a substituted text into a parameter value of `kind`; None follows YAML's rules.

    Raises LaunchError when it is no value of that kind, or of no kind that a parameter can have.
    """
    if kind == 'str' or (kind is None and not text):
        return text
    try:
        if kind in ('int', 'float'):
            return {'int': int, 'float': float}[kind](text)
        if kind == 'bool':
            text = {'1': 'true', '0': 'false'}.get(text, text)
        value = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise LaunchError(f'{text!r} is no value of type {kind or "yaml"}') from None
    return check_value(value, kind)


def check_value(value: Any, kind: str | None) -> Any:
    """Return value when it is of `kind` and may be a parameter; raises LaunchError otherwise."""
    items = value if isinstance(value, list) else [value]
    types = {type(item) for item in items}
    allowed = {_SCALARS[kind.removeprefix('list_of_')]} if kind else set(_SCALARS.values())
    if (
        len(types) != 1
        or not types <= allowed
        or (kind is not None and isinstance(value, list) != kind.startswith('list_of_'))
    ):
        raise LaunchError(f'{value!r} is no {kind or "value or uniform list of values"}')
    return value


_SCALARS: dict[str, type] = {'str': str, 'bool': bool, 'int': int, 'float': float}
KINDS = (*_SCALARS, *(f'list_of_{name}' for name in _SCALARS), 'yaml')
"""What the `type` of a param may be."""


def _var(scope: Scope, name: Text, default: Text | None = None) -> str:
    key = name.evaluate(scope)
    if key in scope.variables:
        return scope.variables[key]
    if default is None:
        known = ', '.join(sorted(scope.variables)) or 'none'
        raise LaunchError(f'$(var {key}): no such argument; known here: {known}')
    return default.evaluate(scope)


def _env(scope: Scope, name: Text, default: Text | None = None) -> str:
    key = name.evaluate(scope)
    if key in scope.environment:
        return scope.environment[key]
    if default is None:
        raise LaunchError(f'$(env {key}): the variable is not set and there is no default')
    return default.evaluate(scope)


_SUBSTITUTIONS = {
    'var': ((1, 2), _var),
    'env': ((1, 2), _env),
    'find-pkg-share': (
        (1, 1),
        lambda scope, package: str(find_share(package.evaluate(scope), scope.environment)),
    ),
    'dirname': ((0, 0), lambda scope: str(scope.file.parent)),
}


def _parse(text: str, at: int, stop: str) -> tuple[list[str | Substitution], int]:
    """Read up to one of the characters `stop`, or to the end; return the parts and where."""
    parts: list[str | Substitution] = []
    literal = ''
    while at < len(text) and text[at] not in stop:
        if text.startswith('$(', at):
            if literal:
                parts.append(literal)
                literal = ''
            substitution, at = _parse_substitution(text, at)
            parts.append(substitution)
        else:
            at += text[at] == '\\' and at + 1 < len(text)
            literal += text[at]
            at += 1
    if literal:
        parts.append(literal)
    return parts, at


def _parse_substitution(text: str, at: int) -> tuple[Substitution, int]:
    match = re.compile(r'\$\(([A-Za-z][\w-]*)').match(text, at)
    name = match.group(1) if match else ''
    if name not in _SUBSTITUTIONS:
        known = ', '.join(f'$({s})' for s in _SUBSTITUTIONS)
        raise LaunchError(f'unknown substitution in {text!r}; supported: {known}')
    at = match.end()
    arguments: list[Text] = []
    while at < len(text) and text[at] == ' ':
        at += 1
        quote = text[at : at + 1]
        if quote in ('"', "'"):
            parts, at = _parse(text, at + 1, stop=quote)
            at += 1
        else:
            parts, at = _parse(text, at, stop=' )')
        arguments.append(Text(tuple(parts)))
    if text[at : at + 1] != ')':
        raise LaunchError(f'$({name} is not closed in {text!r}')
    least, most = _SUBSTITUTIONS[name][0]
    if not least <= len(arguments) <= most:
        count = f'{least}' if least == most else f'{least} to {most}'
        raise LaunchError(f'$({name}) takes {count} arguments, got {len(arguments)} in {text!r}')
    return Substitution(name, tuple(arguments)), at + 1


def _searched(environment: Mapping[str, str]) -> str:
    places = ', '.join(map(str, prefixes(environment)))
    return f'searched {places}' if places else 'AMENT_PREFIX_PATH is empty, source a ROS workspace'
