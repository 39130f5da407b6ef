# SPDX-License-Identifier: Apache-2.0
"""Reads a `*.launch.yaml` into actions and refuses what the runner cannot run.

Owns which actions and keys exist. Everything is checked while reading, also behind conditions that
do not hold today. Evaluates nothing and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipod_ros.ros.launch_runner.text import KINDS, LaunchError, Text, parse_text

MAX_DEPTH = 16  # of includes: more means that a file includes itself


@dataclass(frozen=True)
class Condition:
    """`if` (wanted is True) or `unless` (False)."""

    text: Text
    wanted: bool


@dataclass(frozen=True)
class Action:
    """What every action has: the place to name in errors, and perhaps a condition."""

    where: str
    condition: Condition | None


@dataclass(frozen=True)
class Arg(Action):
    """Declares an argument of the file."""

    name: str
    default: Text | None
    default_source: str | None
    description: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Let(Action):
    """Sets a variable."""

    name: Text
    value: Text


@dataclass(frozen=True)
class PushNamespace(Action):
    """Puts the nodes that follow in this group under a namespace."""

    namespace: Text


@dataclass(frozen=True)
class Group(Action):
    """A scope for variables and namespaces."""

    children: tuple[Action, ...]


@dataclass(frozen=True)
class Include(Action):
    """Runs another launch file here."""

    file: Text
    arguments: tuple[tuple[Text, Text], ...]


@dataclass(frozen=True)
class Param:
    """A parameter file, or one parameter with a value or with parameters below it."""

    file: Text | None = None
    name: Text | None = None
    kind: str | None = None
    value: Any = None  # a Text with substitutions, a scalar, or a list of these
    children: tuple[Param, ...] = ()


@dataclass(frozen=True)
class NodeAction(Action):
    """Starts a node."""

    package: Text
    executable: Text
    name: Text | None
    namespace: Text | None
    params: tuple[Param, ...]
    remaps: tuple[tuple[Text, Text], ...]
    environment: tuple[tuple[Text, Text], ...]
    arguments: Text | None
    ros_arguments: Text | None
    shutdown_on_exit: bool


def read_launch_file(path: Path) -> tuple[Action, ...]:
    """Return the actions of a launch file; raises LaunchError with the file and the key."""
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not a text'
        raise LaunchError(f'cannot read launch file {path}: {reason}') from None
    except yaml.YAMLError as error:
        line = ' '.join(str(error).split())
        raise LaunchError(f'{path} is no YAML: {line}') from None
    if not isinstance(document, dict) or list(document) != ['launch']:
        raise LaunchError(f'{path}: a launch file has `launch:` and nothing else at the top')
    return _actions(document['launch'], path.name)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place in front of a LaunchError."""
    try:
        yield
    except LaunchError as error:
        raise LaunchError(f'{where}: {error}') from None


def check_depth(action: Include, depth: int) -> None:
    """Refuse the include at `depth` when files include each other without end."""
    if depth >= MAX_DEPTH:
        raise LaunchError(f'{action.where}: includes nest deeper than {MAX_DEPTH}')


def _actions(entries: Any, where: str) -> tuple[Action, ...]:
    if not isinstance(entries, list):
        raise LaunchError(f'{where}: expected a list of actions, got {type(entries).__name__}')
    return tuple(_action(entry, where) for entry in entries)


def _action(entry: Any, where: str) -> Action:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise LaunchError(f'{where}: each action is a mapping with one key, its kind; got {entry}')
    ((kind, body),) = entry.items()
    if kind not in _READERS:
        raise LaunchError(f'{where}: unknown action {kind!r}; supported: {", ".join(_READERS)}')
    if kind == 'group':
        return _group(body, where)
    if isinstance(body, dict):
        name = body.get('name') or body.get('exec') or body.get('file') or ''
        kind_and_name = f'{kind} {name}'.strip()
    else:
        kind_and_name = kind
    where = f'{where}: {kind_and_name}'
    with located(where):
        return _READERS[kind](_Body(body, _KEYS[kind]), where)


