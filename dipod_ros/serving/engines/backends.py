# SPDX-License-Identifier: Apache-2.0
"""The backends there are, what each needs, and how to get it on this kind of machine. No torch."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipod_ros.serving.engines.base import EngineError
from dipod_ros.serving.engines.cuda_driver import find_gpu

JETSON_RELEASE = Path('/etc/nv_tegra_release')


@dataclass(frozen=True)
class Backend:
    """One way to run a policy."""

    name: str
    needs: tuple[str, ...]  # Python packages
    location: str  # module:class
    precisions: tuple[str, ...]
    gpu: bool
    how_to_get: str  # on a PC
    on_jetson: str = ''  # where that differs
    guided: bool = False  # whether its graph can continue known steps (seam: rtc)

    def missing(self) -> list[str]:
        """Return what this machine lacks, as words for a person."""
        lacking = [f'{p} not installed' for p in self.needs if not _installed(p)]
        if self.gpu and find_gpu() is None:
            lacking.append('no NVIDIA GPU with its driver found')
        return lacking

    def advice(self) -> str:
        """Return how to get what is missing on this kind of machine."""
        return self.on_jetson if is_jetson() and self.on_jetson else self.how_to_get

    def load(self) -> Any:
        """Import the engine's class; raises EngineError when a library does not load."""
        module, name = self.location.split(':')
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, OSError) as error:
            reason = str(error).split('\n')[0]
            raise EngineError(
                f'engine {self.name} does not load: {reason}; {self.advice()}'
            ) from error


_HERE = 'dipod_ros.serving.engines.'
_CUDA_TORCH = 'needs an NVIDIA GPU with its driver and a torch built for CUDA (pip install torch)'
_JETSON_TORCH = "NVIDIA's torch wheel for this JetPack (docs/jetson.md)"

BACKENDS = {
    b.name: b
    for b in (
        Backend(
            'onnx',
            ('onnxruntime', 'onnx'),
            _HERE + 'onnx_engine:OnnxEngine',
            ('fp32',),
            gpu=False,
            how_to_get='pip install onnxruntime onnx',
            guided=True,
        ),
        Backend(
            'torch',
            ('torch',),
            _HERE + 'torch_engine:TorchEngine',
            ('fp32',),
            gpu=False,
            how_to_get='pip install torch',
            guided=True,
        ),
        Backend(
            'openvino',
            ('openvino', 'onnx'),
            _HERE + 'openvino_engine:OpenVinoEngine',
            ('fp32', 'bf16'),
            gpu=False,
            how_to_get='pip install openvino onnx; for x86 CPUs',
            on_jetson='OpenVINO is for x86 CPUs; use engine: auto here',
        ),
        Backend(
            'cuda',
            ('torch',),
            _HERE + 'cuda_engine:CudaEngine',
            ('fp32', 'fp16', 'bf16'),
            gpu=True,
            how_to_get=_CUDA_TORCH,
            on_jetson=_JETSON_TORCH,
        ),
        Backend(
            'tensorrt',
            ('tensorrt', 'onnx'),
            _HERE + 'tensorrt_engine:TensorRtEngine',
            ('fp32', 'fp16'),
            gpu=True,
            how_to_get='needs an NVIDIA GPU with its driver; pip install tensorrt onnx',
            on_jetson='part of JetPack: apt-get install python3-libnvinfer; pip install onnx',
        ),
        Backend(
            'torch_tensorrt',
            ('torch', 'torch_tensorrt'),
            _HERE + 'torch_tensorrt_engine:TorchTensorRtEngine',
            ('fp32', 'fp16'),
            gpu=True,
            how_to_get='needs an NVIDIA GPU with its driver; pip install torch-tensorrt',
            on_jetson='its releases after 2.8 are not made for Jetson; use engine: tensorrt',
        ),
    )
}
NAMES = tuple(BACKENDS)


def is_jetson() -> bool:
    """Return whether this is a Jetson."""
    return JETSON_RELEASE.is_file()


def machine() -> str:
    """Return the kind of this machine in words."""
    return 'Jetson' if is_jetson() else platform.machine()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
