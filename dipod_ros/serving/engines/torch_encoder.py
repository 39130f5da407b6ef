# SPDX-License-Identifier: Apache-2.0
"""An image encoder on PyTorch: no export, slower, always agrees with training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dipod_ros.policy.image import PREFIX
from dipod_ros.policy.spec import Stream
from dipod_ros.policy.vision import KeypointEncoder, load_encoder


class TorchEncoder:
    """Runs KeypointEncoder eagerly."""

    def __init__(self, stream: Stream, encoder: KeypointEncoder) -> None:
        """Take a frozen encoder."""
        self._stream, self._encoder = stream, encoder

    @classmethod
    def from_weights(
        cls, stream: Stream, weights: Mapping[str, np.ndarray], threads: int
    ) -> TorchEncoder:
        """Build the network; `threads` is per process in PyTorch. Raises UserError."""
        torch.set_num_threads(threads)
        full = {f'{PREFIX}{stream.name}.{k}': v for k, v in weights.items()}
        return cls(stream, load_encoder(stream, full))

    def run(self, picture: np.ndarray) -> np.ndarray:
        """Return features float32 [F] for a picture uint8 [H, W, C]."""
        return self._encoder.encode(picture[None])[0]

    def refit(self, weights: Mapping[str, np.ndarray]) -> TorchEncoder:
        """Return an encoder of the same network with other weights."""
        return TorchEncoder.from_weights(self._stream, weights, torch.get_num_threads())
