# SPDX-License-Identifier: Apache-2.0
"""What a name of a ROS topic may look like, for those who read names from files. No ROS.

The rules of https://design.ros2.org/articles/topic_and_service_names.html, as far as they can be
told without a node.
"""

from __future__ import annotations

import re

from dipod_ros.errors import UserError

# 247 with the namespace (rmw); what a node puts around a name is short.
MAX_LENGTH = 200
_SUBSTITUTION = re.compile(r'\{(?:node|ns|namespace)\}')
_NAME = re.compile(r'(?:~?/)?[A-Za-z_]\w*(?:/[A-Za-z_]\w*)*', re.ASCII)
_RULE = 'letters, digits and _, no digit first, parts joined by single /'


def topic_problem(name: str) -> str:
    """Say why `name` cannot be (the beginning of) a topic, or return ''."""
    if len(name) > MAX_LENGTH:
        return f'has {len(name)} characters, more than {MAX_LENGTH}'
    if not _NAME.fullmatch(_SUBSTITUTION.sub('x', name)):
        return f'is {name!r}, which is no name of a ROS topic: {_RULE}'
    return ''


def require_topic(name: str, what: str) -> None:
    """Raise UserError when `name` cannot be (the beginning of) a topic; `what` says whose it is."""
    problem = topic_problem(name)
    if problem:
        raise UserError(f'{what} {problem}')
