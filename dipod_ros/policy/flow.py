# SPDX-License-Identifier: Apache-2.0
"""The flow-matching policy over action chunks: network, normaliser and sampler in one. torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy import samplers
from dipod_ros.policy.image import check_encoder_weights, split_weights
from dipod_ros.policy.networks import build_network, time_features
from dipod_ros.policy.spec import PolicySpec, SamplerSpec
from dipod_ros.policy.weight_shapes import policy_shapes, require_buildable, require_shapes

# Normalised observations beyond this many standard deviations are clamped: far outside the data a
# network extrapolates wildly, and a wild chunk is what the safety filter then has to stop.
OBSERVATION_CLAMP = 8.0


class Normalizer(nn.Module):
    """Means and standard deviations of observations [O] and flattened chunks [D], as buffers."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        """Start as the identity."""
        super().__init__()
        self.register_buffer('observation_mean', torch.zeros(observation_size))
        self.register_buffer('observation_std', torch.ones(observation_size))
        self.register_buffer('action_mean', torch.zeros(action_size))
        self.register_buffer('action_std', torch.ones(action_size))

    @torch.no_grad()
    def fit(self, observations: np.ndarray, actions: np.ndarray) -> None:
        """Set the statistics from observations [M, O] and flattened chunks [M, D]."""
        for name, data in (('observation', observations), ('action', actions)):
            values = torch.as_tensor(np.asarray(data), dtype=torch.float32)
            std = values.std(0, unbiased=False)  # 0, not NaN, for a single row
            # A constant column (a fixed goal, a joint that never moves) must not divide by ~0.
            floor = torch.clamp(1e-2 * std.mean(), min=1e-4)
            getattr(self, f'{name}_mean').copy_(values.mean(0))
            getattr(self, f'{name}_std').copy_(torch.maximum(std, floor))

    def observation(self, raw: torch.Tensor) -> torch.Tensor:
        """Normalise observations [B, O]."""
        scaled = (raw - self.observation_mean) / self.observation_std
        return scaled.clamp(-OBSERVATION_CLAMP, OBSERVATION_CLAMP)

    def action(self, raw: torch.Tensor) -> torch.Tensor:
        """Normalise flattened chunks [B, D]."""
        return (raw - self.action_mean) / self.action_std

    def action_inverse(self, normalised: torch.Tensor) -> torch.Tensor:
        """Return flattened chunks [B, D] in rad per control step."""
        return normalised * self.action_std + self.action_mean


class FlowPolicy(nn.Module):
    """A velocity field with the normaliser and the sampler that make it a policy."""

    # Why policies of this class cannot be saved; empty where they can.
    no_checkpoint: ClassVar[str] = ''

    def __init__(self, spec: PolicySpec) -> None:
        """Build the network that `spec` names, with random weights from torch's global seed.

        Raises UserError for a network that is too large for a checkpoint, and builds nothing.
        """
        require_buildable(spec)
        super().__init__()
        self.spec = spec
        self.normalizer = Normalizer(spec.observation_size, spec.action_size)
        self.net = build_network(
            spec.network, spec.action_size, spec.observation_size, spec.horizon
        )
        # Of the image streams, as a checkpoint stores them: frozen cargo, not part of the network,
        # so that what trains, samples or distils a policy only ever sees features.
        self.encoder_weights: dict[str, np.ndarray] = {}

    def velocity(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Return v [B, D] at normalised x [B, D], t [B], normalised observation [B, O]."""
        return self.net(x, time_features(t), observation)

    def sample(
        self,
        observation: torch.Tensor,
        noise: torch.Tensor,
        sampler: SamplerSpec | None = None,
    ) -> torch.Tensor:
        """Return normalised actions [B, D] for normalised observations [B, O] and noise [B, N].

        With `sampler` None the policy's own sampler runs; another one is a diagnostic.
        """

        def field(x: torch.Tensor, t: float) -> torch.Tensor:
            features = time_features(torch.full((1,), t, dtype=x.dtype, device=x.device))
            return self.net(x, features.expand(x.shape[0], -1), observation)

        return samplers.sample(field, noise, sampler or self.spec.sampler)

    def chunk(
        self, observation: torch.Tensor, noise: torch.Tensor, sampler: SamplerSpec | None = None
    ) -> torch.Tensor:
        """Return raw chunks [B, H, A] (rad per step) for raw observations [B, O]."""
        x = self.sample(self.normalizer.observation(observation), noise, sampler)
        raw = self.normalizer.action_inverse(x)
        return raw.reshape(-1, self.spec.horizon, len(self.spec.joints))

    @torch.no_grad()
    def act(
        self,
        observation: np.ndarray,
        noise: np.ndarray,
        sampler: SamplerSpec | None = None,
    ) -> np.ndarray:
        """Return chunks [B, H, A] float32 for numpy observations [B, O] and noise [B, N]."""
        out = self.chunk(
            torch.from_numpy(np.ascontiguousarray(observation, dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(noise, dtype=np.float32)),
            sampler,
        )
        return out.numpy()

    def clone(self) -> FlowPolicy:
        """Return a frozen copy with weights of its own."""
        other = copy.deepcopy(self)
        other.requires_grad_(False)
        return other

    def with_sampler(self, sampler: SamplerSpec) -> FlowPolicy:
        """Return a copy with the same weights that samples differently."""
        other = copy.deepcopy(self)
        other.spec = replace(self.spec, sampler=sampler)
        return other

    def weights(self) -> dict[str, np.ndarray]:
        """Return all tensors by name, as a checkpoint stores them."""
        own = {k: v.detach().cpu().numpy().copy() for k, v in self.state_dict().items()}
        return own | self.encoder_weights

    @classmethod
    def from_checkpoint(cls, checkpoint: ckpt.Checkpoint) -> FlowPolicy:
        """Build the policy of a checkpoint; raises CheckpointError when the weights do not fit."""
        # A manifest may ask for any size: what it asks for must be there before it is made.
        _require(checkpoint.weights, policy_shapes(checkpoint.spec))
        policy = cls(checkpoint.spec)
        policy.load_weights(checkpoint.weights)
        return policy

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copy weights by name; raises CheckpointError when names or shapes differ.

        Without any of image encoders, those there are stay: an engine has no use for them.
        """
        _require(weights, {k: tuple(v.shape) for k, v in self.state_dict().items()})
        weights, encoders = split_weights(weights)
        if encoders:
            try:
                check_encoder_weights(self.spec.streams, encoders)
            except UserError as error:
                raise ckpt.CheckpointError(str(error)) from error
        self.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
        if encoders:
            self.encoder_weights = {k: np.array(v) for k, v in encoders.items()}

    def golden(self, seed: int = 0) -> ckpt.Golden:
        """Return a fixed input with the chunk that this policy gives for it."""
        rng = np.random.default_rng(seed)
        mean, std = self.normalizer.observation_mean, self.normalizer.observation_std
        z = rng.standard_normal(self.spec.observation_size).astype(np.float32)
        observation = mean.numpy() + z * std.numpy()
        noise = rng.standard_normal(self.spec.noise_size).astype(np.float32)
        features = {}
        if self.spec.images:
            from dipod_ros.policy.vision import golden_features

            features = golden_features(self.spec, self.encoder_weights)
        chunk = self.act(observation[None], noise[None])[0]
        return ckpt.Golden(observation, noise, chunk, features)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        kind: str = 'flow',
        version: int = 0,
        lineage: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        extra_files: Mapping[str, str] | None = None,
    ) -> ckpt.Manifest:
        """Write this policy as a checkpoint folder, with its golden values; see checkpoint.save."""
        return ckpt.save(
            path,
            self.spec,
            self.weights(),
            kind=kind,
            golden=self.golden(),
            version=version,
            lineage=lineage,
            metrics=metrics,
            overwrite=overwrite,
            extra_files=extra_files,
        )


def _require(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    try:
        require_shapes({k: v.shape for k, v in split_weights(weights)[0].items()}, shapes)
    except UserError as error:
        raise ckpt.CheckpointError(str(error)) from error


def load_policy(path: str | os.PathLike[str]) -> FlowPolicy:
    """Load the policy of a checkpoint folder; raises CheckpointError."""
    return FlowPolicy.from_checkpoint(ckpt.load(path))
