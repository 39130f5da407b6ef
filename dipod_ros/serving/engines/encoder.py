# SPDX-License-Identifier: Apache-2.0
"""What runs image encoders: one engine per stream, checked before it comes to act. numpy only."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.policy.image import golden_image, weights_of
from dipod_ros.policy.spec import Stream
from dipod_ros.serving.engines.base import WARM_UP_RUNS, EngineError
from dipod_ros.serving.engines.graph_cache import EXPORTERS, FORMAT, package_version

# Features are about 1 in size; float32 backends agree to 1e-6, a wrong weight shows as 1e-2.
GOLDEN_TOLERANCE = 1e-4
# Graphs whose last engine is kept for a refit: those of the cameras of two policies.
MAX_GRAPHS = 8


class EncoderEngine(Protocol):
    """Runs the encoder of one image stream."""

    def run(self, picture: np.ndarray) -> np.ndarray:
        """Return features float32 [F] for a picture uint8 [H, W, C]; from any thread."""
        ...

    def refit(self, weights: Mapping[str, np.ndarray]) -> EncoderEngine:
        """Return an engine of the same graph with other weights; this one goes on unchanged."""
        ...


class EncoderFactory:
    """Builds encoders for checkpoints, refitting where only the weights differ."""

    def __init__(self, engine: str, threads: int = 1) -> None:
        """Run on PyTorch for engine `torch` or without ONNX Runtime, else on that, on the CPU.

        Whatever runs the policy: an encoder of this size is done before a GPU is reached.
        """
        lacking = any(importlib.util.find_spec(name) is None for name in ('onnx', 'onnxruntime'))
        self._torch = engine == 'torch' or lacking
        self._threads = threads
        # The last engine of each graph with its weights: online learning keeps the encoder.
        self._by_graph: OrderedDict[str, tuple[EncoderEngine, dict[str, np.ndarray]]]
        self._by_graph = OrderedDict()

    def build(self, checkpoint: Checkpoint) -> dict[str, EncoderEngine]:
        """Return a warm, checked engine for every image stream, by its name.

        Raises EngineError when an engine does not give the manifest's golden features.
        """
        return {
            stream.name: self._build(stream, checkpoint) for stream, _ in checkpoint.spec.images
        }

    def _build(self, stream: Stream, checkpoint: Checkpoint) -> EncoderEngine:
        weights = weights_of(checkpoint.weights, stream.name)
        golden = checkpoint.manifest.golden
        if golden is None:
            raise EngineError('the manifest holds no golden features to check the encoder against')
        key = encoder_key(stream)
        engine, known = self._by_graph.get(key, (None, {}))
        if engine is None:
            engine = self._from_weights(stream, weights, golden.features[stream.name], key)
        elif not _same(known, weights):
            engine = engine.refit(weights)
        check_encoder(engine, stream, golden.features[stream.name])
        self._by_graph[key] = engine, weights
        self._by_graph.move_to_end(key)
        while len(self._by_graph) > MAX_GRAPHS:
            self._by_graph.popitem(last=False)
        return engine

    def _from_weights(
        self, stream: Stream, weights: Mapping[str, np.ndarray], features: np.ndarray, key: str
    ) -> EncoderEngine:
        if self._torch:
            from dipod_ros.serving.engines.torch_encoder import TorchEncoder

            return TorchEncoder.from_weights(stream, weights, self._threads)
        from dipod_ros.serving.engines.onnx_encoder import OnnxEncoder

        return OnnxEncoder.from_weights(stream, weights, self._threads, key, features)


def check_encoder(engine: EncoderEngine, stream: Stream, features: np.ndarray) -> None:
    """Run an encoder on the golden image; raises EngineError when it gives other features."""
    picture = golden_image(stream.image)
    for _ in range(WARM_UP_RUNS):
        found = engine.run(picture)
    allowed = GOLDEN_TOLERANCE * max(1.0, float(np.max(np.abs(features))))
    if found.shape != features.shape:
        raise EngineError(f'encoder of {stream.name}: {found.shape}, golden {features.shape}')
    error = float(np.max(np.abs(found - features)))
    if not error <= allowed:  # catches NaN as well
        raise EngineError(
            f'golden check failed: the encoder of stream {stream.name} differs from the stored '
            f'features by {error:.2g}, allowed {allowed:.2g}'
        )


def encoder_key(stream: Stream) -> str:
    """Return a hash of everything that shapes the graph of a stream's encoder."""
    shape = {
        'format': FORMAT,
        'image': stream.image.to_dict(),
        'size': stream.size,
        'exporters': [package_version(name) for name in EXPORTERS],
    }
    return 'encoder-' + hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(v, other[k]) for k, v in one.items())
