# SPDX-License-Identifier: Apache-2.0
"""Owns what the image streams of N worlds show. No ROS; GL is loaded with the first picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dipod_ros.sim.episodes import Episodes

if TYPE_CHECKING:
    from dipod_ros.policy.spec import Stream
    from dipod_ros.sim.render import SceneRenderer

# uint8 pictures [N, H, W, C] -> features float32 [N, F]
Encode = Callable[[np.ndarray], np.ndarray]


class WorldPictures:
    """Renders the image streams of a task; a world that has not changed is not drawn again."""

    def __init__(self, episodes: Episodes) -> None:
        """Take the worlds; nothing is drawn yet."""
        self._episodes = episodes
        task = episodes.task
        self.streams: tuple[Stream, ...] = tuple(s for s in task.streams() if s.image is not None)
        self._cameras = task.cameras()
        self._renderers: dict[tuple[int, int], SceneRenderer] = {}
        self._state = np.full_like(episodes.worlds.state, np.nan)
        self._goal = np.full_like(episodes.goal, np.nan)
        self._pictures = {
            s.name: np.zeros((episodes.count, *s.image.shape), np.uint8) for s in self.streams
        }
        self._encoders: Mapping[str, Encode] = {}
        self._features: dict[str, np.ndarray] = {}

    def use(self, encoders: Mapping[str, Encode]) -> None:
        """Make features with these encoders from now on, by stream name."""
        self._encoders = dict(encoders)
        self._features = {
            s.name: np.full((self._episodes.count, s.size), np.nan, np.float32)
            for s in self.streams
        }
        self._state.fill(np.nan)

    def pictures(self) -> dict[str, np.ndarray]:
        """Return uint8 [N, H, W, C] by stream name. Raises NoGL where nothing can be drawn."""
        self._update()
        return {name: values.copy() for name, values in self._pictures.items()}

    def features(self, name: str) -> np.ndarray:
        """Return the features float32 [N, F] of a stream; NaN without an encoder for it."""
        if name not in self._encoders:
            stream = next(s for s in self.streams if s.name == name)
            return np.full((self._episodes.count, stream.size), np.nan, np.float32)
        self._update()
        return self._features[name]

    def close(self) -> None:
        """Release the GL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _update(self) -> None:
        state, goal = self._episodes.worlds.state, self._episodes.goal
        changed = (state != self._state).any(axis=1) | (goal != self._goal).any(axis=1)
        rows = np.flatnonzero(changed)
        if not len(rows):
            return
        for stream in self.streams:
            renderer = self._renderer(stream)
            pictures = self._pictures[stream.name]
            for i in rows:
                rgb = renderer.render(state[i], self._cameras[stream.name], goal[i])
                pictures[i] = rgb if stream.image.encoding == 'rgb8' else _grey(rgb)
            if stream.name in self._encoders:
                self._features[stream.name][rows] = self._encoders[stream.name](pictures[rows])
        self._state[rows], self._goal[rows] = state[rows], goal[rows]

    def _renderer(self, stream: Stream) -> SceneRenderer:
        from dipod_ros.sim.render import SceneRenderer

        size = stream.image.width, stream.image.height
        if size not in self._renderers:
            self._renderers[size] = SceneRenderer(self._episodes.task.world, *size, smooth=False)
        return self._renderers[size]


def _grey(rgb: np.ndarray) -> np.ndarray:
    """Return [H, W, 1] by the weights of ITU-R BT.601, as OpenCV's conversion."""
    return np.round(rgb @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
