# SPDX-License-Identifier: Apache-2.0
"""The whole K-step sampler as one static-shape ONNX graph, noise as an input. torch.

Weights keep their checkpoint names as initializers, and the features of the K fixed times are
constants, so a checkpoint of the same shape needs no new export: its weights go into the
graph by name. The same operation refits an engine on a GPU.
"""

from __future__ import annotations

import io
import logging
import warnings

import torch
from torch import nn

from dipod_ros.policy import samplers
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.networks import time_features

OPSET = 21


class _UnrolledSampler(nn.Module):
    """Owns the policy's modules under their own names, so that initializers keep them."""

    def __init__(self, policy: FlowPolicy) -> None:
        super().__init__()
        self.net, self.normalizer = policy.net, policy.normalizer
        self.sampler = policy.spec.sampler
        self.shape = (policy.spec.horizon, len(policy.spec.joints))
        times = samplers.evaluation_times(self.sampler)
        # Not persistent: constants of the graph, never part of a checkpoint.
        self.register_buffer('time_table', time_features(torch.tensor(times)), persistent=False)

    def forward(self, observation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        o = self.normalizer.observation(observation)
        # One row per evaluation: time features, or for networks that have them whole conditions.
        conditioned = hasattr(self.net, 'condition')
        rows = self.net.condition(self.time_table, o) if conditioned else self.time_table
        evaluation = 0

        def field(x: torch.Tensor, t: float) -> torch.Tensor:
            nonlocal evaluation
            row = rows[evaluation : evaluation + 1]
            evaluation += 1
            return self.net.step(x, row) if conditioned else self.net(x, row, o)

        x = samplers.sample(field, noise, self.sampler)
        return self.normalizer.action_inverse(x).reshape(1, *self.shape)


def export_onnx(policy: FlowPolicy) -> bytes:
    """Return an ONNX model: `observation` [1, O] raw, `noise` [1, N] -> `chunk` [1, H, A] raw.

    float32, batch 1, opset 21. Raises RuntimeError when the exporter fails.
    """
    wrapper = _UnrolledSampler(policy).eval()
    example = (torch.zeros(1, policy.spec.observation_size), torch.zeros(1, policy.spec.noise_size))
    buffer = io.BytesIO()
    # The exporter reports its own progress and deprecations; a node's log is no place for them.
    log = logging.getLogger('torch.onnx')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                wrapper,
                example,
                input_names=['observation', 'noise'],
                output_names=['chunk'],
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            program.save(buffer)
    finally:
        log.setLevel(level)
    return buffer.getvalue()