class _Body:
    """The keys of one entity; access checks types, construction checks names."""

    def __init__(self, body: Any, keys: tuple[str, str]) -> None:
        required, optional = (set(k.split()) for k in keys)
        if not isinstance(body, dict):
            raise LaunchError(f'expected a mapping, got {body!r}')
        self._body = body
        for key in body:
            if key not in required | optional:
                allowed = ', '.join(sorted(required | optional))
                raise LaunchError(f'unsupported key {key!r}; supported: {allowed}')
        missing = sorted(required - set(body))
        if missing:
            raise LaunchError(f'key {missing[0]!r} is missing')

    def string(self, key: str) -> str | None:
        value = self._body.get(key)
        if value is None or isinstance(value, str):
            return value
        raise LaunchError(f'key {key!r} must be a string: write "{str(value).lower()}" in quotes')

    def text(self, key: str) -> Text | None:
        value = self.string(key)
        with located(f'key {key!r}'):
            return None if value is None else parse_text(value)

    def entities(self, key: str, keys: tuple[str, str]) -> list[_Body]:
        value = self._body.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not value:
            raise LaunchError(f'key {key!r} must be a list of mappings')
        with located(f'key {key!r}'):
            return [_Body(item, keys) for item in value]

    def pairs(self, key: str, first: str, second: str) -> tuple[tuple[Text, Text], ...]:
        entities = self.entities(key, (f'{first} {second}', ''))
        return tuple((e.text(first), e.text(second)) for e in entities)

    def raw(self, key: str) -> Any:
        return self._body.get(key)

    def condition(self) -> Condition | None:
        conditions = [
            Condition(text, wanted)
            for key, wanted in (('if', True), ('unless', False))
            if (text := self.text(key)) is not None
        ]
        if len(conditions) > 1:
            raise LaunchError('`if` and `unless` exclude each other')
        return conditions[0] if conditions else None


def _group(body: Any, where: str) -> Group:
    if isinstance(body, list):
        return Group(where, None, _actions(body, where))
    with located(f'{where}: group'):
        keys = _Body(body, _KEYS['group'])
        condition = keys.condition()
    return Group(where, condition, _actions(keys.raw('children'), where))


def _arg(body: _Body, where: str) -> Arg:
    choices = tuple(c.string('value') for c in body.entities('choice', ('value', '')))
    return Arg(
        where,
        body.condition(),
        body.string('name'),
        body.text('default'),
        body.string('default'),
        body.string('description') or '',
        choices,
    )


def _let(body: _Body, where: str) -> Let:
    return Let(where, body.condition(), body.text('name'), body.text('value'))


def _push(body: _Body, where: str) -> PushNamespace:
    return PushNamespace(where, body.condition(), body.text('namespace'))


def _include(body: _Body, where: str) -> Include:
    return Include(where, body.condition(), body.text('file'), body.pairs('arg', 'name', 'value'))


def _node(body: _Body, where: str) -> NodeAction:
    if body.string('on_exit') not in (None, 'shutdown'):
        raise LaunchError("key 'on_exit' can only be shutdown")
    if body.string('output') not in (None, 'screen', 'both'):
        raise LaunchError("key 'output' can only be screen or both here")
    return NodeAction(
        where,
        body.condition(),
        body.text('pkg'),
        body.text('exec'),
        body.text('name'),
        body.text('namespace'),
        tuple(_param(p) for p in body.entities('param', _KEYS['param'])),
        body.pairs('remap', 'from', 'to'),
        body.pairs('env', 'name', 'value'),
        body.text('args'),
        body.text('ros_args'),
        body.string('on_exit') == 'shutdown',
    )


def _param(body: _Body, nested: bool = False) -> Param:
    file, name = body.text('from'), body.text('name')
    if (file is None) == (name is None) or (nested and file is not None):
        raise LaunchError("a param has either 'from' or 'name'; 'from' cannot be nested")
    if file is not None:
        return Param(file=file)
    children = tuple(_param(c, nested=True) for c in body.entities('param', _KEYS['param']))
    kind = body.string('type')
    if kind is not None and kind not in KINDS:
        raise LaunchError(f'unknown type {kind!r}; supported: {", ".join(KINDS)}')
    value = body.raw('value')
    if (value is None) == (not children) or (children and kind):
        raise LaunchError("a param has either 'value' (perhaps with 'type') or a list 'param'")
    with located("key 'value'"):
        value = [_value(v) for v in value] if isinstance(value, list) else _value(value)
    return Param(name=name, kind=None if kind == 'yaml' else kind, value=value, children=children)


def _value(value: Any) -> Any:
    if isinstance(value, str):
        text = parse_text(value)
        # YAML's rules are for what a substitution yields: a string written as one stays one.
        return text if text.has_substitutions else ''.join(text.parts)
    if isinstance(value, (Mapping, Iterable)):
        raise LaunchError(f'{value!r} is neither a scalar nor a list of scalars')
    return value


_CONDITIONS = 'if unless'
_KEYS = {
    'arg': ('name', f'default description choice {_CONDITIONS}'),
    'let': ('name value', _CONDITIONS),
    'node': (
        'pkg exec',
        f'name namespace param remap env args ros_args output on_exit {_CONDITIONS}',
    ),
    'group': ('children', _CONDITIONS),
    'push_ros_namespace': ('namespace', _CONDITIONS),
    'push-ros-namespace': ('namespace', _CONDITIONS),
    'include': ('file', f'arg {_CONDITIONS}'),
    'param': ('', 'from name value type param'),
}
"""Required and optional keys of each entity."""

_READERS = {
    'arg': _arg,
    'let': _let,
    'node': _node,
    'group': _group,
    'push_ros_namespace': _push,
    'push-ros-namespace': _push,
    'include': _include,
}
