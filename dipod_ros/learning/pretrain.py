# SPDX-License-Identifier: Apache-2.0
"""Behaviour cloning: fit the flow to demonstrated chunks by conditional flow matching. torch.

Where the policy looks at pictures, its encoders are fitted by the same loss, end to end, and are
frozen from then on.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.dataset import Demonstrations
from dipod_ros.learning.seeding import torch_rng
from dipod_ros.learning.state_io import (
    load_state,
    pack_module,
    pack_optimizer,
    save_state,
    unpack_module,
    unpack_optimizer,
)
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
    state_file: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FlowPolicy:
    """Fit a policy to demonstrations and return it (averaged weights).

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
    eyes = TrainedEyes(policy, demonstrations, config.seed)
    average, slow_encoders = policy.clone(), copy.deepcopy(eyes.encoders)
    optimizer = torch.optim.AdamW(
        [*policy.net.parameters(), *eyes.encoders.parameters()],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * k / config.steps)).item()),
    )
    done = 0
    digest = hashlib.sha256(demonstrations.observations.tobytes() + flat.tobytes())
    for name in sorted(demonstrations.images):
        digest.update(demonstrations.images[name])
    identity = {'config': repr(config), 'spec': repr(spec.to_dict()), 'data': digest.hexdigest()}
    if state_file is not None and state_file.is_file():
        tensors, info = load_state(state_file)
        if info.get('identity') == identity:
            unpack_module('policy', policy, tensors)
            unpack_module('average', average, tensors)
            unpack_module('encoders', eyes.encoders, tensors)
            unpack_module('slow_encoders', slow_encoders, tensors)
            unpack_optimizer('adam', optimizer, tensors)
            done = int(info['done'])
            # The schedule is a function of the step alone: move it there without optimiser steps.
            schedule.last_epoch = done
            for group, base in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
                group['lr'] = base * schedule.lr_lambdas[0](done)
    observations = policy.normalizer.observation(torch.from_numpy(demonstrations.observations))
    actions = policy.normalizer.action(torch.from_numpy(flat))
    for step in range(done, config.steps):
        rng = torch_rng(config.seed, 'pretrain', step)
        index = torch.randint(len(actions), (config.batch,), generator=rng)
        samples = draw_path_samples(config.batch, config.samples, spec.action_size, rng)
        seen = eyes.look(observations[index], index)
        loss = cfm_loss(policy, actions[index], seen, samples).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        # A short average in the beginning, so that the random weights do not linger.
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(
                (*average.parameters(), *slow_encoders.parameters()),
                (*policy.parameters(), *eyes.encoders.parameters()),
                strict=True,
            ):
                slow.lerp_(fast, 1 - decay)
        if progress is not None and (step % 50 == 49 or step == config.steps - 1):
            progress(step + 1, float(loss.detach()))
        if state_file is not None and (step + 1) % STATE_EVERY == 0 and step + 1 < config.steps:
            tensors = (
                pack_module('policy', policy)
                | pack_module('average', average)
                | pack_module('encoders', eyes.encoders)
                | pack_module('slow_encoders', slow_encoders)
                | pack_optimizer('adam', optimizer)
            )
            save_state(state_file, tensors, {'identity': identity, 'done': step + 1})
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    average.encoder_weights = encoder_weights(slow_encoders)
    return average
