# SPDX-License-Identifier: Apache-2.0
"""Notices when nobody listens to the commands: a controller that is not loaded, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from dipod_ros.serving.notices import Notices

# Looks at it in a row that found nobody before it is news: discovery takes a moment.
LOOKS = 3


class ListenerCheck:
    """Looked at once a second, beside /diagnostics."""

    def __init__(self, notices: Notices) -> None:
        """Take where to tell of it."""
        self._notices = notices
        self._alone = 0

    def look(self, topic: str, listeners: Callable[[], int]) -> None:
        """Look whether anybody listens on the command topic."""
        if listeners():
            self._alone = 0
            self._notices.clear('listener', f'somebody listens on {topic}')
            return
        self._alone += 1
        if self._alone >= LOOKS:
            self._notices.set(
                'listener',
                nobody(topic),
            )

    def forget(self) -> None:
        """Nothing is commanded any more: begin anew when it is."""
        self._alone = 0
        self._notices.clear('listener', 'nothing is commanded')


def nobody(topic: str) -> str:
    """Return what to do where nobody listens."""
    return f'nobody listens on {topic}: start the controller, or set `controller` to its name'
