# SPDX-License-Identifier: Apache-2.0
"""How a chunk continues the one before it. numpy, no ROS.

replace   the new chunk takes over where it begins
ensemble  where chunks overlap, their targets are averaged (ACT, arXiv 2304.13705)
rtc       the sampler is guided to continue what is committed (real-time chunking, arXiv 2506.07339)

What is averaged or guided is not a plain sample of the policy: its records say `interrupted`, and
nobody learns from them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from dipod_ros.serving.observation import ObservationLayout

SEAMS = ('replace', 'ensemble', 'rtc')


class Ensemble:
    """Averages the targets that chunks of different times give to the same tick.

    Weights exp(-decay i), i = 0 for the oldest chunk (arXiv 2304.13705, section on temporal
    ensembling): a larger `decay` takes new observations in more slowly.
    """

    def __init__(self, decay: float) -> None:
        """Take the decay per chunk; 0 weighs all chunks alike."""
        self._decay = decay
        self._chunks: deque[tuple[int, np.ndarray]] = deque()  # (tick before the first, [H, A])

    def add(self, start: int, targets: np.ndarray, tick: int) -> tuple[np.ndarray, bool]:
        """Return the averages [H, A] of a chunk's absolute targets (rad) with those remembered.

        Targets [H, A] are for ticks start + 1, ...; those up to `tick` have passed and stay as they
        are. The second value says whether any other chunk had a say.
        """
        self._chunks.append((start, targets))
        while self._chunks[0][0] + len(self._chunks[0][1]) <= tick:
            self._chunks.popleft()
        out, blended = targets.copy(), False
        for k in range(max(0, tick - start), len(targets)):
            due = start + 1 + k
            said = [t[due - s - 1] for s, t in self._chunks if s < due <= s + len(t)]
            if len(said) > 1:
                weights = np.exp(-self._decay * np.arange(len(said)))
                out[k] = weights @ np.array(said) / weights.sum()
                blended = True
        return out, blended

    def clear(self) -> None:
        """Forget every chunk."""
        self._chunks.clear()


@dataclass(frozen=True, eq=False)
class Guidance:
    """What a chunk shall continue, in the policy's joint order."""

    prefix: np.ndarray  # float32 [H, A] rad per control step; 0 where nothing is known
    weights: np.ndarray  # float32 [H]: 1 is certain to be executed, 0 is free

    def settle(self, chunk: np.ndarray) -> np.ndarray:
        """Return the chunk [H, A] with its certain steps as they are certain to be.

        Guidance only comes near them, and increments add up: the rest would begin beside the path.
        """
        return np.where(self.weights[:, None] >= 1.0, self.prefix, chunk)


def soft_mask(horizon: int, certain: int, known: int) -> np.ndarray:
    """Return how much each step [H] of a chunk is bound to the plan before.

    1 for the `certain` steps that are executed before the chunk can be there, then falling
    exponentially over the steps that the old chunk has left (`known` counts both), then 0
    (arXiv 2506.07339, Eq. 5):

        W_i = c_i (e^c_i - 1) / (e - 1),  c_i = (known - i) / (known - certain + 1)
    """
    i = np.arange(horizon)
    c = np.clip((known - i) / (max(known - certain, 0) + 1), 0.0, 1.0)
    weights = c * np.expm1(c) / np.expm1(1.0)
    weights[:certain] = 1.0
    weights[max(known, certain) :] = 0.0
    return weights.astype(np.float32)


def guidance(
    layout: ObservationLayout, points: np.ndarray, horizon: int, certain: int
) -> Guidance | None:
    """Return the guidance for a chunk that begins at points[0], None when it is free.

    Args:
        layout: of the policy that is asked.
        points: control points [K + 1, A] (rad, the robot's joint order) at the tick that the chunk
            answers and the K ticks after it for which something is planned.
        horizon: steps of a chunk, H.
        certain: how many of the K will have been executed when the chunk is there.

    """
    known = min(len(points) - 1, horizon)
    if known <= 0:
        return None
    prefix = np.zeros((horizon, points.shape[-1]), dtype=np.float32)
    prefix[:known] = layout.to_policy(np.diff(points[: known + 1], axis=0))
    return Guidance(prefix, soft_mask(horizon, min(certain, known), known))
