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

from dipod_ros.errors import UserError
from dipod_ros.policy import samplers
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.guidance import guided_sample, require_pullback
from dipod_ros.policy.halving import halved
from dipod_ros.policy.networks import time_features
from dipod_ros.policy.spec import Stream
from dipod_ros.policy.vision import KeypointEncoder

OPSET = 21
# Layers of a graph, all evaluations together: its export takes time and memory in proportion, on
# two cores about a minute for 300.
MAX_UNROLLED = 1000
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


class UnrolledSampler(nn.Module):
    """A policy's whole sampler as one module; the network computes in `dtype`.

    Owns the policy's modules under their own names, so that initializers keep them.
    """

    def __init__(self, policy: FlowPolicy, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net, self.normalizer = policy.net, policy.normalizer
        if dtype != torch.float32:
            self.net = halved(policy.net, dtype)
        self.spec, self.sampler = policy.spec, policy.spec.sampler
        self.shape = (policy.spec.horizon, len(policy.spec.joints))
        times = samplers.evaluation_times(self.sampler)
        # Not persistent: constants of the graph, never part of a checkpoint.
        table = time_features(torch.tensor(times))
        self.register_buffer('time_table', table, persistent=False)

    def forward(self, observation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the raw chunk [1, H, A] for a raw observation [1, O] and noise [1, N]."""
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


class GuidedSampler(UnrolledSampler):
    """The sampler that continues known steps (policy/guidance.py), in float32."""

    def forward(
        self,
        observation: torch.Tensor,
        noise: torch.Tensor,
        prefix: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return the raw chunk [1, H, A]; `prefix` [1, H, A] raw, `weights` [1, H]."""
        evaluation = 0

        def features(t: float) -> torch.Tensor:
            nonlocal evaluation
            evaluation += 1
            return self.time_table[evaluation - 1 : evaluation]

        return guided_sample(self, observation, noise, prefix, weights, features)


def export_onnx(policy: FlowPolicy, precision: str = 'fp32', guided: bool = False) -> bytes:
    """Return an ONNX model: `observation` [1, O] raw, `noise` [1, N] -> `chunk` [1, H, A] raw.

    Inputs and output float32, batch 1, opset 21. With `precision` fp16 the network and its weights
    are of that type but for what it keeps in `full_precision`; the normaliser and the integration
    stay float32. A `guided` graph is float32 and has two inputs more, `prefix` [1, H, A] and
    `weights` [1, H]. Raises RuntimeError when the exporter fails, UserError when the network cannot
    be guided, or the sampler's steps are too many for a graph.
    """
    spec = policy.spec
    layers = spec.sampler.evaluations * spec.network['depth']
    if layers > MAX_UNROLLED:
        raise UserError(
            f'sampler {spec.sampler} of a network of depth {spec.network["depth"]} is a graph of '
            f'{layers} layers, at most {MAX_UNROLLED}: distil it to fewer steps, or use engine: '
            'torch'
        )
    names = ['observation', 'noise']
    example = (torch.zeros(1, spec.observation_size), torch.zeros(1, spec.noise_size))
    if not guided:
        return to_onnx(UnrolledSampler(policy, DTYPES[precision]), example, names, 'chunk')
    require_pullback(policy)
    sampler = GuidedSampler(policy)
    example += (torch.zeros(1, *sampler.shape), torch.zeros(1, spec.horizon))
    return to_onnx(sampler, example, [*names, 'prefix', 'weights'], 'chunk')


def export_encoder(stream: Stream) -> bytes:
    """Return an ONNX model of a stream's encoder: `image` uint8 [1, H, W, C] -> `features` [1, F].

    Its weights are random: they are put in by name. Raises RuntimeError when the exporter fails.
    """
    picture = torch.zeros(1, *stream.image.shape, dtype=torch.uint8)
    return to_onnx(KeypointEncoder(stream), (picture,), ['image'], 'features')


def to_onnx(
    module: nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], output: str
) -> bytes:
    """Return a module as an ONNX model of the shapes of `example`, weights under their own names.

    Raises RuntimeError when the exporter fails.
    """
    buffer = io.BytesIO()
    # The exporter reports its own progress and deprecations; a node's log is no place for them.
    log = logging.getLogger('torch.onnx')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                module.eval(),
                example,
                input_names=inputs,
                output_names=[output],
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            program.save(buffer)
    finally:
        log.setLevel(level)
    return buffer.getvalue()
