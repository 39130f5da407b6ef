# SPDX-License-Identifier: Apache-2.0
"""Teaches encoders where things are, from what a simulation knows of its pictures. torch.

Behaviour cloning tells an encoder little: the demonstrator's own imprecision stands between a
picture and the action. Where the dataset knows what the picture shows (the place of the goal, say),
regressing that is a far better teacher: an auxiliary target of end-to-end visuomotor training
(arXiv 1504.00702, section 5.2 pretrains its encoder on poses in the same way), and privileged in
the sense that no policy is told it when it acts. The readout that makes coordinates of features is
thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.learning.averaged import AveragedTraining
from dipod_ros.learning.demonstrations.dataset import Demonstrations, digest
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.learning.vision import some_pictures
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.policy.vision import build_encoders

# Steps between states on disk; a killed run repeats at most these.
STATE_EVERY = 500
TELL_EVERY = 50  # steps between calls of `progress`
# Pictures encoded at a time where no gradient is needed.
ENCODE_BATCH = 256


@dataclass(frozen=True)
class LocateConfig:
    """Settings of the regression."""

    steps: int = 10_000  # 0: encoders learn from the actions alone, with the flow
    batch: int = 32
    learning_rate: float = 2e-3  # cosine to 0
    weight_decay: float = 1e-4
    ema: float = 0.995  # per step; the averaged weights are the result
    # Errors above this count linearly (Huber), in units of the target's spread: a goal behind the
    # arm cannot be seen, and its square would outweigh the millimetres of all the others.
    huber: float = 0.1
    # Deviation of a map over a picture before training; 0 leaves random maps as flat as they are.
    # At 2.5 softmax picks a few of 48x48 places: on reach_camera median errors of 16 to 25 mm after
    # 600 steps instead of 24 to 121 (three seeds). In small, bare pictures (test_vision.py) such
    # maps start on nothing and stay there.
    sharpness: float = 2.5
    held_out: float = 0.05  # share of the episodes that the reported error is measured on

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise UserError('encoder steps must be at least 0 and their batch at least 1')
        if not self.sharpness >= 0:
            raise UserError(f'encoder sharpness must be at least 0, got {self.sharpness}')
        if not 0 < self.held_out < 1:
            raise UserError(f'held_out must be between 0 and 1, got {self.held_out}')


@dataclass(frozen=True)
class Located:
    """Distance (in the target's unit) of what was read out from what is so, on held-out episodes.

    Of each target the median, the root mean square and the 95 % quantile.
    """

    median: dict[str, float]
    rms: dict[str, float]
    p95: dict[str, float]

    @staticmethod
    def of(distance: Mapping[str, np.ndarray]) -> Located:
        """Return the figures of distances [N] by target."""
        return Located(
            {name: float(np.median(d)) for name, d in distance.items()},
            {name: float(np.sqrt(np.mean(d**2))) for name, d in distance.items()},
            {name: float(np.quantile(d, 0.95)) for name, d in distance.items()},
        )

    def __str__(self) -> str:
        return ', '.join(
            f'{name}: median {self.median[name] * 1e3:.1f} mm, rms {self.rms[name] * 1e3:.1f} mm, '
            f'95 % {self.p95[name] * 1e3:.1f} mm'
            for name in self.median
        )


class Readout(nn.Module):
    """Coordinates from the features of all image streams side by side: one linear layer."""

    def __init__(self, features: int, targets: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return scaled coordinates [B, T] for features [B, F]."""
        return self.linear(features)


def locate(
    spec: PolicySpec,
    demonstrations: Demonstrations,
    config: LocateConfig,
    seed: int = 0,
    *,
    state_file: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[nn.ModuleDict, Located]:
    """Return encoders by image stream that see `demonstrations.privileged`, and how well they do.

    With `state_file` a run goes on where one of the same settings and data stopped; the file is
    kept when all steps are done, so that nothing is repeated if what follows is interrupted.
    `progress` is called with the steps done and the latest loss. Raises UserError without pictures
    or privileged data.
    """
    if not spec.images:
        raise UserError('the policy has no image stream: there is no encoder to train')
    if not demonstrations.privileged:
        raise UserError(
            'the demonstrations hold nothing that encoders could be taught (privileged data): '
            'give --encoder-steps 0 to learn from the actions alone'
        )
    torch.manual_seed(seed)
    encoders = build_encoders(spec)
    names = list(encoders)
    pictures = {name: torch.from_numpy(demonstrations.images[name]) for name in names}
    for name in names:
        some = some_pictures(pictures[name], seed, name)
        if config.sharpness:
            encoders[name].sharpen(some, config.sharpness)
        encoders[name].whiten(some)
    targets, places = _targets(demonstrations)
    scale = float(np.sqrt(targets.var(0).mean())) or 1.0
    mean = targets.mean(0)
    scaled = torch.from_numpy((targets - mean) / scale)
    learn, held = _split(demonstrations, config.held_out, seed)
    readout = Readout(sum(e.head.out_features for e in encoders.values()), targets.shape[1])
    loss_of = nn.HuberLoss(delta=config.huber)
    training = AveragedTraining(
        {'encoders': encoders, 'readout': readout},
        [*encoders.parameters(), *readout.parameters()],
        steps=max(1, config.steps),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        ema=config.ema,
    )
    identity = {
        'config': repr((config, seed)),
        'spec': repr([s.to_dict() for s, _ in spec.images]),
        'data': digest(demonstrations.images, demonstrations.privileged),
    }
    training.resume(state_file, identity)
    while training.done < config.steps:
        rng = torch_rng(seed, 'locate', training.done)
        rows = learn[torch.randint(len(learn), (config.batch,), generator=rng)]
        features = torch.cat([encoders[name](pictures[name][rows]) for name in names], 1)
        loss = loss_of(readout(features), scaled[rows]) / config.huber
        training.step(loss)
        last = training.done == config.steps
        if state_file is not None and (training.done % STATE_EVERY == 0 or last):
            training.save(state_file, identity)
        if progress is not None and (training.done % TELL_EVERY == 0 or last):
            progress(training.done, float(loss.detach()))
    encoders = training.average['encoders']
    found = _read_out(encoders, training.average['readout'], pictures, held) * scale + mean
    error = found - targets[held.numpy()]
    # The readout goes; the features get the scale that a policy expects.
    for name in names:
        encoders[name].whiten(some_pictures(pictures[name], seed, name))
    return encoders, Located.of(
        {name: np.linalg.norm(error[:, place], axis=1) for name, place in places.items()}
    )


def _targets(demonstrations: Demonstrations) -> tuple[np.ndarray, dict[str, slice]]:
    parts, places, start = [], {}, 0
    for name in sorted(demonstrations.privileged):
        values = demonstrations.privileged[name]
        parts.append(values)
        places[name] = slice(start, start + values.shape[1])
        start += values.shape[1]
    return np.concatenate(parts, axis=1).astype(np.float32), places


def _split(
    demonstrations: Demonstrations, held_out: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows to learn from and rows of other episodes; of one episode all rows, twice."""
    episodes = np.unique(demonstrations.episodes)
    order = torch.randperm(len(episodes), generator=torch_rng(seed, 'held out')).numpy()
    held = episodes[order[: round(held_out * len(episodes))]]
    mask = np.isin(demonstrations.episodes, held)
    if not mask.any() or mask.all():
        everything = torch.arange(len(mask))
        return everything, everything
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


@torch.no_grad()
def _read_out(
    encoders: nn.ModuleDict,
    readout: Readout,
    pictures: Mapping[str, torch.Tensor],
    rows: torch.Tensor,
) -> np.ndarray:
    parts = []
    for part in rows.split(ENCODE_BATCH):
        features = [encoders[name](pictures[name][part]) for name in pictures]
        parts.append(readout(torch.cat(features, 1)).numpy())
    return np.concatenate(parts)
