# SPDX-License-Identifier: Apache-2.0
"""Parameters that a file or the command line sets and no node has.

ROS ignores them without a word, and the arm does something else than its owner wrote. But a block
for every node, `/**`, may hold parameters of nodes that are none of ours. So what looks like a slip
ends the start, and so does a limit that is none: whoever wrote it relies on it. The rest is a
warning.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from rclpy.node import Node

from dipod_ros.errors import UserError

# As likeness by difflib: 'promotoin' is 0.89 like 'promotion', 'robot_ip' 0.77 like 'robot'.
SLIP = 0.8
# Groups in which nothing is passed over: they keep the arm from harm.
GUARDED = ('limits.', 'workspace.')
# rclpy declares these when it makes the publisher or subscription that they are about.
LATER = ('qos_overrides.',)


def refuse_unknown(node: Node, known: Collection[str]) -> None:
    """Raise UserError where a parameter given to `node` looks like a misspelt one; warn of others.

    Args:
        node: with its own parameters declared.
        known: names that are no mistake although this node has none of them.

    A name within `GUARDED` (`limits.jerk`) counts as misspelt, whatever it looks like. A word in
    another number (`controllers`) does not: it is what another node would call something of its
    own.

    """
    # rclpy has no public way to list what was given and not declared.
    for name in sorted(getattr(node, '_parameter_overrides', {})):
        if name in known or node.has_parameter(name) or name.startswith(LATER):
            continue
        alike = _nearest(name, known)
        hint = f': did you mean {alike}?' if alike else '.'
        other_number = '_' not in name and name.rstrip('s') == alike.rstrip('s')
        if name.startswith(GUARDED) or (alike and not other_number):
            raise UserError(
                f'unknown parameter {name}{hint} Correct it; if it is meant for a node of yours, '
                'give it under the name of that node and not under /**'
            )
        node.get_logger().warning(
            f'parameter {name} is unknown here and ignored{hint} Correct it, unless it is meant '
            'for another node'
        )


def _nearest(name: str, known: Collection[str]) -> str:
    """Return the known name that is most like another in each of its parts, '' where none is."""
    parts = name.split('.')
    same = [k for k in known if len(k.split('.')) == len(parts)]
    alike = [k for k in same if all(map(_alike, parts, k.split('.')))]
    return next(iter(difflib.get_close_matches(name, alike, 1, SLIP)), '')


def _alike(part: str, known: str) -> bool:
    return difflib.SequenceMatcher(None, part, known).ratio() >= SLIP
