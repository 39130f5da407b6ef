# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a GPU: the whole K-step sampler captured once as a CUDA graph and replayed.

A sampler of a small network is bound by the launches of its kernels; a replay launches all of them
at once. Buffers are static, since a captured graph works on fixed addresses. On a CPU device the
same code runs without the capture, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import numpy as np
import torch

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

WARM_UP_BEFORE_CAPTURE = 3


class CudaEngine(EngineBase):
    """One captured graph with buffers and a stream of its own."""

    def __init__(
        self, policy: FlowPolicy, precision: str, device: str, refitted: bool = False
    ) -> None:
        """Take a policy that nobody trains, on the CPU; raises EngineError when it cannot run."""
        start = time.perf_counter()
        self._policy, self._precision, self._refitted = policy, precision, refitted
        self._device = torch.device(device)
        self._on_gpu = self._device.type == 'cuda'
        std = policy.normalizer.action_std.numpy()
        self.golden_tolerance_rad = golden_tolerance_rad(precision, std)
        if self._on_gpu:
            # Products and convolutions of float32 are float32: TF32 rounds inputs to 10 bits.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        before = self._allocated()
        try:
            self._prepare()
        except torch.OutOfMemoryError as error:
            raise EngineError(f'the GPU has no memory left for this policy: {error}') from error
        self._memory_bytes = self._allocated() - before
        self._build_s = time.perf_counter() - start

    @classmethod
    def build(
        cls, checkpoint: Checkpoint, options: EngineOptions, device: str = 'cuda'
    ) -> CudaEngine:
        """Return an engine for a checkpoint; raises EngineError or CheckpointError."""
        if device == 'cuda' and not torch.cuda.is_available():
            raise EngineError(
                f'engine cuda: this torch ({torch.__version__}) finds no GPU; install one that is '
                'built for CUDA, or use engine: auto'
            )
        return cls(FlowPolicy.from_checkpoint(checkpoint), options.precision, device)

    def run(self, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the chunk float32 [H, A]."""
        self._host_observation[0] = torch.from_numpy(observation)
        self._host_noise[0] = torch.from_numpy(noise)
        if not self._on_gpu:
            self._upload()
            self._compute()
            self._download()
            return self._host_chunk[0].numpy().copy()
        with torch.cuda.stream(self._stream):
            self._upload()
            self._graph.replay()
            self._download()
        self._stream.synchronize()
        return self._host_chunk[0].numpy().copy()

    def refit(self, weights: Mapping[str, np.ndarray]) -> CudaEngine:
        """Return an engine with other weights and a graph of its own.

        Raises CheckpointError when they are not the weights of this network.
        """
        policy = self._policy.clone()
        policy.load_weights(weights)
        return CudaEngine(policy, self._precision, str(self._device), refitted=True)

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        device = torch.cuda.get_device_name(self._device) if self._on_gpu else 'cpu'
        return EngineInfo(
            'cuda',
            torch.__version__,
            torch.get_num_threads(),
            self._refitted,
            device=device,
            precision=self._precision,
            build_s=self._build_s,
            warm_up_s=self.warm_up_s,
            memory_bytes=self._memory_bytes,
            detail='captured graph' if self._on_gpu else 'no capture on this device',
        )

    def _prepare(self) -> None:
        policy = self._policy.requires_grad_(False).eval()
        sampler = UnrolledSampler(policy, DTYPES[self._precision])
        # A copy: the policy itself stays where it is, for the next refit.
        self._sampler = copy.deepcopy(sampler).to(self._device).eval()
        spec = policy.spec
        chunk = (1, spec.horizon, len(spec.joints))
        self._host_observation = self._pinned(1, spec.observation_size)
        self._host_noise = self._pinned(1, spec.noise_size)
        self._host_chunk = self._pinned(*chunk)
        self._observation = torch.zeros(1, spec.observation_size, device=self._device)
        self._noise = torch.zeros(1, spec.noise_size, device=self._device)
        self._chunk = torch.zeros(chunk, device=self._device)
        if self._on_gpu:
            self._capture()

    def _capture(self) -> None:
        self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        # Libraries choose kernels and allocate workspaces in their first calls: before the capture.
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_BEFORE_CAPTURE):
                self._compute()
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: another thread (the policy that acts, a trainer) may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode='thread_local'):
            self._compute()

    def _compute(self) -> None:
        with torch.no_grad():
            self._chunk.copy_(self._sampler(self._observation, self._noise))

    def _upload(self) -> None:
        self._observation.copy_(self._host_observation, non_blocking=True)
        self._noise.copy_(self._host_noise, non_blocking=True)

    def _download(self) -> None:
        self._host_chunk.copy_(self._chunk, non_blocking=True)

    def _pinned(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, pin_memory=self._on_gpu)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._on_gpu else 0
