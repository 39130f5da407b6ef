# SPDX-License-Identifier: Apache-2.0
"""The eyes of a policy: trained in behaviour cloning, and lent to a vectorised env after. torch.

Whatever else learns (distillation, DiPOD, critics) sees the features and never a picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.policy.vision import build_encoders, load_encoder

if TYPE_CHECKING:
    from dipod_ros.learning.dataset import Demonstrations
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

# Pictures that the scale of the features is set on.
WHITENING = 256


class TrainedEyes:
    """New encoders for the image streams of a policy, and the pictures to train them on."""

    def __init__(self, policy: FlowPolicy, demonstrations: Demonstrations, seed: int) -> None:
        """Set the features' scale on some pictures; the policy takes them as they are."""
        self.encoders = build_encoders(policy.spec)
        self._places = [(stream.name, place) for stream, place in policy.spec.images]
        self._pictures: dict[str, torch.Tensor] = {}
        for name, place in self._places:
            if name not in demonstrations.images:
                raise UserError(f'the demonstrations hold no pictures of stream {name}')
            self._pictures[name] = torch.from_numpy(demonstrations.images[name])
            count = len(self._pictures[name])
            rows = torch.randint(count, (min(WHITENING, count),), generator=torch_rng(seed, name))
            self.encoders[name].whiten(self._pictures[name][rows])
            policy.normalizer.observation_mean[place] = 0.0
            policy.normalizer.observation_std[place] = 1.0

    def look(self, observations: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return normalised observations [B, O] with the features of these rows [B] put in."""
        if not self._places:
            return observations
        seen = observations.clone()
        for name, place in self._places:
            seen[:, place] = self.encoders[name](self._pictures[name][rows])
        return seen


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
    env.see_with({s.name: load_encoder(s, policy.encoder_weights).encode for s in images})
