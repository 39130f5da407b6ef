# SPDX-License-Identifier: Apache-2.0
"""From an ONNX graph to a TensorRT plan, and from a plan to an engine with given weights.

Written against TensorRT 10.3 (JetPack 6.2) to 11.4, whose Python APIs were compared by name; see
test/serving/tensorrt_api.json. Networks are strongly typed: the types in the graph are the types
that run. TensorRT 10 takes that as a flag, 11 knows nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorrt as trt

from dipod_ros.serving.engines.base import EngineError

WORKSPACE_BYTES = 1 << 30
MAX_REASONS = 3


class Log(trt.ILogger):
    """Keeps what TensorRT says went wrong, to say it in an EngineError instead of on stderr."""

    def __init__(self) -> None:
        """Start empty."""
        trt.ILogger.__init__(self)  # the binding asks for exactly this
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Take one message; called by TensorRT."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(' '.join(str(message).split()))

    def reason(self) -> str:
        """Return the first errors as one line."""
        return '; '.join(self.errors[:MAX_REASONS]) or 'it gives no reason'


def network_flags() -> int:
    """Return the flags of a strongly typed network with an explicit batch, as far as they exist.

    TensorRT 11.4 has no EXPLICIT_BATCH any more, and ignores STRONGLY_TYPED.
    """
    kinds = trt.NetworkDefinitionCreationFlag
    found = (getattr(kinds, name, None) for name in ('EXPLICIT_BATCH', 'STRONGLY_TYPED'))
    return sum(1 << int(flag) for flag in found if flag is not None)


def build_plan(graph: bytes, *, refittable: bool, timing: bytes = b'') -> tuple[bytes, bytes]:
    """Return a serialized plan and the timing cache that came out of building it.

    Takes an ONNX model with static shapes and a timing cache of an earlier build. Takes from
    seconds to minutes. Raises EngineError with TensorRT's reason.
    """
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(network_flags())
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        said = [parser.get_error(i).desc() for i in range(min(parser.num_errors, MAX_REASONS))]
        raise EngineError(f'TensorRT cannot parse the policy graph: {"; ".join(said)}')
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    # float32 means float32: TF32 rounds the inputs of products to 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    if refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    cache = config.create_timing_cache(timing)
    # False: times of another GPU are refused, and the build starts without.
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b''), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f'TensorRT cannot build the policy graph: {log.reason()}')
    times = config.get_timing_cache()
    return bytes(plan), b'' if times is None else bytes(times.serialize())


class LoadedPlan:
    """A deserialized plan with an execution context; owns the objects that must live as long."""

    def __init__(self, plan: bytes) -> None:
        """Deserialize; raises EngineError when the plan is damaged or of another machine."""
        self._log = Log()
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f'TensorRT cannot load the plan: {self._log.reason()}')
        self._context: Any = None

    def refit(self, weights: Mapping[str, np.ndarray]) -> None:
        """Replace weights by name; arrays have the types that the graph gives them.

        Raises EngineError when one is not refittable, when others would be left stale, or when
        TensorRT refuses. The plan must not be used after that.
        """
        if not self._engine.refittable:
            raise EngineError('this plan was built without refitting')
        refitter = trt.Refitter(self._engine, self._log)
        stuck = sorted(weights.keys() - set(refitter.get_all_weights()))
        if stuck:
            raise EngineError(f'TensorRT cannot refit {stuck[:MAX_REASONS]} in this plan')
        # TensorRT reads the arrays until refit_cuda_engine returns, and copies none.
        kept = {name: np.ascontiguousarray(value) for name, value in weights.items()}
        for name, value in kept.items():
            if not refitter.set_named_weights(name, trt.Weights(value)):
                raise EngineError(f'TensorRT refuses weight {name}: {self._log.reason()}')
        missing = list(refitter.get_missing_weights())
        if missing:
            raise EngineError(f'a refit would leave {missing[:MAX_REASONS]} stale')
        if not refitter.refit_cuda_engine():
            raise EngineError(f'TensorRT cannot refit the plan: {self._log.reason()}')

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of inputs and outputs; raises EngineError unless they are float32."""
        found = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            if self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise EngineError(f'{name} of the plan is not float32')
            found[name] = tuple(self._engine.get_tensor_shape(name))
        return found

    def prepare(self, addresses: Mapping[str, int]) -> None:
        """Make a context that works on these addresses; raises EngineError, out of memory too."""
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f'TensorRT cannot make a context: {self._log.reason()}')
        for name, address in addresses.items():
            kind = self._engine.get_tensor_mode(name)
            if kind == trt.TensorIOMode.INPUT:
                self._context.set_input_shape(name, self._engine.get_tensor_shape(name))
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f'TensorRT refuses the buffer of {name}: {self._log.reason()}')

    def enqueue(self, stream: int) -> None:
        """Queue one execution on a CUDA stream; raises EngineError when TensorRT refuses."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(f'TensorRT cannot run the policy: {self._log.reason()}')

    @property
    def memory_bytes(self) -> int:
        """Return the working memory of one context; weights come on top."""
        return int(self._engine.device_memory_size_v2)
