# SPDX-License-Identifier: Apache-2.0
"""`dipod bench delay`: the same run on every machine, judged by the simulated controller."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('onnxruntime')

from dipod_ros.cli import bench_delay
from dipod_ros.cli._virtual_world import EpisodeTrace, VirtualWorld
from dipod_ros.cli.bench_report import table
from dipod_ros.policy.checkpoint import load
from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.resources import share_dir
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loop import LoopConfig
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.tasks.reach import GoalMotion, Reach

DOCS = Path(__file__).resolve().parents[2] / 'docs/benchmarks.md'
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope='module')
def checkpoint():
    return load(share_dir() / 'models' / 'reach_student')


@pytest.fixture(scope='module')
def engine(checkpoint):
    return EngineFactory('onnx').build(checkpoint)


@pytest.fixture(scope='module')
def task():
    return Reach(load_robot('arm7'), GoalMotion())


@pytest.fixture
def world(task, checkpoint, engine):
    axes, origins, tip = task.chain.screws()
    names = task.world.robot.joints
    kinematics = TipKinematics.from_params(names, axes.ravel(), origins.ravel(), tip, 'tip')

    def make(delay_s, engine=engine, **config):
        world = VirtualWorld(
            task, checkpoint.manifest, engine, LoopConfig(tip=kinematics, **config), delay_s, 3
        )
        world.settle()
        return world

    return make


def test_the_same_seed_gives_the_same_run(world):
    one, two = ([w.episode() for _ in range(2)] for w in (world(0.1), world(0.1)))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        assert (a.success, a.seams, a.decisions) == (b.success, b.seams, b.decisions)


@pytest.mark.parametrize('delay_s', [0.0, 0.1, 0.2])
def test_with_a_forecast_whole_chunks_follow_each_other(world, delay_s):
    traces = [world(delay_s).episode() for _ in range(2)]
    for trace in traces:
        assert trace.underruns == trace.violations == 0
        np.testing.assert_array_equal(np.diff(trace.seams), 5)


def test_the_arm_is_where_the_forecast_said(world, monkeypatch):
    """What the policy is shown of a tick to come is what the simulator has when it comes."""
    from dipod_ros.serving import realtime

    said, w = {}, world(0.1)
    for _ in range(3):  # the lags are learned
        w.episode()
    original = realtime.roll_forward

    def spy(layout, observation, joints, plan, seen, asked, *more):
        out = original(layout, observation, joints, plan, seen, asked, *more)
        said[asked] = (out[:7], out[14:17], observation[14:17])
        return out

    monkeypatch.setattr(realtime, 'roll_forward', spy)
    came, sense = {}, w._sense

    def sensed():
        sense()
        tick = w.loop.grid.nearest(w.loop.joint_sample())
        tip = w._episodes.points()['tip'][0]
        came.setdefault(tick, (w._episodes.worlds.joint_position[0], tip))

    w._sense = sensed
    w.episode()
    pairs = [(said[t], came[t]) for t in said if t in came]
    assert len(pairs) >= 4
    tip_error = [np.linalg.norm(s[1] - c[1]) for s, c in pairs]
    tip_moved = [np.linalg.norm(s[2] - c[1]) for s, c in pairs]
    assert max(tip_moved) > 0.02  # m
    assert np.mean(tip_error) < 0.25 * np.mean(tip_moved)
    assert np.mean([np.abs(s[0] - c[0]).max() for s, c in pairs]) < 0.01  # rad


def test_a_slow_decision_without_a_forecast_comes_to_nothing(world):
    w = world(0.1, forecast=False)
    trace = w.episode()
    assert trace.underruns > 5 and trace.violations == 0


@pytest.mark.parametrize('forecast', [False, True])
@pytest.mark.parametrize('delay_s', [0.0, 0.1])
def test_a_guided_policy_keeps_the_limits(world, checkpoint, forecast, delay_s):
    guided = EngineFactory('onnx', guided=True).build(checkpoint)
    w = world(delay_s, guided, seam='rtc', forecast=forecast, replan_steps=2)
    trace = w.episode()
    assert trace.violations == 0 and trace.decisions > 5
    assert w.loop.safety.counts['fault'] == 0


def test_the_figures_are_what_they_say():
    limits, dt = load_robot('arm7').limits, 0.04
    steps = np.zeros((6, 7))
    steps[2:, 0] = 0.5 * limits.acceleration[0] * dt**2  # half the limit for one period
    still = EpisodeTrace(points=list(np.zeros((6, 7))), seams=[1])
    moving = EpisodeTrace(
        success=True, points=list(np.cumsum(steps, axis=0)), seams=[1, 2], decisions=2, underruns=1
    )
    out = bench_delay.summarise([still, moving], limits, dt)
    assert out['success'] == out['underruns'] == 0.5 and out['decisions'] == 1
    assert out['peak_acceleration'] == pytest.approx(0.25)
    assert out['peak_acceleration_p95'] == pytest.approx(0.475)
    jerk = 0.5 * limits.acceleration[0] / dt
    assert out['seam_jerk'] == pytest.approx(jerk**2 / 7)
    assert bench_delay.summarise([still], limits, dt)['seam_jerk'] is None


def test_every_documented_figure_is_there():
    section = DOCS.read_text().split('\n## delay\n')[1].split('\n## ')[0]
    keys, columns = (
        {k for line in part.splitlines() if line.startswith('| `')
         for k in re.findall(r'`([a-z_0-9]+)`', line.split('|')[1])}
        for part in section.split('| column |')
    )  # fmt: skip
    limits = load_robot('arm7').limits
    figures = bench_delay.summarise([EpisodeTrace()], limits, 0.04)
    rows = [vars(c) | figures for c in bench_delay._conditions('pillar_reach', quick=True)]
    assert columns <= figures.keys()
    out = bench_delay._figures(rows, 'pillar_reach', 100, True, '')
    assert keys == out.keys() | {'limit_violations'}
    assert 'seam_jerk' in table('delay', {'table': rows})
