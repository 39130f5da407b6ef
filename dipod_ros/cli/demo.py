# SPDX-License-Identifier: Apache-2.0
"""`dipod demo`: a simulated arm over ROS 2 whose policy gets better while it runs.

Starts `online.launch.yaml` as `dipod up` would, watches it from its topics, lets the trainer distil
a few-step student at the end, and measures before, after and student in evaluations of their own.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dipod_ros.cli._node_log import failure
from dipod_ros.cli.output import write_json

HELP = 'watch a policy act on a simulated arm over ROS 2 and get better'

# Left of the time for the student: distilling takes about 15 s, acting with it a few more.
STUDENT_EPISODES = 64
STUDENT_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
WORLDS = 256
MAX_BETA = 1000  # as the trainer has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('--task', default='pillar_reach', help='default %(default)s')
    parser.add_argument('--checkpoint', help='flow to start from; default is the shipped TASK_flow')
    parser.add_argument(
        '--minutes', type=float, default=3.0, help='of online learning (default %(default)s)'
    )
    parser.add_argument('--updates', type=int, metavar='N', help='end learning after N of them')
    parser.add_argument('--headless', action='store_true', help='no videos')
    parser.add_argument('--eval-episodes', type=int, default=512, help='default %(default)s')
    parser.add_argument('--beta', type=float, default=0.1, help='default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument(
        '--params-file',
        type=Path,
        metavar='FILE',
        help='one more ROS parameter file for the nodes, e.g. with epochs of the trainer',
    )
    parser.add_argument(
        '--run-dir', metavar='DIR', help='default runs/demo-DATE; runs/latest links'
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; the exit code is 0 when the whole story was shown."""
    # Two processes that share two cores: one OpenMP thread each. Loopback only, and a domain apart
    # from whatever else runs here. Both are inherited by the nodes.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))
    from dipod_ros.cli.arguments import (
        find_checkpoint,
        require_at_least,
        require_teacher,
        set_threads,
    )
    from dipod_ros.errors import UserError
    from dipod_ros.policy.checkpoint import read_manifest

    _require_rclpy()
    set_threads(1)
    if args.minutes <= 0:
        raise UserError(f'--minutes must be above 0, got {args.minutes}')
    require_at_least(args, eval_episodes=1, updates=1, seed=0)
    if not 0 <= args.beta <= MAX_BETA:
        raise UserError(f'--beta must be within 0..{MAX_BETA}, got {args.beta}')
    if args.params_file is not None and not args.params_file.is_file():
        raise UserError(f'--params-file {args.params_file}: there is no such file')
    initial = find_checkpoint(args.checkpoint or f'{args.task}_flow')
    require_teacher(initial)
    if read_manifest(initial).spec.task != args.task:
        raise UserError(
            f'{initial} was made for task {read_manifest(initial).spec.task}, not {args.task}'
        )
    run_dir = _make_run_dir(args.run_dir)
    print(f'dipod demo: {args.task} from {initial.name}; everything goes to {run_dir}\n')
    before = _evaluate('before', initial, args)
    session = _Session(args, initial, run_dir)
    try:
        session.learn()
        session.hand_over_to_student()
    finally:
        session.stop()
    paths = session.results()
    after = _evaluate('after', paths['after'], args)
    student = _evaluate('student', paths['student'], args) if 'student' in paths else None
    rates = {'before': before, 'after': after} | ({'student': student} if student else {})
    summary = session.summary() | {'evaluation_episodes': before.episodes}
    for name, rate in rates.items():
        summary[f'success_{name}'] = rate.success
        summary[f'success_{name}_95'] = [rate.low, rate.high]
    write_json(run_dir / 'summary.json', summary)
    _draw(run_dir, rates, args.task)
    if not args.headless:
        _film(run_dir, initial, paths, args)
    _report(summary, rates, run_dir)
    return 0 if student is not None else 1


