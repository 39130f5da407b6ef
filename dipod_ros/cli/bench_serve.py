# SPDX-License-Identifier: Apache-2.0
"""`dipod bench serve`: from an observation that is published to the command that answers it.

The real policy_server process, in lockstep, against a robot that this process plays. Its baseline
is what cannot be saved: a message there and one back, and the engine's own time.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dipod_ros.cli.bench_measure import Options, no_garbage_collection, spread, time_calls
from dipod_ros.cli.bench_ros import (
    ANSWER_TIMEOUT_S,
    START_TIMEOUT_S,
    Stack,
    policy_arguments,
    running,
)
from dipod_ros.policy.checkpoint import Checkpoint, load
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.sim.robot import load_robot

# One question every 5 ms. Asked back to back, cores never sleep between messages and every round
# trip looks better than a robot's, which has a control period.
PERIOD_S = 0.005
US = 1e6
US_PER_MS = 1e3


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of the student, and those of the flow under `flow`."""
    rounds, calls = options.pick(20, 3), options.pick(50, 10)
    with tqdm(total=2 * (rounds + 1), desc='serve', leave=False) as bar:
        results = [_measure(path, rounds, calls, bar) for path in (options.student, options.flow)]
    return {**results[0], 'flow': results[1]}


def _measure(path: Path, rounds: int, calls: int, bar: tqdm) -> dict[str, Any]:
    checkpoint = load(path)
    spec = checkpoint.spec
    controller = load_robot(spec.robot).controller
    engine = _engine_call(checkpoint)
    with running('robot.launch.yaml', policy_arguments(path, spec.robot)) as stack, _pong(stack):
        # Only now: these modules import rclpy, which `running` explains when it is missing.
        from dipod_ros.cli.bench_player import Ping, Player

        ping, player = Ping(stack, spec.joints), Player(stack, checkpoint.manifest, controller)
        for one in (ping, player):
            one.measure(START_TIMEOUT_S)  # until both processes are up and connected
            _time_paced(one.measure, calls)
        time_calls(engine, calls)
        lost = ping.exchange.resends + player.exchange.resends
        player.from_first_s.clear()
        bar.update()
        bare, decision, engine_only, engine_paced = (np.empty((rounds, calls)) for _ in range(4))
        heard = _listen(stack)
        with no_garbage_collection():
            for i in range(rounds):
                bare[i] = _time_paced(ping.measure, calls)
                decision[i] = _time_paced(player.measure, calls)
                engine_only[i] = time_calls(engine, calls)
                engine_paced[i] = _time_paced(lambda _: time_calls(engine, 1)[0], calls)
                bar.update()
        inside = _inside(stack, heard)
        reading = time_calls(player.reading(), rounds * calls)
        lost = ping.exchange.resends + player.exchange.resends - lost
    sum_of_parts = np.median(bare, axis=1) + np.median(engine_only, axis=1)
    return {
        'checkpoint': path.name,
        'sampler': str(spec.sampler),
        **spread('decision_us', decision * US),
        **spread('bare_roundtrip_us', bare * US),
        **spread('bare_engine_us', engine_only * US),
        **spread('paced_engine_us', engine_paced * US),
        'ratio': float(np.median(np.median(decision, axis=1) / sum_of_parts)),
        **spread('decision_from_first_us', np.array(player.from_first_s) * US),
        **inside,
        **spread('reading_us', reading * US),
        'decisions': decision.size,
        'resends': lost,
        **_measure_realtime(path, checkpoint, controller, engine, rounds),
    }


def _measure_realtime(
    path: Path, checkpoint: Checkpoint, controller: str, engine: Callable, rounds: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix='dipod_bench_') as folder:
        parameters = Path(folder) / 'realtime.yaml'
        parameters.write_text('/**:\n  ros__parameters:\n    replan_steps: 1\n')
        given = policy_arguments(path, checkpoint.spec.robot)
        given |= {'lockstep': 'false', 'params_file': str(parameters)}
        with running('robot.launch.yaml', given) as stack, _pong(stack):
            from dipod_ros.cli.bench_realtime import measure_realtime

            return measure_realtime(stack, checkpoint.manifest, controller, engine, rounds)


def _listen(stack: Stack) -> list[dict[str, str]]:
    """Return a list that fills with what the server says of its decisions, once a second."""
    from diagnostic_msgs.msg import DiagnosticArray

    heard: list[dict[str, str]] = []
    name = f'{stack.node.get_namespace().lstrip("/")}/policy_server: decisions'

    def on_diagnostics(msg: DiagnosticArray) -> None:
        found = (status for status in msg.status if status.name == name)
        heard.extend({v.key: v.value for v in status.values} for status in found)

    stack.node.create_subscription(DiagnosticArray, '/diagnostics', on_diagnostics, 10)
    return heard


def _inside(stack: Stack, heard: list[dict[str, str]]) -> dict[str, float]:
    """Return what the server itself says of its last few hundred decisions."""
    before = len(heard)
    stack.spin_until(lambda: len(heard) > before, 'diagnostics', ANSWER_TIMEOUT_S)
    figures = {'server_us': 'decision', 'server_engine_us': 'engine'}
    tails = {'': 'p50', '_p99': 'p99'}
    return {
        key + tail: float(heard[-1][f'{what} {percentile} ms']) * US_PER_MS
        for key, what in figures.items()
        for tail, percentile in tails.items()
    }


def _engine_call(checkpoint: Checkpoint) -> Callable[[int], np.ndarray]:
    """Return a call of the graph that the server runs, in this process."""
    engine = EngineFactory('onnx', threads=1).build(checkpoint)
    golden = checkpoint.manifest.golden
    return lambda _: engine.run(golden.observation, golden.noise)


def _time_paced(measure_one: Callable[[float], float], count: int) -> np.ndarray:
    """Return the seconds [count] of questions that are asked at a fixed rate."""
    seconds = np.empty(count)
    due = time.monotonic()
    for i in range(count):
        seconds[i] = measure_one(ANSWER_TIMEOUT_S)
        # A late answer delays the next question instead of bunching up those that follow.
        due = max(due + PERIOD_S, time.monotonic())
        time.sleep(due - time.monotonic() if due > time.monotonic() else 0)
    return seconds


@contextlib.contextmanager
def _pong(stack: Stack) -> Iterator[None]:
    """Run the other end of the bare round trip; it has ended when this returns."""
    command = [sys.executable, '-m', 'dipod_ros.cli.bench_pong', '--ros-args']
    command += ['-r', f'__ns:={stack.node.get_namespace()}']
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.stdin.close()  # which is its sign to end
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
