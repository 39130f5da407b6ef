# SPDX-License-Identifier: Apache-2.0
"""Behaviour cloning: fit the flow to demonstrated chunks by conditional flow matching. torch.

Where the policy looks at pictures, its encoders are fitted by the same loss, end to end, or were
trained before (locating.py); they are frozen from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dipod_ros.errors import UserError
from dipod_ros.learning.averaged import AveragedTraining
from dipod_ros.learning.demonstrations.dataset import Demonstrations, digest
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.learning.vision import TrainedEyes
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.path import cfm_loss, draw_path_samples
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.policy.vision import encoder_weights

# Steps between states on disk; a killed run repeats at most these.
STATE_EVERY = 500


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of behaviour cloning; a small MLP is done in about a minute of one core."""

    steps: int = 4500
    batch: int = 512
    learning_rate: float = 1e-3  # cosine to 0
    weight_decay: float = 1e-4
    # (t, eps) per chunk of a batch: with pictures the encoder is what costs, and several share one.
    samples: int = 1
    ema: float = 0.995  # per step; the averaged weights are the result
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.samples < 1:
            raise UserError('steps, batch and samples must be at least 1')


def pretrain(
    spec: PolicySpec,
    demonstrations: Demonstrations,
    config: PretrainConfig,
    *,
    encoders: nn.ModuleDict | None = None,
    state_file: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FlowPolicy:
    """Fit a policy to demonstrations and return it (averaged weights).

    `encoders`, by image stream, were trained before (locating.py) and stay as they are; without
    them new ones learn with the flow.
    With `state_file` the run goes on where an interrupted one with the same settings and data
    stopped.
    `progress` is called with the steps done and the latest loss.
    """
    torch.manual_seed(config.seed)
    policy = FlowPolicy(spec)
    flat = demonstrations.actions.reshape(len(demonstrations.actions), -1)
    if flat.shape[1] != spec.action_size:
        raise UserError(
            f'the demonstrations hold chunks of {flat.shape[1]} numbers, '
            f'the policy needs {spec.action_size}'
        )
    if demonstrations.observations.shape[1] != spec.observation_size:
        raise UserError(
            f'the demonstrations hold observations of {demonstrations.observations.shape[1]} '
            f'numbers, the policy needs {spec.observation_size}'
        )
    policy.normalizer.fit(demonstrations.observations, flat)
    eyes = TrainedEyes(policy, demonstrations, config.seed, encoders)
    training = AveragedTraining(
        {'policy': policy, 'encoders': eyes.encoders},
        [*policy.net.parameters(), *(() if eyes.frozen else eyes.encoders.parameters())],
        steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        ema=config.ema,
    )
    identity = {
        'config': repr(config),
        'spec': repr(spec.to_dict()),
        'data': digest(demonstrations.observations, flat, demonstrations.images),
        'encoders': digest(encoder_weights(encoders)) if encoders is not None else '',
    }
    training.resume(state_file, identity)
    observations = policy.normalizer.observation(torch.from_numpy(demonstrations.observations))
    actions = policy.normalizer.action(torch.from_numpy(flat))
    for step in range(training.done, config.steps):
        rng = torch_rng(config.seed, 'pretrain', step)
        index = torch.randint(len(actions), (config.batch,), generator=rng)
        samples = draw_path_samples(config.batch, config.samples, spec.action_size, rng)
        seen = eyes.look(observations[index], index)
        loss = cfm_loss(policy, actions[index], seen, samples).mean()
        training.step(loss)
        if progress is not None and (step % 50 == 49 or step == config.steps - 1):
            progress(step + 1, float(loss.detach()))
        if state_file is not None and (step + 1) % STATE_EVERY == 0 and step + 1 < config.steps:
            training.save(state_file, identity)
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    average = training.average['policy']
    average.encoder_weights = encoder_weights(training.average['encoders'])
    return average
