# SPDX-License-Identifier: Apache-2.0
"""The eyes of a policy: trained in behaviour cloning or before, and lent to an env after. torch.

Whatever else learns (distillation, DiPOD, critics) sees the features and never a picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy.vision import build_encoders, load_encoder

if TYPE_CHECKING:
    from dipod_ros.learning.demonstrations.dataset import Demonstrations
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

# Pictures that the scale of the features is set on.
WHITENING = 256


class TrainedEyes:
    """The encoders of a policy's image streams, and the pictures that they look at in training.

    New ones learn with the flow. Ones that were trained before stay as they are: every picture is
    encoded once, and a step costs what it costs without pictures.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        demonstrations: Demonstrations,
        seed: int,
        trained: nn.ModuleDict | None = None,
    ) -> None:
        """Set the features' scale on some pictures; the policy takes them as they are."""
        self.frozen = trained is not None
        self.encoders = build_encoders(policy.spec) if trained is None else trained
        self._places = [(stream.name, place) for stream, place in policy.spec.images]
        # Pictures uint8 [M, H, W, C], or where the encoders are frozen features [M, F].
        self._shown: dict[str, torch.Tensor] = {}
        for name, place in self._places:
            if name not in demonstrations.images:
                raise UserError(f'the demonstrations hold no pictures of stream {name}')
            if self.frozen:
                features = self.encoders[name].encode(demonstrations.images[name])
                self._shown[name] = torch.from_numpy(features)
            else:
                self._shown[name] = torch.from_numpy(demonstrations.images[name])
                self.encoders[name].whiten(some_pictures(self._shown[name], seed, name))
            policy.normalizer.observation_mean[place] = 0.0
            policy.normalizer.observation_std[place] = 1.0

    def look(self, observations: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return normalised observations [B, O] with the features of these rows [B] put in."""
        if not self._places:
            return observations
        seen = observations.clone()
        for name, place in self._places:
            shown = self._shown[name][rows]
            seen[:, place] = shown if self.frozen else self.encoders[name](shown)
        return seen


def some_pictures(pictures: torch.Tensor, seed: int, name: str) -> torch.Tensor:
    """Return the pictures of a stream that the scale of its features is set on."""
    count = len(pictures)
    rows = torch.randint(count, (min(WHITENING, count),), generator=torch_rng(seed, name))
    return pictures[rows]


def see_with(env: ChunkVectorEnv, policy: FlowPolicy) -> None:
    """Let the image streams of `env` be seen through the encoders of `policy`.

    Nothing happens for a policy without image streams. Raises UserError when the env shows other
    pictures than the policy was made for.
    """
    images = [stream for stream, _ in policy.spec.images]
    if not images:
        return
    shown = {s.name: s for s in env.streams if s.image is not None}
    for stream in images:
        other = shown.get(stream.name)
        if other is None or other.image.shape != stream.image.shape:
            raise UserError(
                f'the policy looks at pictures {stream.image.shape} on stream {stream.name}, '
                f'the task shows {None if other is None else other.image.shape}'
            )
        if other.size != stream.size:
            raise UserError(
                f'the policy makes {stream.size} features of stream {stream.name}, the task has '
                f'room for {other.size}'
            )
    env.see_with({s.name: load_encoder(s, policy.encoder_weights).encode for s in images})
