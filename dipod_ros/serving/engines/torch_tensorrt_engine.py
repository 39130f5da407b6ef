# SPDX-License-Identifier: Apache-2.0
"""Torch-TensorRT: the sampler through torch.export, compiled as one TensorRT engine inside PyTorch.

For PCs: its releases after 2.8 are not made for Jetson. Not yet run on a GPU: docs/engines.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch_tensorrt

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.policy.export import DTYPES, UnrolledSampler
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.serving.engines.base import (
    EngineBase,
    EngineError,
    EngineInfo,
    EngineOptions,
    golden_tolerance_rad,
)


class TorchTensorRtEngine(EngineBase):
    """One compiled module with static inputs."""

    rebuild_after_failed_refit = True

    def __init__(
        self, policy: FlowPolicy, precision: str, module: Any, build_s: float, refitted: bool
    ) -> None:
        """Take a policy on the CPU and the module that was compiled from it."""
        self._policy, self._precision, self._module = policy, precision, module
        self._build_s, self._refitted = build_s, refitted
        std = policy.normalizer.action_std.numpy()
        self.golden_tolerance_rad = golden_tolerance_rad(precision, std)
        self._inputs = _example(policy)

    @classmethod
    def build(cls, checkpoint: Checkpoint, options: EngineOptions) -> TorchTensorRtEngine:
        """Export and compile, which takes long; raises EngineError or CheckpointError."""
        start = time.perf_counter()
        policy = FlowPolicy.from_checkpoint(checkpoint).requires_grad_(False)
        try:
            module = torch_tensorrt.dynamo.compile(
                _program(policy, options.precision),
                inputs=list(_example(policy)),
                disable_tf32=True,
                immutable_weights=False,  # else a swap would be a rebuild
                min_block_size=1,
                require_full_compilation=True,  # an operator left to PyTorch is an error, not slow
                pass_through_build_failures=True,
            )
        except (RuntimeError, AssertionError, TypeError) as error:
            raise EngineError(f'Torch-TensorRT cannot compile the policy: {error}') from error
        return cls(policy, options.precision, module, time.perf_counter() - start, False)

    def run(self, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the chunk float32 [H, A]."""
        self._inputs[0][0].copy_(torch.from_numpy(observation))
        self._inputs[1][0].copy_(torch.from_numpy(noise))
        with torch.no_grad():
            return self._module(*self._inputs)[0].cpu().numpy()

    def refit(self, weights: Mapping[str, np.ndarray]) -> TorchTensorRtEngine:
        """Return a copy of the module with other weights; this one goes on unchanged.

        Raises EngineError or CheckpointError. The result must pass the golden check before it acts.
        """
        start = time.perf_counter()
        policy = self._policy.clone()
        policy.load_weights(weights)
        try:
            module = torch_tensorrt.dynamo.refit_module_weights(
                self._module,
                _program(policy, self._precision),
                arg_inputs=_example(policy),
                verify_output=False,  # the golden check is stricter
                in_place=False,
            )
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f'Torch-TensorRT cannot refit the policy: {error}') from error
        took = time.perf_counter() - start
        return TorchTensorRtEngine(policy, self._precision, module, took, True)

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        return EngineInfo(
            'torch_tensorrt',
            torch_tensorrt.__version__,
            torch.get_num_threads(),
            self._refitted,
            device=torch.cuda.get_device_name(),
            precision=self._precision,
            build_s=self._build_s,
            warm_up_s=self.warm_up_s,
        )


def _example(policy: FlowPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    spec = policy.spec
    sizes = (spec.observation_size, spec.noise_size)
    return tuple(torch.zeros(1, size, device='cuda') for size in sizes)


def _program(policy: FlowPolicy, precision: str) -> torch.export.ExportedProgram:
    sampler = UnrolledSampler(policy.clone(), DTYPES[precision]).eval().cuda()
    return torch.export.export(sampler, _example(policy))
