# SPDX-License-Identifier: Apache-2.0
"""Picks an engine by name and builds it for checkpoints, refitting where the graph is the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.serving.engines.base import EngineError, PolicyEngine
from dipod_ros.serving.engines.graph_cache import graph_key

CHOICES = ('auto', 'onnx', 'torch', 'tensorrt')

_NEEDS = {'onnx': ('onnxruntime', 'onnx'), 'torch': ('torch',), 'tensorrt': ('tensorrt',)}
_HOW_TO_GET = {
    'onnx': 'pip install onnxruntime onnx',
    'torch': 'pip install torch',
    'tensorrt': (
        'it is part of JetPack on a Jetson (python3-libnvinfer); elsewhere it needs an NVIDIA GPU '
        'with its driver and `pip install tensorrt`; or use engine: auto'
    ),
}


def missing_packages(engine: str) -> list[str]:
    """Return the Python packages that an engine lacks on this machine."""
    return [name for name in _NEEDS[engine] if importlib.util.find_spec(name) is None]


class EngineFactory:
    """Builds engines of one kind; knows why it is that kind."""

    def __init__(self, choice: str = 'auto', threads: int = 1) -> None:
        """Pick the engine now; raises EngineError when the one asked for cannot work here."""
        if choice not in CHOICES:
            raise EngineError(f'engine {choice!r} is not one of {list(CHOICES)}')
        if choice == 'auto':
            missing = missing_packages('onnx')
            self.name = 'torch' if missing else 'onnx'
            self.reason = (
                f'auto: {", ".join(missing)} not installed ({_HOW_TO_GET["onnx"]})'
                if missing
                else 'auto: fastest on a CPU'
            )
        else:
            self.name, self.reason = choice, 'asked for'
        missing = missing_packages(self.name)
        if missing:
            raise EngineError(
                f'engine {self.name}: {", ".join(missing)} not installed; {_HOW_TO_GET[self.name]}'
            )
        self.threads = threads
        self._from_checkpoint = _constructor(self.name)
        # The last engine of each graph, to refit; usually there is one graph per robot.
        self._by_graph: dict[str, PolicyEngine] = {}

    def build(self, checkpoint: Checkpoint) -> PolicyEngine:
        """Return an engine for a checkpoint; raises EngineError or CheckpointError."""
        key = graph_key(checkpoint.spec)
        known = self._by_graph.get(key)
        engine = (
            self._from_checkpoint(checkpoint, self.threads)
            if known is None
            else known.refit(checkpoint.weights)
        )
        self._by_graph[key] = engine
        return engine


def _constructor(name: str) -> Callable[[Checkpoint, int], PolicyEngine]:
    if name == 'onnx':
        from dipod_ros.serving.engines.onnx_engine import OnnxEngine

        return OnnxEngine.from_checkpoint
    if name == 'torch':
        from dipod_ros.serving.engines.torch_engine import TorchEngine

        return TorchEngine.from_checkpoint
    raise EngineError(f'engine {name}: this release has no {name} engine yet; use engine: auto')
