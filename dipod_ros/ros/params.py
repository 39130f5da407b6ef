# SPDX-License-Identifier: Apache-2.0
"""ROS parameters as one dataclass per node: typed, described, range-checked, documented.

    @dataclass(frozen=True)
    class Limits:
        velocity: tuple[float, ...] = param((), 'largest speed', unit='rad/s')

    @dataclass(frozen=True)
    class Params:
        rate_hz: float = param(50.0, 'how often', low=1.0, high=1000.0)
        limits: Limits = group(Limits)

    params = declare(node, Params)      # ROS names: rate_hz, limits.velocity

The table is the only place that knows a parameter: declaration, checks and documentation follow it.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dipod_ros.errors import UserError

T = TypeVar('T')

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple[int, ...]: Parameter.Type.INTEGER_ARRAY,
    tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
    tuple[str, ...]: Parameter.Type.STRING_ARRAY,
}
_HINTS = {
    Parameter.Type.BOOL: 'true or false',
    Parameter.Type.INTEGER: 'a whole number',
    Parameter.Type.DOUBLE: 'a number written with a decimal point, such as 40.0',
    Parameter.Type.STRING: 'a string',
    Parameter.Type.INTEGER_ARRAY: 'a list of whole numbers',
    Parameter.Type.DOUBLE_ARRAY: 'a list of numbers, all written with a decimal point: [1.0, 2.0]',
    Parameter.Type.STRING_ARRAY: 'a list of strings',
}


@dataclass(frozen=True)
class Entry:
    """One parameter: its ROS name, type, default and what the table says about it."""

    name: str
    kind: Any
    default: Any
    description: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = True

    @property
    def type(self) -> Parameter.Type:
        """The ROS type of the parameter."""
        return _TYPES[self.kind]

    @property
    def allowed(self) -> str:
        """What values are allowed, in words; empty when any is."""
        if self.choices:
            return ' | '.join(c or '(empty)' for c in self.choices)
        low = '' if self.low is None else f'{self.low:g}'
        high = '' if self.high is None else f'{self.high:g}'
        return f'{low}..{high}' if low or high else ''

    def problem(self, value: Any) -> str:
        """Say what is wrong with a value of the right type, or return ''."""
        if self.choices and value not in self.choices:
            return f'{self.name} is {value!r}; use one of {list(self.choices)}'
        # YAML knows .nan and .inf, and nan is neither below nor above any bound.
        if self.type in (Parameter.Type.DOUBLE, Parameter.Type.DOUBLE_ARRAY):
            values = [value] if self.type is Parameter.Type.DOUBLE else value
            odd = [v for v in values if not math.isfinite(v)]
            if odd:
                return f'{self.name} must hold finite numbers, got {odd[0]}'
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if self.low is not None and value < self.low:
                return f'{self.name} is {value:g}, below {self.low:g}'
            if self.high is not None and value > self.high:
                return f'{self.name} is {value:g}, above {self.high:g}'
        return ''


def param(
    default: Any,
    description: str,
    *,
    unit: str = '',
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    read_only: bool = True,
) -> Any:
    """Describe a field of a parameter table.

    Read-only parameters are fixed when the node starts; the others may be set while it runs.
    """
    entry = {
        'description': description,
        'unit': unit,
        'low': low,
        'high': high,
        'choices': tuple(choices),
        'read_only': read_only,
    }
    return field(default=default, metadata={'param': entry})


def group(table: type[T]) -> T:
    """Nest another table: its fields get the prefix `<field>.`."""
    return field(default_factory=table)


def entries(table: type, prefix: str = '') -> Iterator[Entry]:
    """Yield every parameter of a table, nested ones with dotted names, in order."""
    hints = typing.get_type_hints(table)
    for f in fields(table):
        kind = hints[f.name]
        if is_dataclass(kind):
            yield from entries(kind, f'{prefix}{f.name}.')
        elif 'param' not in f.metadata or f.default is MISSING or kind not in _TYPES:
            raise TypeError(f'{table.__name__}.{f.name}: use param(default, ...) and a known type')
        else:
            yield Entry(prefix + f.name, kind, f.default, **f.metadata['param'])


def declare(node: Node, table: type[T]) -> T:
    """Declare every parameter of `table` on `node` and return the table filled in.

    Raises UserError with one line when a parameter file or the command line gives a wrong type or a
    value out of range.
    """
    by_name = {e.name: e for e in entries(table)}

    def check(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            entry = by_name.get(parameter.name)
            if entry is not None and parameter.type_ == entry.type:
                reason = entry.problem(parameter.value)
                if reason:
                    return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)
    values = {e.name: _declare_one(node, e) for e in by_name.values()}
    return _fill(table, values)


def _declare_one(node: Node, entry: Entry) -> Any:
    descriptor = ParameterDescriptor(
        description=entry.description + (f' [{entry.unit}]' if entry.unit else ''),
        read_only=entry.read_only,
        additional_constraints=entry.allowed if entry.choices else '',
    )
    if entry.low is not None or entry.high is not None:
        low = -float('inf') if entry.low is None else entry.low
        high = float('inf') if entry.high is None else entry.high
        if entry.kind is int:
            bound = 2**63 - 1
            descriptor.integer_range = [
                IntegerRange(
                    from_value=int(max(low, -bound)), to_value=int(min(high, bound)), step=0
                )
            ]
        elif entry.kind is float:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
            ]
    # An empty list says nothing about the type of its elements: declare the type, leave it unset.
    unset = isinstance(entry.default, tuple) and not entry.default
    default = list(entry.default) if isinstance(entry.default, tuple) else entry.default
    try:
        node.declare_parameter(entry.name, entry.type if unset else default, descriptor)
        return _value(entry, node.get_parameter(entry.name).value)
    except ParameterUninitializedException:
        return entry.default
    except InvalidParameterTypeException as error:
        raise UserError(f'parameter {entry.name} must be {_HINTS[entry.type]}') from error
    except InvalidParameterValueException as error:
        # rclpy gives no access to the refused value but through its message.
        given = re.search(r'value \((.*?)\) for', str(error))
        must = 'be one of' if entry.choices else 'be within'
        must = f'{must} {entry.allowed}' if entry.allowed else 'hold finite numbers'
        raise UserError(
            f'parameter {entry.name} must {must}' + (f', got {given[1]}' if given else '')
        ) from error


def _value(entry: Entry, value: Any) -> Any:
    if value is None:
        return entry.default
    return tuple(value) if isinstance(entry.default, tuple) else value


def _fill(table: type[T], values: dict[str, Any], prefix: str = '') -> T:
    hints = typing.get_type_hints(table)
    kwargs = {}
    for f in fields(table):
        name = prefix + f.name
        if is_dataclass(hints[f.name]):
            kwargs[f.name] = _fill(hints[f.name], values, f'{name}.')
        else:
            kwargs[f.name] = values[name]
    return table(**kwargs)


def markdown(table: type) -> str:
    """Return the table as markdown, for the documentation."""
    lines = [
        '| parameter | type | default | allowed | while running | meaning |',
        '|---|---|---|---|---|---|',
    ]
    for e in entries(table):
        kind = _TYPES[e.kind].name.lower().replace('_array', ' list')
        default = '' if e.default in ('', ()) else _yaml(e.default)
        unit = f' [{e.unit}]' if e.unit else ''
        allowed = e.allowed.replace('|', '\\|')
        lines.append(
            f'| `{e.name}` | {kind} | {default and f"`{default}`"} | {allowed} | '
            f'{"no" if e.read_only else "yes"} | {_escaped(e.description)}{unit} |'
        )
    return '\n'.join(lines) + '\n'


def _escaped(text: str) -> str:
    # <name> would be taken for a tag and vanish, | for the end of a cell.
    return re.sub(r'(?=<[a-zA-Z/]|\|)', r'\\', text)


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return '[' + ', '.join(_yaml(v) for v in value) + ']'
    return str(value)