class _Session:
    """The running stack, from launch to the last look at its topics."""

    def __init__(self, args: argparse.Namespace, initial: Path, run_dir: Path) -> None:
        import rclpy

        from dipod_ros.resources import resource
        from dipod_ros.ros.launch_runner import LaunchRunner
        from dipod_ros.ros.monitor import Monitor
        from dipod_ros.ros.runtime import make_executor

        self.args, self.run_dir = args, run_dir
        rclpy.init(args=[])
        self.monitor = Monitor()
        self._executor = make_executor()
        self._executor.add_node(self.monitor)
        self._launch = LaunchRunner(
            resource('launch/online.launch.yaml'),
            {
                'task': args.task,
                'checkpoint': str(initial.resolve()),
                'model_dirs': str(initial.resolve().parent),
                'lockstep': 'true',
                'run_dir': str(run_dir / 'training'),
                'beta': str(args.beta),
                'seed': str(args.seed),
                'student': 'final',
                **({'params_file': str(args.params_file.resolve())} if args.params_file else {}),
            },
            log_file=run_dir / 'nodes.log',
        )
        self._launch.start()
        self._began = time.monotonic()

    def learn(self) -> None:
        """Watch until the time for learning is over, or its last update."""
        self._until(lambda s: s.decisions > 0, START_TIMEOUT_S, 'the first decision', 'starting')
        deadline = time.monotonic() + 60 * self.args.minutes
        most = self.args.updates or float('inf')
        self._until(
            lambda s: time.monotonic() >= deadline or s.trainer.get('updates', 0) >= most,
            None,
            '',
            'learning',
        )

    def hand_over_to_student(self) -> None:
        """Let the trainer distil, the server swap, and the student act for a while."""
        from dipod_ros.errors import UserError

        if not self.monitor.finish_learning():
            raise UserError(f'the trainer does not answer ~/finish: see {self.run_dir}/nodes.log')
        self._until(
            lambda s: s.trainer.get('state') == 'finished' and s.active.get('kind') == 'student',
            STUDENT_TIMEOUT_S,
            'the student',
            'distilling',
        )
        sha = self.monitor.snapshot.active.get('sha256', '')
        self._until(
            lambda s: self.monitor.episodes_of(sha)[0] >= STUDENT_EPISODES,
            START_TIMEOUT_S,
            f'{STUDENT_EPISODES} episodes of the student',
            'student acts',
        )

    def stop(self) -> None:
        """End the nodes and the watch; safe to call at any time."""
        import rclpy

        self._launch.stop()
        self._executor.remove_node(self.monitor)
        self.monitor.destroy_node()
        self._executor.shutdown()
        rclpy.try_shutdown()
        print()

    def results(self) -> dict[str, Path]:
        """Return the folders of the last version and of the student."""
        trainer = self.monitor.snapshot.trainer
        found = {'after': Path(trainer['checkpoint'])}
        if trainer.get('student'):
            found['student'] = Path(trainer['student'])
        return found

    def summary(self) -> dict[str, Any]:
        """Return the figures of the run."""
        s = self.monitor.refresh()
        sha = s.active.get('sha256', '')
        episodes, successes = self.monitor.episodes_of(sha)
        return {
            'task': self.args.task,
            'seed': self.args.seed,
            'beta': self.args.beta,
            'minutes': self.args.minutes,
            'updates': s.trainer.get('updates'),
            'version': s.trainer.get('version'),
            'swaps': s.server.get('swaps'),
            'episodes': s.episodes,
            'decisions': s.decisions,
            'control_ticks': s.control_ticks,
            'control_steps_learned_from': s.trainer.get('control_steps'),
            'ticks_per_s': s.ticks_per_s,
            'decision_ms_p50': s.latency_ms_p50,
            'decision_ms_p99': s.latency_ms_p99,
            'limit_violations': s.simulator.get('limit_violations'),
            'interrupted_decisions': s.interrupted,
            'alarms': s.trainer.get('alarms'),
            'student_live': {'episodes': episodes, 'successes': successes},
        }

    def _until(self, done, timeout_s: float | None, what: str, phase: str) -> None:
        from dipod_ros.errors import UserError
        from dipod_ros.ros.runtime import spin_slice

        start = printed = time.monotonic()
        while True:
            spin_slice(self._executor, 0.05)
            snapshot = self.monitor.snapshot
            if done(snapshot):
                return
            code = self._launch.poll()
            if code is not None:
                log = self.run_dir / 'nodes.log'
                why = failure(log)
                raise UserError(
                    f'the nodes ended (exit code {code}) while {phase}'
                    f'{": " if why else ""}{why}; see {log}'
                )
            now = time.monotonic()
            if timeout_s is not None and now - start > timeout_s:
                raise UserError(
                    f'waited {timeout_s:.0f} s for {what} in vain: see {self.run_dir}/nodes.log'
                )
            if now - printed > 0.5:
                printed = now
                self._print_line(phase)

    def _print_line(self, phase: str) -> None:
        s = self.monitor.refresh()
        seconds = int(time.monotonic() - self._began)
        line = (
            f'{seconds // 60}:{seconds % 60:02d} {phase:12} '
            f'success {s.success:.2f} ({min(s.episodes, 128)} ep)  '
            f'version {s.trainer.get("version", 0)}  swaps {s.server.get("swaps", 0)}  '
            f'decision {s.latency_ms_p50:.2f}/{s.latency_ms_p99:.2f} ms  '
            f'violations {s.simulator.get("limit_violations", 0)}  {s.ticks_per_s:.0f} ticks/s'
        )
        print(f'\r{line:<118}', end='', flush=True)


