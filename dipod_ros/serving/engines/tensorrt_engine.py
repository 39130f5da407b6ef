# SPDX-License-Identifier: Apache-2.0
"""TensorRT: the exported sampler graph as a plan for one GPU, kept on disk, refitted by name.

Memory and stream come from the driver itself, so that neither torch nor CUDA's Python packages are
needed where the policy runs. Not yet run on a GPU: docs/engines.md says what was checked instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import tensorrt as trt

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.serving.engines import cuda_driver
from dipod_ros.serving.engines.base import (
    EngineBase,
    EngineError,
    EngineInfo,
    EngineOptions,
    check_golden,
    golden_tolerance_rad,
)
from dipod_ros.serving.engines.graphs import (
    blank_graph,
    check_weights,
    require_all,
    slots_of,
    with_weights,
)
from dipod_ros.serving.engines.plan_cache import PlanCache, plan_key
from dipod_ros.serving.engines.tensorrt_plan import LoadedPlan, build_plan

FORMAT = 1
IO = {'observation', 'noise', 'chunk'}


class TensorRtEngine(EngineBase):
    """One deserialized plan with its context, buffers and stream."""

    # The factory compares a refitted engine with golden values, and builds anew when it differs.
    rebuild_after_failed_refit = True

    def __init__(
        self,
        plan: bytes,
        slots: Mapping[str, onnx.TensorProto],
        precision: str,
        weights: Mapping[str, np.ndarray],
        *,
        refit: bool,
        detail: str = '',
    ) -> None:
        """Load a plan; with `refit` its weights are replaced, else they must be these already.

        `slots` are those initializers of the graph that hold weights, by name. Raises EngineError.
        """
        start = time.perf_counter()
        self._driver = cuda_driver.Driver()
        self._driver.enter()
        self._plan, self._slots, self._precision = plan, slots, precision
        self._detail, self._refitted = detail, refit
        self._buffers: dict[str, cuda_driver.Buffer] = {}
        self._loaded = self._stream = None
        try:
            self._prepare(_typed(weights, slots) if refit else {})
        except BaseException:
            self._close()
            raise
        std = weights['normalizer.action_std']
        self.golden_tolerance_rad = golden_tolerance_rad(precision, std)
        self.build_s = time.perf_counter() - start

    def _prepare(self, weights: Mapping[str, np.ndarray]) -> None:
        self._loaded = LoadedPlan(self._plan)
        if weights:
            self._loaded.refit(weights)
        shapes = self._loaded.shapes()
        if shapes.keys() != IO:
            raise EngineError(f'the plan has {sorted(shapes)}, a policy has {sorted(IO)}')
        for name, shape in shapes.items():
            self._buffers[name] = self._driver.buffer(shape)
        self._stream = self._driver.stream()
        self._loaded.prepare({name: b.address for name, b in self._buffers.items()})

    @classmethod
    def build(cls, checkpoint: Checkpoint, options: EngineOptions) -> TensorRtEngine:
        """Return an engine on a plan kept from before, or build one, which takes long.

        A kept plan that does not pass the golden check is set aside. A new one that does not is
        built once more without refitting, since TensorRT 11.3 may drop biases in refittable plans.
        Raises EngineError or CheckpointError.
        """
        start = time.perf_counter()
        cache, golden = PlanCache(), checkpoint.manifest.golden
        blank = blank_graph(checkpoint, options.precision)
        weights, slots = checkpoint.weights, slots_of(blank)
        slots = {name: slots[name] for name in weights}
        facts = _facts(blank, options.precision)
        fixed = {**facts, 'refittable': False, 'weights': checkpoint.manifest.sha256}

        def load(plan: bytes, refit: bool, detail: str) -> TensorRtEngine:
            engine = cls(plan, slots, options.precision, weights, refit=refit, detail=detail)
            check_golden(engine, golden)
            engine.build_s = time.perf_counter() - start
            return engine

        for known in (facts, fixed):
            key = plan_key(known)
            plan = cache.read(key)
            if plan is not None:
                try:
                    return load(plan, known['refittable'], 'plan from the cache')
                except EngineError:
                    cache.set_aside(key)
        graph = with_weights(blank, weights, cast=True).SerializeToString()
        timing_name = f'{trt.__version__}_{facts["sm"]}'
        failure = None
        for known in (facts, fixed):
            plan, timing = build_plan(
                graph, refittable=known['refittable'], timing=cache.read_timing(timing_name)
            )
            cache.write_timing(timing_name, timing)
            try:
                note = 'plan built now' if failure is None else f'not refittable: {failure}'
                engine = load(plan, False, note)
            except EngineError as error:
                failure = error
                continue
            cache.write(plan_key(known), plan, known)
            return engine
        raise failure

    def run(self, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the chunk float32 [H, A]."""
        self._driver.enter()  # which context is current belongs to the thread
        buffers = self._buffers
        buffers['observation'].host[0] = observation
        buffers['noise'].host[0] = noise
        buffers['observation'].upload(self._stream)
        buffers['noise'].upload(self._stream)
        self._loaded.enqueue(self._stream.handle.value)
        buffers['chunk'].download(self._stream)
        self._stream.synchronize()
        return buffers['chunk'].host[0].copy()

    def refit(self, weights: Mapping[str, np.ndarray]) -> TensorRtEngine:
        """Return a second engine of the same plan with other weights; this one goes on unchanged.

        Raises EngineError when they are not the weights of this network, or the plan does not take
        them. The result must pass the golden check before it acts.
        """
        return TensorRtEngine(
            self._plan, self._slots, self._precision, weights, refit=True, detail=self._detail
        )

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        io_bytes = sum(b.nbytes for b in self._buffers.values())
        gpu = cuda_driver.find_gpu()
        return EngineInfo(
            'tensorrt',
            trt.__version__,
            0,
            self._refitted,
            device='' if gpu is None else gpu.name,
            precision=self._precision,
            build_s=self.build_s,
            warm_up_s=self.warm_up_s,
            # A plan is about its weights.
            memory_bytes=self._loaded.memory_bytes + len(self._plan) + io_bytes,
            detail=self._detail,
        )

    def __del__(self) -> None:
        """Free the buffers, from whichever thread lets go of the engine last."""
        with contextlib.suppress(Exception):
            self._close()

    def _close(self) -> None:
        self._driver.enter()
        if self._stream is not None:
            self._stream.synchronize()
            self._stream.close()
        self._loaded = None  # the context goes before the memory that it works on
        for buffer in self._buffers.values():
            buffer.close()


def _facts(blank: onnx.ModelProto, precision: str) -> dict[str, Any]:
    """Return everything that decides whether a plan fits; its hash is the key."""
    gpu = cuda_driver.find_gpu()
    if gpu is None:
        raise EngineError('engine tensorrt: no NVIDIA GPU with its driver found')
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*blank.graph.input, *blank.graph.output)
    }
    return {
        'format': FORMAT,
        'graph': hashlib.sha256(blank.SerializeToString(deterministic=True)).hexdigest(),
        'precision': precision,
        'shapes': shapes,
        'tensorrt': trt.__version__,
        'gpu': gpu.name,
        'sm': gpu.sm,
        'refittable': True,
        'flags': ['STRONGLY_TYPED', 'no TF32'],
    }


def _typed(
    weights: Mapping[str, np.ndarray], slots: Mapping[str, onnx.TensorProto]
) -> dict[str, np.ndarray]:
    """Return weights in the types of the graph; raises EngineError when they are others."""
    check_weights(weights, slots)
    require_all(slots.keys(), weights)
    kinds = {name: onnx.helper.tensor_dtype_to_np_dtype(slots[name].data_type) for name in weights}
    return {name: value.astype(kinds[name]) for name, value in weights.items()}
