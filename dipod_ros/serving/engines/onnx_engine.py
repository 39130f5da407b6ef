# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on a CPU: the exported sampler graph, refitted for each checkpoint.

Exporting takes seconds and needs torch; it happens once per kind of graph and machine. After that a
checkpoint only has its weights put into the graph by name, which takes milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.serving.engines import graph_cache
from dipod_ros.serving.engines.base import (
    EngineBase,
    EngineError,
    EngineInfo,
    EngineOptions,
    check_golden,
)
from dipod_ros.serving.engines.graphs import (
    copy_of,
    put_weights,
    require_all,
    with_weights,
)


class OnnxEngine(EngineBase):
    """One ONNX Runtime session with buffers of its own; call `run` from one thread at a time."""

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Mapping[str, np.ndarray],
        threads: int,
        refitted: bool = False,
    ) -> None:
        """Take a graph and put the weights into it, which changes it.

        Raises EngineError when a weight is not an initializer of the graph or has another shape,
        and when the graph cannot be loaded.
        """
        start = time.perf_counter()
        put_weights(model, weights)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Spinning threads starve the trainer and the simulator on a small machine.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        try:
            graph = model.SerializeToString()
            self._session = ort.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
        except Exception as error:  # ORT raises its own classes, which share no base
            reason = str(error).split('\n')[0]
            raise EngineError(f'ONNX Runtime cannot load the policy graph: {reason}') from error
        shapes = {i.name: i.shape for i in self._session.get_inputs()}
        self._observation = np.zeros(shapes['observation'], dtype=np.float32)
        self._noise = np.zeros(shapes['noise'], dtype=np.float32)
        inputs = {'observation': self._observation, 'noise': self._noise}
        self.guided = 'prefix' in shapes
        if self.guided:
            for name in ('prefix', 'weights'):
                inputs[name] = np.zeros(shapes[name], dtype=np.float32)
        self._inputs = inputs
        chunk = self._session.get_outputs()[0]
        self._chunk = np.zeros(chunk.shape, dtype=np.float32)
        # Bound once: an ordinary `run` makes values of its inputs and outputs anew, which takes a
        # fifth of a small policy's time.
        self._binding = self._session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        value = ort.OrtValue.ortvalue_from_numpy(self._chunk)  # a view, on a CPU
        self._binding.bind_ortvalue_output(chunk.name, value)
        self._model = model
        self._names = frozenset(weights)
        self._threads = threads
        self._refitted = refitted
        self._graph_bytes = len(graph)
        self.build_s = time.perf_counter() - start

    @classmethod
    def build(cls, checkpoint: Checkpoint, options: EngineOptions) -> OnnxEngine:
        """Return an engine on the graph kept from an earlier export, or export it now."""
        start = time.perf_counter()
        engine = cls.from_checkpoint(checkpoint, options.threads, options.guided)
        engine.build_s = time.perf_counter() - start
        return engine

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, threads: int, guided: bool = False
    ) -> OnnxEngine:
        """Return an engine on the graph kept from an earlier export, or export it now.

        Exporting imports torch and takes seconds. Raises EngineError or CheckpointError.
        """
        key = graph_cache.graph_key(checkpoint.spec, guided)
        kept = graph_cache.read(key)
        if kept is not None:
            try:
                model = onnx.load_model_from_string(kept)
                engine = cls(model, checkpoint.weights, threads)
                check_golden(engine, checkpoint.manifest.golden)
                return engine
            except Exception:
                # Damaged, or not what this release exports: the checkpoint is not to blame before
                # a graph of its own says so.
                graph_cache.set_aside(key)
        from dipod_ros.policy.export import export_onnx
        from dipod_ros.policy.flow import FlowPolicy

        exported = export_onnx(FlowPolicy.from_checkpoint(checkpoint), guided=guided)
        model = onnx.load_model_from_string(exported)
        engine = cls(model, checkpoint.weights, threads)
        blank = with_weights(model, {k: np.zeros_like(v) for k, v in checkpoint.weights.items()})
        graph_cache.write(key, blank.SerializeToString())
        return engine

    def run(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        prefix: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the chunk float32 [H, A]; `prefix` and `weights` as in `PolicyEngine.run`."""
        self._observation[0] = observation
        self._noise[0] = noise
        if self.guided:
            self._inputs['prefix'][0] = 0.0 if prefix is None else prefix
            self._inputs['weights'][0] = 0.0 if weights is None else weights
        elif prefix is not None:
            raise EngineError('this graph was built without guidance')
        self._session.run_with_iobinding(self._binding)
        return self._chunk[0].copy()

    def refit(self, weights: Mapping[str, np.ndarray]) -> OnnxEngine:
        """Return a session on the same graph with other weights.

        Raises EngineError when they are not the weights of this network.
        """
        require_all(self._names, weights)
        return OnnxEngine(copy_of(self._model), weights, self._threads, refitted=True)

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        return EngineInfo(
            'onnx',
            ort.__version__,
            self._threads,
            self._refitted,
            build_s=self.build_s,
            warm_up_s=self.warm_up_s,
            memory_bytes=self._graph_bytes,
        )
