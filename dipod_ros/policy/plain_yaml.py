# SPDX-License-Identifier: Apache-2.0
"""YAML that anybody may have written, read within bounds of depth, size and time.

Aliases are refused: each level of them multiplies what a file of a few lines stands for. ROS
refuses them in parameter files too (rcl_yaml_param_parser), so no robot file loses anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dipod_ros.errors import UserError
from dipod_ros.policy.text_file import read_text

# A manifest is some five levels deep.
MAX_DEPTH = 32
# Values, keys and brackets. The golden numbers of a large policy are ten thousand; each takes ten
# microseconds, and a manifest is read while an arm moves.
MAX_ENTRIES = 20_000
# Characters of one value. PyYAML reads `1:1:1...` as a number of base 60, in quadratic time.
MAX_SCALAR = 1 << 14
# libyaml where it is there: PyYAML's own parser computes for many milliseconds.
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class YamlError(UserError):
    """A text that is not read as YAML; one line that says why and where."""


class _Dumper(yaml.SafeDumper):
    """Writes out what occurs twice: nothing that is written here may be refused there."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_yaml(text: str) -> Any:
    """Return plain values; raises YamlError for what is no YAML, and beyond the bounds above.

    libyaml's loader recurses in C without a bound: what is too deep would end the process. So the
    events are looked at first, which build nothing.
    """
    try:
        _check_events(text)
        return yaml.load(text, Loader=_LOADER)
    except YamlError:
        raise
    # PyYAML's constructors also raise KeyError, IndexError and others, for a tag on a wrong value.
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise YamlError(f'is not YAML: {reason}') from error


def read_yaml(path: str | Path, what: str = '') -> Any:
    """Return the plain values of a file; `what` it is stands before its path in errors.

    Raises UserError when it cannot be read, and YamlError as `parse_yaml`.
    """
    text = read_text(path, what)
    try:
        return parse_yaml(text)
    except YamlError as error:
        raise YamlError(f'{what} {path} {error}'.strip()) from error


def dump_yaml(value: Any, **options: Any) -> str:
    """Return plain values as YAML without aliases; options are those of `yaml.dump`."""
    return yaml.dump(value, Dumper=_Dumper, **options)


def _check_events(text: str) -> None:
    depth = 0
    for entries, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        line = event.start_mark.line + 1
        if entries > MAX_ENTRIES:
            raise YamlError(f'has more than {MAX_ENTRIES} entries by line {line}')
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(
                f'uses an alias in line {line}: write out what *{event.anchor} stands for'
            )
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
            raise YamlError(f'has a value of more than {MAX_SCALAR} characters in line {line}')
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(f'is nested deeper than {MAX_DEPTH} levels in line {line}')
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
