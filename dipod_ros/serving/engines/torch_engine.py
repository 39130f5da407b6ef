# SPDX-License-Identifier: Apache-2.0
"""The policy's own PyTorch code as an engine: no export, slower, always agrees with training."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.guidance import guided_sample, require_pullback
from dipod_ros.serving.engines.base import EngineBase, EngineError, EngineInfo, EngineOptions


class TorchEngine(EngineBase):
    """Runs FlowPolicy eagerly."""

    def __init__(
        self,
        policy: FlowPolicy,
        threads: int,
        refitted: bool = False,
        build_s: float = 0.0,
        guided: bool = False,
    ) -> None:
        """Take a policy that nobody trains; `threads` is per process in PyTorch."""
        if guided:
            require_pullback(policy)
        self.guided = guided
        torch.set_num_threads(threads)
        self._policy = policy.requires_grad_(False).eval()
        self._threads = threads
        self._refitted, self._build_s = refitted, build_s

    @classmethod
    def build(cls, checkpoint: Checkpoint, options: EngineOptions) -> TorchEngine:
        """Build the network and load the weights; raises CheckpointError when they do not fit."""
        return cls.from_checkpoint(checkpoint, options.threads, options.guided)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, threads: int, guided: bool = False
    ) -> TorchEngine:
        """Build the network and load the weights; raises CheckpointError when they do not fit."""
        start = time.perf_counter()
        policy = FlowPolicy.from_checkpoint(checkpoint)
        return cls(policy, threads, build_s=time.perf_counter() - start, guided=guided)

    def run(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        prefix: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the chunk float32 [H, A]; `prefix` and `weights` as in `PolicyEngine.run`."""
        if prefix is None:
            return self._policy.act(observation[None], noise[None])[0]
        if not self.guided:
            raise EngineError('this engine was built without guidance')
        given = (observation, noise, prefix, weights)
        tensors = (torch.from_numpy(np.ascontiguousarray(a[None], np.float32)) for a in given)
        with torch.no_grad():
            return guided_sample(self._policy, *tensors)[0].numpy()

    def refit(self, weights: Mapping[str, np.ndarray]) -> TorchEngine:
        """Return an engine of the same network with other weights."""
        start = time.perf_counter()
        policy = self._policy.clone()
        policy.load_weights(weights)
        build_s = time.perf_counter() - start
        return TorchEngine(policy, self._threads, True, build_s, self.guided)

    def info(self) -> EngineInfo:
        """Return what runs the policy."""
        return EngineInfo(
            'torch',
            torch.__version__,
            self._threads,
            self._refitted,
            build_s=self._build_s,
            warm_up_s=self.warm_up_s,
            memory_bytes=sum(v.nbytes for v in self._policy.state_dict().values()),
        )
