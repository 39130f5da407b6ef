# SPDX-License-Identifier: Apache-2.0
"""The image encoder's part of `dipod bench engine`: ONNX Runtime beside PyTorch, one picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from dipod_ros.cli.arguments import find_checkpoint
from dipod_ros.cli.bench_measure import (
    no_garbage_collection,
    ratio_of_medians,
    spread,
    time_calls,
)
from dipod_ros.policy.checkpoint import load
from dipod_ros.policy.image import golden_image
from dipod_ros.serving.engines.encoder import EncoderFactory

MODEL = 'reach_camera_flow'
PICTURES = 16
US = 1e6


def measure_encoder(rounds: int, calls: int) -> dict[str, Any]:
    """Return the figures of the shipped encoder, both engines in turn."""
    checkpoint = load(find_checkpoint(MODEL))
    ((stream, _),) = checkpoint.spec.images
    pictures = [golden_image(stream.image, seed) for seed in range(PICTURES)]
    engines = {k: EncoderFactory(k).build(checkpoint)[stream.name] for k in ('onnx', 'torch')}
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    with no_garbage_collection():
        for _ in range(rounds):
            for name, engine in engines.items():
                seconds[name].append(
                    time_calls(lambda i, engine=engine: engine.run(pictures[i % PICTURES]), calls)
                )
    onnx, torch = (np.stack(seconds[name]) for name in ('onnx', 'torch'))
    return {
        **spread('encoder_onnx_us', onnx * US),
        **spread('encoder_torch_us', torch * US),
        'encoder_speedup': ratio_of_medians(torch, onnx),
    }
