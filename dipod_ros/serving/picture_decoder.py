# SPDX-License-Identifier: Apache-2.0
"""Decodes compressed pictures aside: it takes up to tens of milliseconds each. No ROS.

Whoever receives them hears the e-stop and the joint states as well, and must not be kept. Of
pictures that come faster than they can be decoded, the newest of each camera is. A picture's age
counts from its receipt: while it waits for those of other cameras, the scene goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.picture import PictureError, read_compressed

# Longer than any picture that is read takes to decode.
ENDS_S = 5.0


class PictureDecoder:
    """Puts pictures into a buffer, on one thread that begins with the first of them."""

    def __init__(self, buffer: ObservationBuffer) -> None:
        """Take where the pictures go."""
        self._buffer = buffer
        self._wake = threading.Condition()
        # Data, stamp and receipt, by topic.
        self._newest: dict[str, tuple[Sequence[int], int, float]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def give(self, topic: str, data: Sequence[int], stamp_ns: int) -> None:
        """Have a picture (JPEG or PNG) decoded, or a newer one of the same topic; returns at once.

        What cannot be decoded is rejected with its reason, as by `read_compressed`.
        """
        with self._wake:
            if self._closed:
                return
            self._newest[topic] = data, stamp_ns, self._buffer.clock()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name='pictures', daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def close(self) -> None:
        """Decode nothing more, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(ENDS_S)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._newest or self._closed)
                if self._closed:
                    return
                # In turn: who was given again meanwhile is behind the others.
                topic = next(iter(self._newest))
                data, stamp_ns, received_s = self._newest.pop(topic)
            try:
                picture = read_compressed(data)
                self._buffer.put('image', topic, picture, stamp_ns, received_s)
            except PictureError as error:
                self._buffer.reject('image', topic, str(error))
            except Exception as error:  # a bug must not blind the arm without a word
                self._buffer.reject('image', topic, f'{type(error).__name__}: {error}')
