# SPDX-License-Identifier: Apache-2.0
"""`dipod bench delay`: what inference that takes long does to the motion and to success.

The server's real-time loop drives simulated arms on a clock that only moves when told to
(_virtual_world.py): no ROS, the same figures on any machine. The baseline is the loop without
forecast, which asks the policy about the past.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dipod_ros.cli._virtual_world import EpisodeTrace, VirtualWorld
from dipod_ros.cli.bench_measure import Options
from dipod_ros.policy.checkpoint import Checkpoint, load
from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.policy.limits import JointLimits
from dipod_ros.resources import share_dir
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loop import LoopConfig
from dipod_ros.serving.seam import SEAMS
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.tasks.base import Task
from dipod_ros.sim.tasks.reach import GoalMotion, Reach
from dipod_ros.sim.tasks.registry import make_task

DELAYS_MS = (0, 40, 80, 100, 120, 160, 200)
QUICK_DELAYS_MS = (0, 100, 200)
# Frequent replanning is measured without delay and with one of half a chunk of the shipped models.
REPLAN_STEPS = (1, 2)
REPLAN_DELAYS_MS = (0, 100)
SEED = 3
# Of the student's own task at its default settings; the other rows have fewer.
MANY_EPISODES = 512
MOVING = 'moving_reach'


@dataclass(frozen=True)
class Condition:
    """One row of the table."""

    task: str
    seam: str
    forecast: bool
    replan_steps: int
    delay_ms: int


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of the default settings, those without forecast, and the whole table."""
    static, moving = load(options.student), load(share_dir() / 'models' / 'reach_student')
    robot = load_robot(static.spec.robot)
    name = static.spec.task
    scenes: dict[str, tuple[Task, Checkpoint]] = {
        name: (make_task(name, robot), static),
        MOVING: (Reach(load_robot(moving.spec.robot), GoalMotion()), moving),
    }
    episodes, many = options.pick(100, 2), options.pick(MANY_EPISODES, 2)
    conditions = list(_conditions(name, options.quick))
    rows = []
    for condition in tqdm(conditions, desc='delay', leave=False):
        # Where success is what counts: a difference of a few points needs them.
        plain = condition.seam == 'replace' and not condition.replan_steps
        count = many if plain and condition.task == name else episodes
        rows.append(_row(condition, *scenes[condition.task], count))
    half_ms = round(static.spec.horizon * static.spec.control_period_s * 500)
    return {
        'checkpoint': options.student.name,
        'moving_checkpoint': 'reach_student',
        'episodes': many,
        'episodes_of_other_rows': episodes,
        'half_chunk_ms': half_ms,
        **_figures(rows, name, half_ms, True, ''),
        **_figures(rows, name, half_ms, False, '_without_forecast'),
        'limit_violations': sum(r['limit_violations'] for r in rows),
        'table': rows,
    }


def _conditions(task: str, quick: bool) -> Iterator[Condition]:
    delays = QUICK_DELAYS_MS if quick else DELAYS_MS
    for name in (task, MOVING):
        for seam in SEAMS:
            for forecast in (False, True):
                for delay in delays:
                    yield Condition(name, seam, forecast, 0, delay)
    for seam in SEAMS:
        for replan in REPLAN_STEPS[:1] if quick else REPLAN_STEPS:
            for delay in REPLAN_DELAYS_MS:
                yield Condition(task, seam, True, replan, delay)
                yield Condition(MOVING, seam, True, replan, delay)


def _row(condition: Condition, task: Task, checkpoint: Checkpoint, episodes: int) -> dict[str, Any]:
    engine = EngineFactory('onnx', guided=condition.seam == 'rtc').build(checkpoint)
    axes, origins, tip = task.chain.screws()
    joints = task.world.robot.joints
    config = LoopConfig(
        replan_steps=condition.replan_steps,
        seam=condition.seam,
        forecast=condition.forecast,
        reset_teleports=True,
        tip=TipKinematics.from_params(joints, axes.ravel(), origins.ravel(), tip, 'tip'),
    )
    delay_s = condition.delay_ms * 1e-3
    world = VirtualWorld(task, checkpoint.manifest, engine, config, delay_s, SEED)
    world.settle()
    traces = [world.episode() for _ in range(episodes)]
    robot = task.world.robot
    figures = summarise(traces, robot.limits, robot.control_period_s)
    return {**vars(condition), 'episodes': episodes, **figures}


def summarise(traces: list[EpisodeTrace], limits: JointLimits, dt: float) -> dict[str, Any]:
    """Return what a number of episodes came to.

    success             share of the episodes
    peak_acceleration   median over episodes of the largest |acceleration| / limit of any joint,
                        0 where nothing moved; `_p95` the 95th percentile
    seam_jerk           rad^2/s^6: mean square of the step of the acceleration, divided by dt, where
                        a chunk takes over from another; None without seams
    underruns, decisions  per episode
    limit_violations    of all episodes, as the simulated controller judges
    """
    peaks, jerks = [], []
    for trace in traces:
        points = np.array(trace.points).reshape(-1, len(limits.joints))
        acceleration = np.diff(points, 2, axis=0) / dt**2
        peaks.append(float(np.max(np.abs(acceleration) / limits.acceleration, initial=0.0)))
        jerk = np.diff(acceleration, axis=0) / dt
        # Row k of `jerk` is the step at row k + 2 of `points`; the first seam is the start.
        jerks += [np.mean(jerk[s - 2] ** 2) for s in trace.seams[1:] if 0 <= s - 2 < len(jerk)]
    return {
        'success': float(np.mean([t.success for t in traces])),
        'peak_acceleration': float(np.median(peaks)),
        'peak_acceleration_p95': float(np.percentile(peaks, 95)),
        'seam_jerk': float(np.mean(jerks)) if jerks else None,
        'underruns': float(np.mean([t.underruns for t in traces])),
        'decisions': float(np.mean([t.decisions for t in traces])),
        'limit_violations': sum(t.violations for t in traces),
    }


def _figures(
    rows: list[dict[str, Any]], task: str, half_ms: int, forecast: bool, suffix: str
) -> dict[str, float]:
    """Return the figures of the plain seam."""

    def row(name: str, delay_ms: int) -> dict[str, Any]:
        wanted = Condition(name, 'replace', forecast, 0, delay_ms)
        return next(r for r in rows if all(r[k] == v for k, v in vars(wanted).items()))

    zero, half = row(task, 0)['success'], row(task, half_ms)['success']
    still, slow = (row(MOVING, ms)['peak_acceleration'] for ms in (0, 200))
    return {
        f'success_zero_delay{suffix}': zero,
        f'success_half_chunk{suffix}': half,
        f'success_loss_half_chunk{suffix}': zero - half,
        f'peak_acceleration_ratio_200ms{suffix}': slow / still if still else float('nan'),
    }
