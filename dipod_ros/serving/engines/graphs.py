# SPDX-License-Identifier: Apache-2.0
"""Exported graphs without weights, kept on disk, and weights put into them in the graph's types."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx
from onnx import numpy_helper

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.serving.engines import graph_cache
from dipod_ros.serving.engines.base import EngineError


def blank_graph(checkpoint: Checkpoint, precision: str = 'fp32') -> onnx.ModelProto:
    """Return the graph of a checkpoint's network with all weights zero.

    Taken from the disk where an earlier export left it, else exported, which imports torch and
    takes seconds. A kept graph that is damaged or has other weights is set aside.
    """
    key = graph_cache.graph_key(checkpoint.spec)
    key = key if precision == 'fp32' else f'{key}_{precision}'
    kept = graph_cache.read(key)
    if kept is not None:
        try:
            model = onnx.load_model_from_string(kept)
            onnx.checker.check_model(model)
            check_weights(checkpoint.weights, slots_of(model))
            return _blank(model, checkpoint.weights)
        except Exception:  # onnx and protobuf raise classes of their own
            graph_cache.set_aside(key)
    from dipod_ros.policy.export import export_onnx
    from dipod_ros.policy.flow import FlowPolicy

    exported = export_onnx(FlowPolicy.from_checkpoint(checkpoint), precision)
    model = _blank(onnx.load_model_from_string(exported), checkpoint.weights)
    graph_cache.write(key, model.SerializeToString())
    return model


def slots_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers of a graph by name."""
    return {i.name: i for i in model.graph.initializer}


def check_weights(weights: Mapping[str, np.ndarray], slots: Mapping[str, onnx.TensorProto]) -> None:
    """Raise EngineError unless every weight has its place in a graph, of its shape."""
    unknown = sorted(weights.keys() - slots.keys())
    if unknown:
        raise EngineError(f'weights {unknown[:3]} are not in the exported graph')
    for name, value in weights.items():
        if list(value.shape) != list(slots[name].dims):
            raise EngineError(
                f'weight {name} is {list(value.shape)}, the exported graph has '
                f'{list(slots[name].dims)}'
            )


def put_weights(
    model: onnx.ModelProto, weights: Mapping[str, np.ndarray], cast: bool = False
) -> None:
    """Put weights into the graph's initializers by name, with `cast` in the graph's types.

    Raises EngineError when one is not in the graph, or has another shape or type there.
    """
    slots = slots_of(model)
    check_weights(weights, slots)
    for name, value in weights.items():
        kind = onnx.helper.tensor_dtype_to_np_dtype(slots[name].data_type)
        if value.dtype != kind and not cast:
            raise EngineError(f'weight {name} is {value.dtype}, the exported graph has {kind}')
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, dtype=kind), name)
        slots[name].CopyFrom(tensor)


def with_weights(
    model: onnx.ModelProto, weights: Mapping[str, np.ndarray], cast: bool = False
) -> onnx.ModelProto:
    """Return a copy of a graph with other weights; raises EngineError as `put_weights`."""
    copy = copy_of(model)
    put_weights(copy, weights, cast)
    return copy


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def require_all(names: Set[str], weights: Mapping[str, np.ndarray]) -> None:
    """Raise EngineError when some of the weights are missing."""
    missing = sorted(names - weights.keys())
    if missing:
        raise EngineError(f'weights {missing[:3]} are missing')


def _blank(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    slots = slots_of(model)
    for name in weights:
        kind = onnx.helper.tensor_dtype_to_np_dtype(slots[name].data_type)
        zeros = numpy_helper.from_array(np.zeros(list(slots[name].dims), kind), name)
        slots[name].CopyFrom(zeros)
    return model
