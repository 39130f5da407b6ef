# SPDX-License-Identifier: Apache-2.0
"""`dipod bench engine`: the sampler on ONNX Runtime beside PyTorch's eager loop. No ROS."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from dipod_ros.cli._bench_encoder import measure_encoder
from dipod_ros.cli._bench_networks import NETWORKS, QUICK_NETWORKS, random_checkpoint
from dipod_ros.cli.bench_measure import (
    Options,
    no_garbage_collection,
    ratio_of_medians,
    spread,
    time_calls,
)
from dipod_ros.learning.vision import see_with
from dipod_ros.policy.checkpoint import Checkpoint, load
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.serving.engines.base import PolicyEngine
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.sim.vector_env import ChunkVectorEnv

INPUTS = 64
# Decisions until the inputs are taken: by then worlds differ in more than their goals.
DECISIONS_BEFORE = 4
# Of the larger networks in a quick run.
QUICK_SAMPLER = SamplerSpec('midpoint', 1)
# The name of a network in `<name>_speedup`.
SHORT_NAMES = {'residual_mlp': 'mlp'}
US, MS = 1e6, 1e3


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of the flow; those of the student and other networks under their names.

    The other networks have the flow's streams, horizon and sampler, and random weights.
    """
    rounds, calls = options.pick(40, 4), options.pick(50, 10)
    refits, exports = options.pick(20, 3), options.pick(2, 0)  # exports besides the first
    flow, student = load(options.flow), load(options.student)
    seen = _observations(flow)
    contests = {'flow': (flow, seen), 'student': (student, _observations(student))}
    # An export of ten evaluations of these takes many seconds.
    spec = replace(flow.spec, sampler=QUICK_SAMPLER) if options.quick else flow.spec
    networks = QUICK_NETWORKS if options.quick else NETWORKS
    for name, network in networks.items():
        contests[name] = random_checkpoint(spec, network), seen
    results = {}
    total = len(contests) * (rounds + refits + exports + 1)
    with tqdm(total=total, desc='engine', leave=False) as bar:
        for name, (checkpoint, observations) in contests.items():
            # A call of a larger network takes milliseconds; its rounds are as long with fewer.
            few = max(3, calls // 10) if name in networks else calls
            results[name] = _measure(checkpoint, observations, rounds, few, refits, exports, bar)
    results['flow']['checkpoint'] = options.flow.name
    results['student']['checkpoint'] = options.student.name
    for name, network in networks.items():
        results[name]['network'] = str(network)
        results['flow'][f'{name}_speedup'] = results[name][f'{name}_speedup']
    encoder = measure_encoder(rounds, max(3, calls // 2))
    return {**results.pop('flow'), **encoder, **results}


def _measure(
    checkpoint: Checkpoint,
    observations: np.ndarray,
    rounds: int,
    calls: int,
    refits: int,
    exports: int,
    bar: tqdm,
) -> dict[str, Any]:
    one_step = _with_sampler(checkpoint, SamplerSpec('euler', 1))
    contenders = {
        # The first export, which loads the exporter: the next one is timed.
        'one_step': _Contender(one_step, 'onnx', observations),
        'onnx': _Contender(checkpoint, 'onnx', observations),
        'torch': _Contender(checkpoint, 'torch', observations),
    }
    bar.update()
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in contenders}
    with no_garbage_collection():
        for contender in contenders.values():
            time_calls(contender, calls)  # warm up
        for _ in range(rounds):
            for name, contender in contenders.items():
                seconds[name].append(time_calls(contender, calls))
            bar.update()
    onnx, torch, single = (np.stack(seconds[name]) for name in ('onnx', 'torch', 'one_step'))
    evaluations = checkpoint.spec.sampler.evaluations
    built_s = contenders['onnx'].built_s
    network = str(checkpoint.spec.network['kind'])
    return {
        'sampler': str(checkpoint.spec.sampler),
        'k': evaluations,
        **spread('onnx_us', onnx * US),
        **spread('torch_us', torch * US),
        **spread('onnx_one_step_us', single * US),
        f'{SHORT_NAMES.get(network, network)}_speedup': ratio_of_medians(torch, onnx),
        'k_over_one_step': ratio_of_medians(onnx, single) / evaluations,
        'parity': _parity(contenders['onnx'], contenders['torch']),
        **refit_times(contenders['onnx'].engine, checkpoint, refits, exports, bar, built_s),
    }


class _Contender:
    """An engine and the inputs that it is called with; the same for every engine of a policy."""

    def __init__(self, checkpoint: Checkpoint, kind: str, observations: np.ndarray) -> None:
        self.checkpoint = checkpoint
        with no_kept_graphs():
            begin = time.perf_counter()
            self.engine: PolicyEngine = EngineFactory(kind, threads=1).build(checkpoint)
            self.built_s = time.perf_counter() - begin
        self._observations = observations
        self._noise = _noise(checkpoint)

    def __call__(self, i: int) -> np.ndarray:
        """Return the chunk float32 [H, A] for input i."""
        return self.engine.run(self._observations[i % INPUTS], self._noise[i % INPUTS])

    def normalised(self, i: int) -> np.ndarray:
        """Return the chunk for input i in standard deviations of the data, float64 [H * A]."""
        weights = self.checkpoint.weights
        chunk = self(i).astype(np.float64).ravel()
        return (chunk - weights['normalizer.action_mean']) / weights['normalizer.action_std']


def _parity(one: _Contender, other: _Contender) -> float:
    """Return the largest absolute difference of normalised actions."""
    return max(
        float(np.max(np.abs(one.normalised(i) - other.normalised(i)))) for i in range(INPUTS)
    )


def refit_times(
    engine: PolicyEngine,
    checkpoint: Checkpoint,
    refits: int,
    exports: int,
    bar: tqdm,
    *built_s: float,
) -> dict[str, float]:
    """Time new weights in the existing graph beside a new export, up to an engine that can run.

    `built_s` are exports that were timed already, besides the `exports` to come.
    """

    def refit(_: int) -> None:
        engine.refit(checkpoint.weights)
        bar.update()

    def export(_: int) -> None:
        with no_kept_graphs():
            EngineFactory('onnx', threads=1).build(checkpoint)
        bar.update()

    refit_s = time_calls(refit, refits)
    export_s = np.concatenate([built_s, time_calls(export, exports)])
    return {
        **spread('refit_ms', refit_s * MS),
        **spread('reexport_ms', export_s * MS),
        'refit_over_reexport': float(np.median(refit_s) / np.median(export_s)),
    }


def _observations(checkpoint: Checkpoint) -> np.ndarray:
    """Return observations float32 [INPUTS, O] that the policy itself came to see in its task."""
    spec = checkpoint.spec
    policy = FlowPolicy.from_checkpoint(checkpoint)
    env = ChunkVectorEnv(spec.task, INPUTS, spec.robot, seed=0)
    see_with(env, policy)
    observations, _ = env.reset()
    for _ in range(DECISIONS_BEFORE):
        observations, *_ = env.step(policy.act(observations, _noise(checkpoint)))
    return observations


def _noise(checkpoint: Checkpoint) -> np.ndarray:
    shape = (INPUTS, checkpoint.spec.noise_size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _with_sampler(checkpoint: Checkpoint, sampler: SamplerSpec) -> Checkpoint:
    policy = FlowPolicy.from_checkpoint(checkpoint).with_sampler(sampler)
    manifest = replace(checkpoint.manifest, spec=policy.spec, golden=policy.golden())
    return replace(checkpoint, manifest=manifest)


@contextlib.contextmanager
def no_kept_graphs() -> Iterator[None]:
    """Let engines find no graph of an earlier export, and leave the user's as they are."""
    before = os.environ.get('XDG_CACHE_HOME')
    with tempfile.TemporaryDirectory(prefix='dipod_bench_') as folder:
        os.environ['XDG_CACHE_HOME'] = folder
        try:
            yield
        finally:
            del os.environ['XDG_CACHE_HOME']
            if before is not None:
                os.environ['XDG_CACHE_HOME'] = before
