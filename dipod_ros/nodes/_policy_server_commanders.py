# SPDX-License-Identifier: Apache-2.0
"""Nobody commands beside another: two plans on one controller make it jump from one to the other.

Each of them keeps the limits; what the controller makes of both does not. So a server that finds
somebody else's publisher on its command topic does not become active, and one that acts stops for
any that comes. An action client or a program that switches controllers is not seen by this.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dipod_ros.errors import UserError
from dipod_ros.nodes._policy_server_topic import CommandTopic
from dipod_ros.serving.loop import Loop
from dipod_ros.serving.notices import Notices

# What is there already is known to a node this long after its start: most of it at once, and what
# got lost when Fast DDS says it again, every 3 s.
DISCOVERY_S = 3.5
# A server that was just told to end is gone by then. One that was killed stays known for longer
# than anybody waits at an activation: 20 s with the defaults of Fast DDS, 10 s with Cyclone DDS.
PATIENCE_S = 3.0
# Two that become active in the same moment have seen each other's publisher by then.
SETTLE_S = 0.2
# The controller is found by the new publisher within this, or it is not there.
MATCH_S = 1.0
LOOK_S = 0.02
# What is done about one that comes while this node acts; it has to be seen so often in a row.
STOP, WARN = ON_OTHERS = ('stop', 'warn')
LOOKS = 2


class Commanders:
    """Sees to it that this node's commands are the only ones on their topic."""

    def __init__(
        self, sole: bool, stops: bool, notices: Notices, tell: Callable[[str], None]
    ) -> None:
        """Take whether to be the only one, whether to stop for others, and whom to tell.

        The node was made just now.
        """
        self._sole, self._stops, self._notices, self._tell = sole, stops, notices, tell
        self._looks = 0  # in a row that found somebody else
        self._knows_s = time.monotonic() + DISCOVERY_S

    def claim(self, topic: CommandTopic) -> None:
        """Open the topic, with nobody else there; blocks for 0.2 s, up to 8 right after the start.

        Raises UserError, with the topic closed, when somebody else publishes there.
        """
        if self._sole:
            time.sleep(max(0.0, self._knows_s - time.monotonic()))
        self._wait_for_others_to_go(topic)
        topic.open()
        begun_s = time.monotonic()
        while (waited_s := time.monotonic() - begun_s) < MATCH_S:
            if topic.listeners() and waited_s >= SETTLE_S:
                break
            time.sleep(LOOK_S)
        if reasons := self.refusals(topic):
            topic.close()
            raise UserError(reasons[0])

    def others(self, topic: CommandTopic) -> list[str]:
        """Return who else commands and may not."""
        return topic.commanders() if self._sole else []

    def refusals(self, topic: CommandTopic) -> list[str]:
        """Return why an activation would be refused now, [] when it would not."""
        others = self.others(topic)
        return [_refusal(others, topic)] if others else []

    def look(self, topic: CommandTopic, loop: Loop) -> None:
        """Stop a loop that acts for somebody else who commands by now, and tell who that is."""
        reasons = self.refusals(topic)
        self._looks = self._looks + 1 if reasons else 0
        stops = self._stops and loop.can_make_way
        if stops:
            loop.make_way(self._looks >= LOOKS)
        if reasons:
            then = 'the arm is stopped until then' if stops else 'the arm may jump'
            self._notices.set('commander', f'{reasons[0]}; {then}')
        else:
            self._notices.clear('commander', f'nobody else publishes on {topic.name}')

    def forget(self) -> None:
        """Nothing is commanded any more."""
        self._looks = 0
        self._notices.clear('commander', 'nothing is commanded')

    def _wait_for_others_to_go(self, topic: CommandTopic) -> None:
        end_s, told = time.monotonic() + PATIENCE_S, False
        while reasons := self.refusals(topic):
            if time.monotonic() >= end_s:
                raise UserError(reasons[0])
            if not told:
                told = True
                self._tell(f'waiting: {reasons[0]}')
            time.sleep(LOOK_S)


def _refusal(others: list[str], topic: CommandTopic) -> str:
    verb = 'publishes' if len(others) == 1 else 'publish'
    return (
        f'{" and ".join(others)} {verb} on {topic.name} too: end it, or deactivate it if it is a '
        'policy server (one that was killed is forgotten after 20 s)'
    )
