# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on an x86 CPU: the graph of the ONNX engine, compiled by another runtime. Optional."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx
import openvino

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.policy.export import export_onnx
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.serving.engines.base import (
    EngineBase,
    EngineError,
    EngineInfo,
    EngineOptions,
    golden_tolerance_rad,
)
from dipod_ros.serving.engines.graphs import copy_of, put_weights, require_all

_HINTS = {'fp32': 'f32', 'bf16': 'bf16'}


class OpenVinoEngine(EngineBase):
    """One compiled model with an inference request of its own."""

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Mapping[str, np.ndarray],
        options: EngineOptions,
        refitted: bool = False,
    ) -> None:
        """Take a graph and put the weights into it; raises EngineError when it does not compile."""
        start = time.perf_counter()
        put_weights(model, weights)
        settings = {
            'INFERENCE_NUM_THREADS': options.threads,
            'INFERENCE_PRECISION_HINT': _HINTS[options.precision],
            'PERFORMANCE_HINT': 'LATENCY',
        }
        try:
            core = openvino.Core()
            graph = core.read_model(model.SerializeToString())
            compiled = core.compile_model(graph, 'CPU', settings)
        except RuntimeError as error:
            reason = str(error).strip().split('\n')[-1]
            raise EngineError(f'OpenVINO cannot compile the policy graph: {reason}') from error
        self._request = compiled.create_infer_request()
        self._model, self._names, self._options = model, frozenset(weights), options
        self._refitted = refitted
        std = weights['normalizer.action_std']
        self.golden_tolerance_rad = golden_tolerance_rad(options.precision, std)
        self._build_s = time.perf_counter() - start

    @classmethod
    def build(cls, checkpoint: Checkpoint, options: EngineOptions) -> OpenVinoEngine:
        """Export and compile; raises EngineError or CheckpointError."""
        policy = FlowPolicy.from_checkpoint(checkpoint)
        model = onnx.load_model_from_string(export_onnx(policy))
        return cls(model, checkpoint.weights, options)

    def run(self, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the chunk float32 [H, A]."""
        feed = {'observation': observation[None], 'noise': noise[None]}
        return np.array(self._request.infer(feed)['chunk'][0])

    def refit(self, weights: Mapping[str, np.ndarray]) -> OpenVinoEngine:
        """Return a compiled model of the same graph with other weights.

        Raises EngineError when they are not the weights of this network.
        """
        require_all(self._names, weights)
        return OpenVinoEngine(copy_of(self._model), weights, self._options, refitted=True)

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        return EngineInfo(
            'openvino',
            openvino.__version__,
            self._options.threads,
            self._refitted,
            precision=self._options.precision,
            build_s=self._build_s,
            warm_up_s=self.warm_up_s,
        )
