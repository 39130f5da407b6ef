# SPDX-License-Identifier: Apache-2.0
"""Exports to ONNX for less where tests make many: what comes out of them is the same."""

import functools
import hashlib
from contextlib import contextmanager

import pytest

KEPT = {}  # graphs of this process, by all that decides what is in them


@contextmanager
def one_table_of_operators():
    """Let PyTorch's exporter read its library of operators once per process, not in every export.

    It parses the source of some 500 functions, half of the time of a small export.
    """
    from dipod_ros.policy import export

    to_onnx = export.to_onnx

    def with_table(*arguments):
        from torch.onnx._internal.exporter import _registration

        registry = _registration.ONNXRegistry
        if not hasattr(registry.from_torchlib, 'cache_info'):
            registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
        return to_onnx(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, 'to_onnx', with_table)
        yield


@contextmanager
def once_per_policy():
    """Export the same policy once: its graph depends on spec, weights and what is asked for."""
    from dipod_ros.policy import export
    from dipod_ros.serving.engines.graph_cache import graph_key

    export_onnx = export.export_onnx

    def once(policy, precision='fp32', guided=False):
        weights = hashlib.sha256()
        for name, value in policy.state_dict().items():
            weights.update(name.encode() + value.numpy().tobytes())
        key = graph_key(policy.spec, guided), precision, weights.hexdigest()
        if key not in KEPT:
            KEPT[key] = export_onnx(policy, precision, guided)
        return KEPT[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, 'export_onnx', once)
        yield
