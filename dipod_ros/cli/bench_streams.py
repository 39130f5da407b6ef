# SPDX-License-Identifier: Apache-2.0
"""`dipod bench realtime`: a command stream in real time, alone and beside a trainer that learns.

The real policy_server and simulator processes; the stream is dated where a receiver's middleware
gets it. Its baseline is a process that does nothing but publish at the same rate, in the same
seconds.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dipod_ros.cli.bench_measure import Options, spread
from dipod_ros.cli.bench_ros import START_TIMEOUT_S, Stack, running
from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Checkpoint, load

if TYPE_CHECKING:
    from dipod_ros.cli._bench_arrivals import Arrivals, Figures

RATES_HZ = (100.0, 500.0)
US_PER_MS = 1e3
WARM_UP_S = 2.0  # at most a quarter of what is measured
FETCH_S = 0.05  # well below what a subscription keeps
# Every episode starts an update that takes until the next is over: the trainer is always at it.
PARAMETERS = """/**:
  ros__parameters:
    replan_steps: 1
    episodes_per_update: 1
    max_episodes_per_update: 16
    critic_warmup_updates: 0
    gap_every: 0
    epochs: 300
    tensorboard: false
    realtime_priority: {priority}
"""
# A control period of the camera run: 33 pictures per second.
CAMERA_PERIOD_S = 0.03
CAMERA = """/**:
  ros__parameters:
    control_period_s: {period}
    cameras: [{cameras}]
    camera_width: 96
    camera_height: 96
"""


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of the first rate, and those of the other under `at_<rate>_hz`."""
    checkpoint = load(options.student)
    seconds = options.pick(30, 2)
    rates_hz = RATES_HZ[:1] if options.quick else RATES_HZ
    with (
        TemporaryDirectory(prefix='dipod_bench_') as folder,
        tqdm(total=2 * len(rates_hz) + 2, desc='realtime', leave=False) as bar,
    ):
        results = []
        for rate_hz in rates_hz:
            # The flow acts and learns, as in `dipod up online.launch.yaml`.
            alone = _measure(options, rate_hz, seconds, Path(folder), trainer=False)
            bar.update()
            busy = _measure(options, rate_hz, seconds, Path(folder), trainer=True)
            bar.update()
            over = busy['decision_us_p99'] / alone['decision_us_p99']
            results.append(
                {
                    'command_rate_hz': rate_hz,
                    **alone,
                    'decision_p99_with_trainer_over_without': over,
                    'with_trainer': busy,
                }
            )
        camera = _measure_camera(checkpoint, seconds, Path(folder), bar)
    first, *others = results
    return {
        'checkpoint': options.flow.name,
        'measured_s': seconds,
        'realtime_priority': options.realtime_priority,
        **camera,
        **first,
        **{f'at_{other["command_rate_hz"]:.0f}_hz': other for other in others},
    }


def _measure(
    options: Options, rate_hz: float, seconds: float, folder: Path, trainer: bool
) -> dict[str, Any]:
    path, priority = options.flow, options.realtime_priority
    checkpoint = load(path)
    spec = checkpoint.spec
    params = folder / 'params.yaml'
    params.write_text(PARAMETERS.format(priority=priority))
    arguments = {
        **_arguments(checkpoint, params),
        'checkpoint': str(path),
        'model_dirs': str(path.parent),
        'engine': 'onnx',
        'interface': 'position',
        'command_rate_hz': str(rate_hz),
    }
    if trainer:
        run_dir = folder / f'run_{rate_hz:.0f}'
        arguments |= {'run_dir': str(run_dir), 'student': 'off', 'follow_trainer': 'true'}
    launch_file = 'online.launch.yaml' if trainer else 'sim.launch.yaml'
    with running(launch_file, arguments) as stack:
        # Only now: these modules import rclpy, which `running` explains when it is missing.
        from dipod_ros.cli._bench_arrivals import Arrivals, Figures, cpu_seconds, ticking
        from dipod_ros.cli.bench_ticker import TOPIC as TICKS

        controller = _robot(spec.robot).controller
        commands, ticks = Arrivals(stack, f'{controller}/commands'), Arrivals(stack, TICKS)
        figures = Figures(stack)
        with ticking(stack, rate_hz, len(spec.joints), priority):
            stack.spin_until(
                lambda: min(commands.collect(), ticks.collect()) > rate_hz,
                'the first commands',
                START_TIMEOUT_S,
            )
            if trainer:
                stack.spin_until(
                    lambda: figures.trainer.get('state') == 'learning',
                    'an update of the trainer',
                    START_TIMEOUT_S,
                )
            _spin(stack, min(WARM_UP_S, seconds / 4), commands, ticks)
            before = len(commands.ns), len(ticks.ns), _missed(figures), figures.trainer
            learned_s = cpu_seconds(stack, 'trainer') if trainer else 0.0
            began = time.monotonic()
            _spin(stack, seconds, commands, ticks)
            took_s = time.monotonic() - began
            learned_s = cpu_seconds(stack, 'trainer') - learned_s if trainer else 0.0
            counts = len(commands.ns), len(ticks.ns)
            stack.spin(1.2)  # until the next diagnostics
        commands.close()
        ticks.close()
    errors = commands.period_errors_us(before[0], counts[0], 1 / rate_hz)
    sent = commands.period_errors_us(before[0], counts[0], 1 / rate_hz, sent=True)
    bare = ticks.period_errors_us(before[1], counts[1], 1 / rate_hz)
    decisions = figures.server['decisions']
    p50, p99 = (float(decisions[f'decision {p} ms']) * US_PER_MS for p in ('p50', 'p99'))
    result = {
        **spread('period_error_us', errors),
        'period_error_p99_share': float(np.percentile(errors, 99)) * 1e-6 * rate_hz,
        **spread('sent_period_error_us', sent),
        'sent_period_error_p99_share': float(np.percentile(sent, 99)) * 1e-6 * rate_hz,
        **spread('bare_period_error_us', bare),
        'period_error_p99_over_bare': float(np.percentile(errors, 99) / np.percentile(bare, 99)),
        'decision_us': p50,
        'decision_us_p99': p99,
        'decisions': int(decisions['decisions']),
        'commands': len(errors),
        'missed_ticks': _missed(figures) - before[2],
        'limit_violations': figures.simulator['limit_violations'],
    }
    if trainer:
        result['updates'] = figures.trainer['updates'] - before[3].get('updates', 0)
        result['trainer_core_share'] = learned_s / took_s
    return result


def _measure_camera(
    checkpoint: Checkpoint, seconds: float, folder: Path, bar: tqdm
) -> dict[str, Any]:
    """Return what a camera costs the simulator, in shares of a core, or why that is not known."""
    shares = []
    for cameras in ('', 'front'):
        params = folder / 'camera.yaml'
        text = CAMERA.format(period=CAMERA_PERIOD_S, cameras=cameras)
        if not cameras:
            text = '\n'.join(line for line in text.splitlines() if 'camera' not in line)
        params.write_text(text)
        try:
            with running(
                'sim.launch.yaml', {**_arguments(checkpoint, params), 'server': 'false'}
            ) as stack:
                shares.append(_simulator_share(stack, bool(cameras), seconds))
        except UserError as error:
            if not cameras:
                raise
            return {'camera_not_measured': str(error)}
        bar.update()
    return {
        'camera_core_share': max(shares[1] - shares[0], 0.0),
        'camera_hz': 1 / CAMERA_PERIOD_S,
        'simulator_core_share': shares[0],
    }


def _spin(stack: Stack, seconds: float, *arrivals: Arrivals) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        stack.spin(FETCH_S)
        for one in arrivals:
            one.collect()


def _simulator_share(stack: Stack, camera: bool, seconds: float) -> float:
    from sensor_msgs.msg import Image, JointState

    from dipod_ros.cli._bench_arrivals import cpu_seconds
    from dipod_ros.ros import qos

    heard: list[int] = []
    kind, topic = (Image, 'front/image_raw') if camera else (JointState, 'joint_states')
    stack.node.create_subscription(kind, topic, lambda _: heard.append(1), qos.SENSOR)
    stack.spin_until(lambda: len(heard) > 5, topic, START_TIMEOUT_S)
    stack.spin(min(WARM_UP_S, seconds / 4))
    began, used_s = time.monotonic(), cpu_seconds(stack, 'mujoco_sim')
    stack.spin(seconds)
    return (cpu_seconds(stack, 'mujoco_sim') - used_s) / (time.monotonic() - began)


def _arguments(checkpoint: Checkpoint, params: Path) -> dict[str, str]:
    from dipod_ros.resources import resource

    spec = checkpoint.spec
    return {
        'robot': str(resource(f'config/robots/{spec.robot}.yaml')),
        'task': spec.task,
        'seed': '0',
        'lockstep': 'false',
        'params_file': str(params),
    }


def _robot(name: str) -> Any:
    from dipod_ros.sim.robot import load_robot

    return load_robot(name)


def _missed(figures: Figures) -> int:
    return int(figures.server.get('output', {}).get('missed ticks', 0))
