# SPDX-License-Identifier: Apache-2.0
"""The eyes of a serving policy: features of the newest picture of every image stream. No ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dipod_ros.policy.spec import Stream
from dipod_ros.serving.engines.encoder import EncoderEngine
from dipod_ros.serving.picture import Picture, fit


class Eyes:
    """Encodes each picture once, however many decisions are made on it; for one thread."""

    def __init__(
        self, images: Sequence[tuple[Stream, slice]], encoders: Mapping[str, EncoderEngine]
    ) -> None:
        """Take the image streams with their places in the observation, and an encoder for each."""
        self._images = tuple(images)
        self._encoders = dict(encoders)
        self._seen: list[tuple[Picture | None, np.ndarray]] = [
            (None, np.empty(0, np.float32)) for _ in self._images
        ]
        self.encoded = 0  # pictures that went through an encoder

    def look(self, pictures: Sequence[Picture], observation: np.ndarray) -> None:
        """Put the features of these pictures, in stream order, into the observation [O]."""
        for i, ((stream, place), picture) in enumerate(zip(self._images, pictures, strict=True)):
            if picture is not self._seen[i][0]:
                encoder = self._encoders[stream.name]
                self._seen[i] = picture, encoder.run(fit(picture, stream.image))
                self.encoded += 1
            observation[place] = self._seen[i][1]
