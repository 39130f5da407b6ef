# SPDX-License-Identifier: Apache-2.0
"""XML that anybody may have written, read within bounds: no document type, so no entities."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.policy.text_file import read_text

# A URDF of a humanoid is half a megabyte; its elements are some five levels deep.
MAX_BYTES = 16 << 20
MAX_DEPTH = 64


class _Builder(ElementTree.TreeBuilder):
    """Builds elements, and stops where a file begins to ask for more than elements."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, *_: str | None) -> None:
        # Called before the entities are read: they can multiply a few lines to gigabytes.
        raise UserError('has a document type: remove its <!DOCTYPE ...>, nothing here needs one')

    def start(self, *what):
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UserError(f'is nested deeper than {MAX_DEPTH} elements')
        return super().start(*what)

    def end(self, *what):
        self._depth -= 1
        return super().end(*what)


def read_xml(path: str | Path, what: str = '') -> tuple[ElementTree.Element, str]:
    """Return the root element of a file and its text; `what` it is stands before it in errors.

    Raises UserError when the file cannot be read, is no XML, or is beyond the bounds above.
    """
    text = read_text(path, what, MAX_BYTES)
    named = f'{what} {path}'.strip()
    try:
        return ElementTree.fromstring(text, ElementTree.XMLParser(target=_Builder())), text
    except UserError as error:
        raise UserError(f'{named} {error}') from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f'{named} is not XML: {error}') from error