def _require_rclpy() -> None:
    from dipod_ros.errors import UserError

    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise UserError(
            'rclpy is not importable: source your ROS 2 installation, or '
            '`pip install ros-jazzy-rclpy ros-jazzy-common-interfaces ros-jazzy-rmw-fastrtps-cpp`'
        ) from error


def _make_run_dir(given: str | None) -> Path:
    from dipod_ros.errors import UserError

    run_dir = Path(given or f'runs/demo-{datetime.now():%Y%m%d-%H%M%S}')
    try:
        run_dir.mkdir(parents=True, exist_ok=False)
        latest = Path('runs/latest')
        latest.parent.mkdir(exist_ok=True)
        # Replaced by rename, so that a reader always finds a link.
        link = latest.with_name(f'.latest-{os.getpid()}')
        link.symlink_to(run_dir.resolve())
        os.replace(link, latest)
    except FileExistsError as error:
        raise UserError(f'{run_dir} exists already; give another --run-dir') from error
    except OSError as error:
        raise UserError(f'cannot write {run_dir}: {error.strerror}') from error
    return run_dir


def _evaluate(name: str, checkpoint: Path, args: argparse.Namespace):
    from tqdm import tqdm

    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy.flow import load_policy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    policy = load_policy(checkpoint)
    worlds = min(WORLDS, args.eval_episodes)
    env = ChunkVectorEnv(args.task, worlds, policy.spec.robot, seed=0, autoreset=False)
    see_with(env, policy)
    with tqdm(
        total=args.eval_episodes, unit='episode', desc=f'evaluating {name}', leave=False
    ) as bar:
        return evaluate_policy(
            env,
            policy,
            episodes=args.eval_episodes,
            seed=args.seed + 1,
            progress=lambda n: bar.update(n - bar.n),
        )


def _draw(run_dir: Path, rates, task: str) -> None:
    from dipod_ros.learning.plots import plot_learning_curve
    from dipod_ros.learning.run_log import read_metrics

    plot_learning_curve(
        run_dir / 'learning_curve.png',
        read_metrics(run_dir / 'training'),
        rates,
        f'{task}: DiPOD updates from the replay topic',
    )


def _film(run_dir: Path, initial: Path, paths: dict[str, Path], args: argparse.Namespace) -> None:
    from dipod_ros.cli.video import record_video
    from dipod_ros.errors import UserError
    from dipod_ros.policy.flow import load_policy

    films = {'before': initial, 'after': paths.get('student', paths['after'])}
    try:
        for name, path in films.items():
            record_video(run_dir / f'{name}.mp4', load_policy(path), args.task, 6, args.seed + 1)
    except UserError as error:  # no GL here: the rest of the demo stands
        print(f'no videos: {error}')


def _report(summary: dict[str, Any], rates, run_dir: Path) -> None:
    for name, rate in rates.items():
        print(f'{name:8} success {rate}')
    print(
        f'{summary["updates"]} updates, {summary["swaps"]} swaps, '
        f'{summary["limit_violations"]} limit violations, {summary["ticks_per_s"]:.0f} ticks/s, '
        f'decision p50 {summary["decision_ms_p50"]:.2f} ms, '
        f'p99 {summary["decision_ms_p99"]:.2f} ms'
    )
    files = sorted(p.name for p in run_dir.iterdir() if p.is_file())
    print(f'{run_dir}: {", ".join(files)}')
