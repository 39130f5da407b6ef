# SPDX-License-Identifier: Apache-2.0
"""`dipod bench swap`: what a stream of commands notices of policies that are swapped under it.

The real policy_server process, in real time at 100 Hz, against a robot that this process plays. Its
baseline is the same stream without swaps, in turns with it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from dipod_ros.cli.bench_engine import no_kept_graphs, refit_times
from dipod_ros.cli.bench_measure import Options, no_garbage_collection, spread
from dipod_ros.cli.bench_ros import START_TIMEOUT_S, policy_arguments, running
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.sim.robot import load_robot

if TYPE_CHECKING:
    from dipod_ros.cli.bench_stream import StreamPlayer

PERIOD_S = 0.01
# Swaps per turn; then the stream goes on for as long without any.
SWAPS_PER_TURN = 50
SWAP_TIMEOUT_S = 20.0
WARM_UP_S = 2.0
# How much the second policy's weights differ from the first's, as one update's would.
NUDGE = 1e-3
MS = 1e3


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of the student's network; see docs/benchmarks.md."""
    swaps, refits, exports = options.pick(1000, 20), options.pick(20, 3), options.pick(3, 1)
    with tempfile.TemporaryDirectory(prefix='dipod_bench_') as folder:
        paths = _policies(options.student, Path(folder))
        with tqdm(total=swaps + refits + exports, desc='swap', leave=False) as bar:
            stream = _stream(paths, swaps, options.realtime_priority, Path(folder), bar)
            with no_kept_graphs():
                checkpoint = ckpt.load(paths[0])
                engine = EngineFactory('onnx', threads=1).build(checkpoint)
                refit = refit_times(engine, checkpoint, refits, exports, bar)
    sampler = ckpt.read_manifest(options.student).spec.sampler
    return {'checkpoint': options.student.name, 'sampler': str(sampler), **stream, **refit}


def _policies(source: Path, folder: Path) -> list[Path]:
    """Write two policies for 100 Hz that move as fast as `source`; they differ in weights alone."""
    from dipod_ros.policy.flow import FlowPolicy

    checkpoint = ckpt.load(source)
    spec = replace(checkpoint.spec, control_period_s=PERIOD_S)
    share = np.float32(PERIOD_S / checkpoint.spec.control_period_s)
    generator = np.random.default_rng(0)
    paths = []
    for name, nudge in (('one', 0.0), ('other', NUDGE)):
        weights = {}
        for key, value in checkpoint.weights.items():
            if key in ('normalizer.action_mean', 'normalizer.action_std'):
                value = value * share  # a shorter period, smaller increments
            elif not key.startswith('normalizer.'):
                noise = generator.standard_normal(value.shape, dtype=np.float32)
                value = value * (1 + np.float32(nudge) * noise)
            weights[key] = value
        manifest = replace(checkpoint.manifest, spec=spec)
        policy = FlowPolicy.from_checkpoint(ckpt.Checkpoint(manifest, weights))
        policy.save(folder / name, kind=manifest.kind)
        paths.append(folder / name)
    return paths


def _stream(
    paths: list[Path], swaps: int, priority: int, folder: Path, bar: tqdm
) -> dict[str, Any]:
    """Return what the receiver of the commands saw, with swaps and without."""
    manifests = [ckpt.read_manifest(path) for path in paths]
    spec = manifests[0].spec
    settings = folder / 'settings.yaml'
    given = {'control_period_s': PERIOD_S, 'outcome_timeout_s': 0.0, 'realtime_priority': priority}
    settings.write_text(yaml.safe_dump({'/**': {'ros__parameters': given}}))
    arguments = policy_arguments(paths[0], spec.robot) | {
        'lockstep': 'false',
        'interface': 'position',
        'params_file': str(settings),
    }
    with running('robot.launch.yaml', arguments) as stack:
        # Only now: this module imports rclpy, which `running` explains when it is missing.
        from dipod_ros.cli.bench_stream import StreamPlayer

        player = StreamPlayer(stack, manifests[0], load_robot(spec.robot).controller, PERIOD_S)
        stack.spin_until(lambda: player.stream.count > 0, 'a first command', START_TIMEOUT_S)
        stack.spin(WARM_UP_S)
        player.swap(*_other(player, manifests), SWAP_TIMEOUT_S)  # the first build of the process
        swap_s = []
        with no_garbage_collection():
            while len(swap_s) < swaps:
                began = time.monotonic()
                player.begin(True)
                for _ in range(min(SWAPS_PER_TURN, swaps - len(swap_s))):
                    swap_s.append(player.swap(*_other(player, manifests), SWAP_TIMEOUT_S))
                    bar.update()
                took_s = time.monotonic() - began
                player.begin(False)
                stack.spin(took_s)
            player.end()
    return {'realtime_priority': priority, **_figures(player, spec, swap_s)}


def _other(player: StreamPlayer, manifests: list[ckpt.Manifest]) -> tuple[Path, str]:
    """Return path and sha256 of the policy that does not act."""
    manifest = next(m for m in manifests if m.sha256 != player.acting)
    return manifest.path, manifest.sha256


def _figures(player: StreamPlayer, spec, swap_s: list[float]) -> dict[str, Any]:
    results: dict[str, Any] = {'swaps': len(swap_s), 'commands': player.stream.count}
    for name, with_swaps in (('', True), ('_without_swaps', False)):
        for what, sent in (('gap', False), ('sent_gap', True)):
            gaps = player.stream.gaps_s(with_swaps, sent) / PERIOD_S
            median, p99, most = np.percentile(gaps, (50, 99, 100)).tolist()
            results |= {
                f'max_{what}_periods{name}': most,
                f'p99_{what}_periods{name}': p99,
                f'median_{what}_periods{name}': median,
            }
    return {
        **results,
        'limit_violations': player.stream.violations(spec.limits, PERIOD_S),
        'decisions': player.decisions,
        'decisions_lost': player.decisions_lost,
        'late_periods': player.late_periods[True],
        'late_periods_without_swaps': player.late_periods[False],
        **spread('swap_ms', np.array(swap_s) * MS),
    }
