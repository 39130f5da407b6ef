# SPDX-License-Identifier: Apache-2.0
"""Part of `dipod bench sim`: simulator and policy server as processes, in lockstep through ROS.

The baseline is the same work in this process, without ROS: one world, the same policy, one decision
after the other.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dipod_ros.cli.bench_measure import Options, no_garbage_collection, spread, time_calls
from dipod_ros.cli.bench_ros import START_TIMEOUT_S, Stack, policy_arguments, running
from dipod_ros.policy.checkpoint import Checkpoint, load
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.sim.vector_env import ChunkVectorEnv

# Of the simulator's reports, which come twice a second, those that are let pass first: the other
# process still warms up.
WARM_UP_REPORTS = 2
US = 1e6
BAR = '{desc}: {percentage:3.0f}%|{bar}| {elapsed}'


@dataclass(frozen=True)
class _Report:
    """What the simulator's status said, and when it was heard (steady clock)."""

    heard_s: float
    ticks: int
    commands: int
    resends: int
    violations: int


def measure_lockstep(options: Options) -> dict[str, Any]:
    """Return rates through ROS and of the baseline, which is measured before and after."""
    checkpoint = load(options.student)
    world = _World(checkpoint)
    decisions = options.pick(1000, 50)
    before = world.time_decisions(decisions)
    reports = _watch(checkpoint, options.pick(10, 2))
    alone_us = np.concatenate([before, world.time_decisions(decisions)]) * US
    first, last = reports[0], reports[-1]
    elapsed_s = last.heard_s - first.heard_s
    ticks_per_s = (last.ticks - first.ticks) / elapsed_s
    decisions_per_s = (last.commands - first.commands) / elapsed_s
    horizon = checkpoint.spec.horizon
    windows = [
        (b.ticks - a.ticks) / (b.heard_s - a.heard_s)
        for a, b in zip(reports[:-1], reports[1:], strict=True)
    ]
    alone_ticks_per_s = horizon / np.median(alone_us) * US
    return {
        'checkpoint': options.student.name,
        'lockstep_ticks_per_s': ticks_per_s,
        'lockstep_ticks_per_s_slowest': min(windows),
        'decisions_per_s': decisions_per_s,
        'real_time_factor': ticks_per_s * checkpoint.spec.control_period_s,
        'inprocess_ticks_per_s': float(alone_ticks_per_s),
        'lockstep_over_inprocess': float(ticks_per_s / alone_ticks_per_s),
        **spread('inprocess_decision_us', alone_us),
        'lockstep_s': elapsed_s,
        'resends': last.resends - first.resends,
        'limit_violations': last.violations,
    }


class _World:
    """One world and the engine that acts in it, in this process."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        spec = checkpoint.spec
        self._engine = EngineFactory('onnx', threads=1).build(checkpoint)
        self._env = ChunkVectorEnv(spec.task, 1, spec.robot, seed=0)
        self._noise = np.random.default_rng(0).standard_normal((64, spec.noise_size))
        self._observation, _ = self._env.reset()

    def time_decisions(self, count: int) -> np.ndarray:
        """Return the seconds [count] of one decision and its execution each."""
        with no_garbage_collection():
            return time_calls(self._decide, count)

    def _decide(self, i: int) -> None:
        chunk = self._engine.run(self._observation[0], self._noise[i % len(self._noise)])
        self._observation, *_ = self._env.step(chunk[None])


def _watch(checkpoint: Checkpoint, seconds: int) -> list[_Report]:
    """Run simulator and server, and return the simulator's reports of about `seconds`."""
    spec = checkpoint.spec
    arguments = {
        **policy_arguments(checkpoint.manifest.path, spec.robot),
        'task': spec.task,
        'seed': '0',
    }
    with (
        running('sim.launch.yaml', arguments) as stack,
        tqdm(total=seconds, desc='sim: lockstep', leave=False, bar_format=BAR) as bar,
    ):
        reports = _listen(stack)
        stack.spin_until(
            lambda: len(reports) > WARM_UP_REPORTS, 'the first decisions', START_TIMEOUT_S
        )
        begin = len(reports) - 1
        bar.reset()
        while (watched := reports[-1].heard_s - reports[begin].heard_s) < seconds:
            stack.spin(0.1)
            bar.update(min(watched, seconds) - bar.n)
            if time.monotonic() - reports[-1].heard_s > START_TIMEOUT_S:
                raise stack.failure('the simulator reports nothing any more')
    return reports[begin:]


def _listen(stack: Stack) -> list[_Report]:
    """Return a list that fills with the simulator's reports, from its first motion on.

    Its status is all that is listened to: a subscriber to every decision would take a share of the
    cores that the two nodes run on.
    """
    from std_msgs.msg import String

    from dipod_ros.ros import qos

    reports: list[_Report] = []

    def on_status(msg: String) -> None:
        status = json.loads(msg.data)
        if status['ticks']:
            reports.append(
                _Report(
                    time.monotonic(),
                    status['ticks'],
                    status['commands'],
                    status['resends'],
                    status['limit_violations'],
                )
            )

    stack.node.create_subscription(String, 'mujoco_sim/status', on_status, qos.LATCHED)
    return reports
