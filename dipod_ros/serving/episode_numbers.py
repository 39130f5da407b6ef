# SPDX-License-Identifier: Apache-2.0
"""Which episode a decision belongs to. No ROS.

The world numbers its episodes; a server that was deactivated and activated again does not know what
happened meanwhile. Its next decisions belong to an episode of their own: under the number of one
that has records already they would spoil it, and be spoiled.
"""

from __future__ import annotations

from dipod_ros.serving.decisions import Outcome


class EpisodeNumbers:
    """The episode of the newest observation, by what the world says; of one actor's records."""

    def __init__(self) -> None:
        """Begin with episode 0."""
        self.now = 0
        self._acted_in: int | None = None  # the episode of the newest decision
        self._shift = 0  # our number less the world's
        self._told = True  # whether the world said anything since `begin`

    def begin(self) -> None:
        """Begin to act, perhaps again: records of before are of other episodes."""
        if self._acted_in is None:
            return
        self.now = max(self.now, self._acted_in + 1)
        self._told = False

    def acted(self) -> None:
        """Note that a decision was made in the present episode."""
        self._acted_in = self.now

    def take(self, outcome: Outcome) -> None:
        """Take what the world says."""
        if not self._told:
            self._told = True
            self._shift = max(0, self.now - outcome.episode)
        self.now = outcome.episode_now + self._shift
