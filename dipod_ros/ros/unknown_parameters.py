# SPDX-License-Identifier: Apache-2.0
"""Parameters that a file or the command line sets and no node has.

ROS ignores them without a word, and the arm does something else than its owner wrote. But a block
for every node, `/**`, may hold parameters of nodes that are none of ours. So what looks like a slip
ends the start, and the rest is a warning.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from rclpy.node import Node

from dipod_ros.errors import UserError

# As likeness by difflib: 'promotoin' is 0.89 like 'promotion', 'robot_ip' 0.77 like 'robot'.
SLIP = 0.8
# rclpy declares these when it makes the publisher or subscription that they are about.
LATER = ('qos_overrides.',)


def refuse_unknown(node: Node, known: Collection[str]) -> None:
    """Raise UserError where a parameter given to `node` looks like a misspelt one; warn of others.

    Args:
        node: with its own parameters declared.
        known: names that are no mistake although this node has none of them.

    A name inside one of the groups (`limits.jerk`) counts as misspelt, whatever it looks like.

    """
    groups = {name.split('.')[0] for name in known if '.' in name}
    # rclpy has no public way to list what was given and not declared.
    for name in sorted(getattr(node, '_parameter_overrides', {})):
        if name in known or node.has_parameter(name) or name.startswith(LATER):
            continue
        alike = difflib.get_close_matches(name, known, 1, SLIP)
        if alike or name.split('.')[0] in groups:
            hint = f': did you mean {alike[0]}?' if alike else '.'
            raise UserError(
                f'unknown parameter {name}{hint} Correct it; if it is meant for a node of yours, '
                'give it under the name of that node and not under /**'
            )
        node.get_logger().warning(
            f'parameter {name} is unknown here and ignored: misspelt, or meant for another node?'
        )
