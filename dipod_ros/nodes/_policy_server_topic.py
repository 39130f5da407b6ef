# SPDX-License-Identifier: Apache-2.0
"""The topic that commands go out on, with a publisher from activation to deactivation alone.

Discovery tells of publishers and the names of their nodes, which two servers that were started
alike share; it does not tell whether one is mute. So a server that stands by has none, and one that
acts is seen by everybody.
"""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode

from dipod_ros.errors import UserError
from dipod_ros.ros import qos

# How long the last command, which ends the motion, may take to be heard before the publisher goes.
LAST_WORD_S = 0.5
# In what rmw calls nodes that it knows the publisher of and nothing else.
UNKNOWN = '_NODE_NAME_UNKNOWN_'


class CommandTopic:
    """One command topic of a lifecycle node, open while it acts."""

    def __init__(self, node: LifecycleNode, kind: type, topic: str) -> None:
        """Take the type of its messages; raises UserError when the topic's name cannot be."""
        self._node, self._kind, self._topic = node, kind, topic
        try:
            self.name = node.resolve_topic_name(topic)
        except Exception as error:  # too long with its namespace; the class differs by distribution
            reason = str(error).split('\n')[0]
            raise UserError(f'cannot command on {topic}: {reason}') from error
        self._publisher = None

    def open(self) -> None:
        """Create the publisher; it is mute until the node is active."""
        if self._publisher is None:
            self._publisher = self._node.create_lifecycle_publisher(
                self._kind, self._topic, qos.COMMAND
            )

    def publish(self, msg: object) -> None:
        """Publish a message, or its bytes, while open."""
        self._publisher.publish(msg)

    def listeners(self) -> int:
        """Return how many subscriptions the commands reach, or would reach by name."""
        if self._publisher is None:
            return self._node.count_subscribers(self.name)
        return self._publisher.get_subscription_count()

    def commanders(self) -> list[str]:
        """Return the full names of the nodes that publish there, but for this one's publisher."""
        own = self._node.get_fully_qualified_name()
        infos = self._node.get_publishers_info_by_topic(self._topic)
        names = [f'{i.node_namespace.rstrip("/")}/{i.node_name}' for i in infos]
        if self._publisher is not None and own in names:
            names.remove(own)
        return sorted(_label(name, own) for name in names)

    def close(self) -> None:
        """Destroy the publisher, once its last message was heard."""
        if self._publisher is None:
            return
        self._publisher.wait_for_all_acked(Duration(seconds=LAST_WORD_S))
        publisher, self._publisher = self._publisher, None
        self._node.destroy_lifecycle_publisher(publisher)


def _label(name: str, own: str) -> str:
    if UNKNOWN in name:
        return 'a node that discovery has no name of'
    return f'{name} (another node of this name)' if name == own else name
