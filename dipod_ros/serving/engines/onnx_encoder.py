# SPDX-License-Identifier: Apache-2.0
"""An image encoder on ONNX Runtime: a graph of its own, kept on disk and refitted by name.

The graph takes uint8 and converts inside: a quarter of the bytes to copy, and one place less where
a scale could differ from training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from dipod_ros.policy.spec import Stream
from dipod_ros.serving.engines import graph_cache
from dipod_ros.serving.engines.base import EngineError
from dipod_ros.serving.engines.encoder import check_encoder
from dipod_ros.serving.engines.graphs import copy_of, put_weights, with_weights


class OnnxEncoder:
    """One session; `run` may be called from several threads."""

    def __init__(
        self, model: onnx.ModelProto, weights: Mapping[str, np.ndarray], threads: int
    ) -> None:
        """Take a graph and put the weights into it, which changes it. Raises EngineError."""
        put_weights(model, weights)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(), options, providers=['CPUExecutionProvider']
            )
        except Exception as error:  # ORT raises its own classes, which share no base
            reason = str(error).split('\n')[0]
            raise EngineError(f'ONNX Runtime cannot load the encoder graph: {reason}') from error
        self._model, self._threads = model, threads

    @classmethod
    def from_weights(
        cls,
        stream: Stream,
        weights: Mapping[str, np.ndarray],
        threads: int,
        key: str,
        features: np.ndarray,
    ) -> OnnxEncoder:
        """Return an encoder on the graph kept under `key`, or export it now, which takes seconds.

        A kept graph that does not give the golden `features` is set aside. Raises EngineError.
        """
        kept = graph_cache.read(key)
        if kept is not None:
            try:
                engine = cls(onnx.load_model_from_string(kept), weights, threads)
                check_encoder(engine, stream, features)
                return engine
            except Exception:  # damaged, or of another release: a graph of its own decides
                graph_cache.set_aside(key)
        from dipod_ros.policy.export import export_encoder

        model = onnx.load_model_from_string(export_encoder(stream))
        blank = with_weights(model, {k: np.zeros_like(v) for k, v in weights.items()})
        engine = cls(model, weights, threads)
        graph_cache.write(key, blank.SerializeToString())
        return engine

    def run(self, picture: np.ndarray) -> np.ndarray:
        """Return features float32 [F] for a picture uint8 [H, W, C]."""
        return self._session.run(None, {'image': picture[None]})[0][0]

    def refit(self, weights: Mapping[str, np.ndarray]) -> OnnxEncoder:
        """Return a session on the same graph with other weights; raises EngineError."""
        return OnnxEncoder(copy_of(self._model), weights, self._threads)
