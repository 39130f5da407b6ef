# SPDX-License-Identifier: Apache-2.0
"""What `dipod gpu-check` does with one backend and one network. No ROS.

A backend passes when it keeps the contract of engines: parity with float32 PyTorch on a CPU,
repeatable results, refits that leave the old engine alone, errors where there must be some.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dipod_ros.cli.bench_measure import no_garbage_collection, spread, time_calls
from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.serving.engines.backends import Backend
from dipod_ros.serving.engines.base import PARITY_STD, EngineOptions, PolicyEngine

INPUTS = 32
US, MS = 1e6, 1e3
BATCH = 256  # of a training step


@dataclass(frozen=True)
class Effort:
    """How often things are repeated."""

    calls: int
    refits: int
    steps: int  # of training


def check_backend(
    backend: Backend, precision: str, first: Checkpoint, second: Checkpoint, effort: Effort
) -> dict[str, Any]:
    """Return what came out: `passed`, `failures`, times. Raises nothing that a backend raises."""
    result: dict[str, Any] = {'backend': backend.name, 'precision': precision, 'failures': []}
    try:
        start = time.perf_counter()
        engine = backend.load().build(first, EngineOptions(precision=precision))
        result['build_s'] = time.perf_counter() - start
        result['failures'] = contract_failures(engine, first, second)
        result['parity'] = parity(engine, first)
        if not result['parity'] <= PARITY_STD[precision]:
            result['failures'].append(f'parity above {PARITY_STD[precision]:g}')
        observations, noise = inputs(first)
        with no_garbage_collection():
            time_calls(lambda i: engine.run(observations[0], noise[0]), 20)  # warm up
            seconds = time_calls(
                lambda i: engine.run(observations[i % INPUTS], noise[i % INPUTS]), effort.calls
            )
        result |= spread('run_us', seconds * US)
        result |= spread(
            'refit_ms', time_calls(lambda _: engine.refit(second.weights), effort.refits) * MS
        )
        result['info'] = asdict(engine.info())
    except Exception as error:  # a report of what fails is the purpose
        text = (str(error).splitlines() or [''])[0]
        result['failures'].append(f'{type(error).__name__}: {text}')
    result['passed'] = not result['failures']
    return result


def contract_failures(engine: PolicyEngine, first: Checkpoint, second: Checkpoint) -> list[str]:
    """Return what an engine of the first checkpoint does against the contract, in words."""
    failures = []
    observations, noise = inputs(first)
    o, z = observations[0], noise[0]

    def expect(holds: bool, text: str) -> None:
        if not holds:
            failures.append(text)

    def refused(call: Callable[[], object]) -> bool:
        try:
            call()
        except UserError:
            return True
        return False

    golden = first.manifest.golden
    expect(not refused(lambda: engine.golden_check(golden)), 'golden check of a new engine')
    wrong = replace(golden, chunk=golden.chunk + 0.01)
    expect(refused(lambda: engine.golden_check(wrong)), 'wrong golden values pass')
    before = engine.run(o, z)
    expect(np.array_equal(engine.run(o, z), before), 'the same input gives another chunk')
    expect(not np.array_equal(engine.run(o + 1, z), before), 'the observation has no effect')
    new = engine.refit(second.weights)
    expect(
        not refused(lambda: new.golden_check(second.manifest.golden)), 'golden check after a refit'
    )
    expect(np.array_equal(engine.run(o, z), before), 'a refit changed the engine that acts')
    name = next(k for k in first.weights if k.endswith('output.weight'))
    expect(
        refused(lambda: engine.refit({**first.weights, name: np.zeros((2, 2), np.float32)})),
        'weights of another shape are taken',
    )
    return failures


def parity(engine: PolicyEngine, checkpoint: Checkpoint) -> float:
    """Return the largest difference from PyTorch on a CPU, in normalised actions."""
    policy = FlowPolicy.from_checkpoint(checkpoint)
    observations, noise = inputs(checkpoint)
    chunks = np.stack([engine.run(o, z) for o, z in zip(observations, noise, strict=True)])
    std = checkpoint.weights['normalizer.action_std'].reshape(chunks.shape[1:])
    return float(np.max(np.abs(chunks - policy.act(observations, noise)) / std))


def inputs(checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Return observations float32 [INPUTS, O] and noise float32 [INPUTS, N]."""
    rng, spec = np.random.default_rng(0), checkpoint.spec
    shapes = ((INPUTS, spec.observation_size), (INPUTS, spec.noise_size))
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def torch_eager(checkpoint: Checkpoint, effort: Effort) -> dict[str, float]:
    """Time the policy's own code on the GPU, one launch after the other: the baseline."""
    import torch

    policy = FlowPolicy.from_checkpoint(checkpoint).requires_grad_(False).cuda()
    observations, noise = inputs(checkpoint)

    def run(i: int) -> np.ndarray:
        with torch.no_grad():
            pair = (observations[i % INPUTS], noise[i % INPUTS])
            return policy.chunk(*(torch.from_numpy(v[None]).cuda() for v in pair)).cpu().numpy()

    time_calls(run, 20)
    with no_garbage_collection():
        return spread('run_us', time_calls(run, effort.calls) * US)


def launch_us() -> float:
    """Return the time from one small kernel to the next when they are launched one by one."""
    import torch

    x, count = torch.zeros(1, device='cuda'), 2000
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            x.add_(1.0)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) / count * US


def operators(checkpoint: Checkpoint) -> int:
    """Return how many operators the unrolled sampler has: about as many launches run eagerly."""
    import torch

    from dipod_ros.policy.export import UnrolledSampler

    spec = checkpoint.spec
    sampler = UnrolledSampler(FlowPolicy.from_checkpoint(checkpoint)).eval()
    example = (torch.zeros(1, spec.observation_size), torch.zeros(1, spec.noise_size))
    nodes = torch.export.export(sampler, example).graph.nodes
    return sum(n.op == 'call_function' for n in nodes)


def training_step_ms(checkpoint: Checkpoint, precision: str, effort: Effort) -> float:
    """Return the median time of a step of conditional flow matching, batch 256, with AdamW."""
    import torch

    from dipod_ros.policy.networks import time_features

    policy = FlowPolicy.from_checkpoint(checkpoint).cuda()
    spec = policy.spec
    optimizer = torch.optim.AdamW(policy.net.parameters(), lr=1e-4, fused=True)
    torch.manual_seed(0)
    observation = torch.randn(BATCH, spec.observation_size, device='cuda')
    action = torch.randn(BATCH, spec.action_size, device='cuda')
    dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16}[precision]

    def step(_: int) -> None:
        noise, t = torch.randn_like(action), torch.rand(BATCH, device='cuda')
        x = (1 - t[:, None]) * action + t[:, None] * noise
        with torch.autocast('cuda', dtype, enabled=precision != 'fp32'):
            v = policy.net(x, time_features(t), observation)
        loss = (v.float() - (noise - action)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()

    time_calls(step, 5)
    return float(np.median(time_calls(step, effort.steps))) * MS
