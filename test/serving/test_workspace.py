# SPDX-License-Identifier: Apache-2.0
"""The tool stays in its box, whatever is asked for, and comes back from outside."""

import numpy as np
import pytest
from checkpoints import HORIZON, make_limits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worlds import CHUNK_NS, DT, START, World, answer, assert_legal, assert_smooth, settled

from dipod_ros.errors import UserError
from dipod_ros.serving import safety
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.speed import SpeedConfig
from dipod_ros.serving.workspace import Box, Workspace

LIMITS = make_limits()


class PlanarArm:
    """Three links of 0.4 m, 0.3 m and 0.2 m in the plane; angles add up."""

    lengths = np.array([0.4, 0.3, 0.2])
    reach = np.array([0.9, 0.5, 0.2])

    def __init__(self):
        self.poses = 0

    def __call__(self, q):
        self.poses += len(q)
        angle = np.cumsum(q, axis=1)
        x, y = np.cos(angle) @ self.lengths, np.sin(angle) @ self.lengths
        return np.stack([x, y, np.zeros(len(q))], axis=1)


BOX = Box([-0.2, -0.5, -0.1], [0.8, 0.55, 0.1], margin_m=0.01)


def make_guard(box=BOX, speed=None):
    return safety.SafetyFilter(LIMITS, DT, speed, Workspace(box, PlanarArm(), LIMITS.acceleration))


def depths(points, box=BOX):
    return box.depth(PlanarArm()(np.atleast_2d(points)))


@pytest.mark.parametrize(
    ('lower', 'upper', 'margin', 'text'),
    [
        ([0, 0, 1], [1, 1, 1], 0.0, 'not below'),
        ([0, 0, 0], [1, 1, 0.1], 0.05, 'margin_m'),
        ([0, 0], [1, 1, 1], 0.0, 'three numbers'),
        ([0, 0, 0], [1, np.nan, 1], 0.0, 'workspace.upper'),
        ([0, 0, 0], [1, 1, 1], -0.1, 'negative'),
    ],
)
def test_a_box_that_is_none_is_refused(lower, upper, margin, text):
    with pytest.raises(UserError, match=text):
        Box(lower, upper, margin)


def test_depth_is_the_distance_to_the_nearest_wall():
    box = Box([0, 0, 0], [1, 2, 3], 0.1)
    points = np.array([[0.5, 1.0, 1.5], [0.2, 1.0, 1.5], [0.5, 2.3, 1.5], [-1.0, 1.0, 3.5]])
    np.testing.assert_allclose(box.depth(points), [0.4, 0.1, -0.4, -1.1])


chunks = hnp.arrays(np.float64, (8, 3), elements=st.floats(-2.5, 2.5))


@given(st.lists(chunks, min_size=1, max_size=6), st.integers(1, 12))
def test_from_inside_no_control_point_and_no_stop_ever_leaves(goals, cut):
    """Each chunk is cut off somewhere by the next; an e-stop could come at every point."""
    guard = make_guard()
    position, velocity = np.array([0.1, 1.2, 0.5]), np.zeros(3)
    assert depths(position) > 0
    for goal in goals:
        motion = guard.follow(position, velocity, goal)
        assert_legal(LIMITS, position, velocity, motion.points)
        assert depths(motion.points).min() >= -1e-8
        path = np.concatenate([position[None], motion.points])
        np.testing.assert_allclose(path[-1], path[-2], atol=1e-8)
        speed = np.diff(path, axis=0) / DT
        for k, point in enumerate(motion.points):
            assert depths(guard.brake(point, speed[k]).points).min() >= -1e-8
        n = min(cut, len(motion.points))
        position, velocity = path[n], speed[n - 1]


@given(
    hnp.arrays(np.float64, 3, elements=st.floats(-1.4, 1.4)),
    hnp.arrays(np.float64, (8, 3), elements=st.floats(-0.08, 0.08)),
)
def test_the_shortcuts_change_nothing(position, steps):
    """The longest beginning is that of a check that looks at every stop."""
    guard = make_guard()
    targets = position + np.cumsum(steps, axis=0)
    points = guard._track(position, np.zeros(3), targets)
    guard.workspace._tool.poses = 0
    count = guard.workspace.admissible(position, points, DT, guard._tail)
    before, slow_count = depths(position)[0], 0
    path = np.concatenate([position[None], points])
    for k, point in enumerate(points):
        floor, depth = min(before, 0.0), depths(point)[0]
        stop = guard._tail(point, (path[k + 1] - path[k]) / DT)
        if depth < floor - 1e-12 or depths(stop).min() < floor - 1e-9:
            break
        before, slow_count = depth, k + 1
    assert count == slow_count


def test_far_from_the_walls_one_pose_is_looked_at():
    guard = make_guard()
    position = np.array([0.1, 1.2, 0.5])
    tool = guard.workspace._tool
    motion = guard.follow(position, np.zeros(3), np.tile(position + 0.004, (8, 1)))
    assert not motion.altered and motion.horizon == 8
    assert tool.poses <= 2


def test_a_chunk_that_would_leave_is_cut_counted_and_stops_at_the_wall():
    guard = make_guard()
    position = np.array([0.1, 1.2, 0.5])
    outwards = position + np.cumsum(np.tile([0.02, -0.03, -0.03], (40, 1)), axis=0)
    free = safety.SafetyFilter(LIMITS, DT).follow(position, np.zeros(3), outwards)
    assert depths(free.points).min() < -0.05
    motion = guard.follow(position, np.zeros(3), outwards)
    assert 0 < motion.horizon < 40 and motion.altered
    np.testing.assert_array_equal(motion.points[: motion.horizon], free.points[: motion.horizon])
    assert guard.counts[safety.WORKSPACE] == 1
    # Not timidly: it stands a hand's breadth from the wall at most.
    assert 0 <= depths(motion.points)[-1] < 0.1
    # At rest there, what leads out is refused and what leads back is taken.
    stand = motion.points[-1]
    again = guard.follow(stand, np.zeros(3), stand + 30 * (outwards[:8] - position))
    assert depths(again.points).min() >= 0
    back = guard.follow(stand, np.zeros(3), stand - (outwards[:8] - position))
    assert back.horizon == 8 and not back.altered


def test_from_outside_only_the_way_back_is_open_and_slow():
    speed = SpeedConfig(slow_speed_scale=0.2)
    guard = make_guard(speed=speed)
    position = np.array([0.2, 0.1, 0.0])  # nearly stretched out: x is 0.88
    assert depths(position) < -0.03
    out = guard.follow(position, np.zeros(3), np.tile([0.0, 0.0, 0.0], (8, 1)))
    assert out.horizon == 0
    np.testing.assert_array_equal(out.points, position[None])
    velocity, inside = np.zeros(3), np.array([0.2, 0.8, 0.1])
    for _ in range(40):
        motion = guard.follow(position, velocity, np.tile(inside, (4, 1)))
        path = np.concatenate([position[None], motion.points])
        depth = depths(path)
        if depth[0] < 0:
            assert np.all(np.diff(np.minimum(depth, 0.0)) >= -1e-9)
            speeds = np.abs(np.diff(path, axis=0)) / DT
            assert np.all(speeds <= 0.2 * LIMITS.velocity + 1e-9)
        assert_legal(LIMITS, position, velocity, motion.points)
        assert motion.horizon
        position, velocity = motion.points[3], (motion.points[3] - motion.points[2]) / DT
    np.testing.assert_allclose(position, inside, atol=1e-6)
    assert guard.counts[safety.WORKSPACE] > 1


def test_kinematics_that_fail_are_no_way_out():
    guard = make_guard()
    guard.workspace._tool = lambda q: np.full((len(q), 3), np.nan)
    guard.workspace._tool.reach = PlanarArm.reach
    motion = guard.follow(np.array([0.1, 1.2, 0.5]), np.zeros(3), np.zeros((8, 3)))
    assert motion.horizon == 0


@pytest.fixture
def box_around_start():
    """The base turns the tool of this arm out of the box within a second."""
    tip = PlanarArm()(START[None])[0]
    return Box(tip - 0.15, tip + 0.15, 0.01)


def test_in_lockstep_the_wall_is_no_fault_of_the_world(make_bench, box_around_start):
    bench = make_bench(LockstepLoop)
    bench.safety.workspace = Workspace(box_around_start, PlanarArm(), LIMITS.acceleration)
    bench.engine.chunk = np.full((HORIZON, 3), 0.02)
    points = []
    for k in range(6):
        command = answer(bench, k * CHUNK_NS, episode=0 if k else -1, reset=k == 0)
        points.append(command.plan.motion.points)
    assert depths(np.concatenate(points), box_around_start).min() >= -1e-9
    assert bench.safety.counts[safety.WORKSPACE] >= 4
    assert bench.told == []  # above all not that lockstep_steps is wrong
    records = bench.loop.finished_records()
    assert records[-1].interrupted
    assert np.isnan(records[-1].executed).all()


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
def test_in_real_time_the_arm_stops_at_the_wall_and_goes_on(
    make_bench, box_around_start, interface
):
    bench = make_bench(RealTimeLoop, interface=interface)
    bench.safety.workspace = Workspace(box_around_start, PlanarArm(), LIMITS.acceleration)
    world = settled(World(bench))
    bench.engine.chunk = np.full((HORIZON, 3), 0.02)
    world.run(30)
    assert world.counts(safety.WORKSPACE) >= 1
    plan = world.loop.timeline.plan
    assert depths(plan.motion.points, box_around_start).min() >= -1e-9
    stand = plan.point(10**6)
    bench.engine.chunk = np.full((HORIZON, 3), -0.02)
    world.run(8)
    assert np.all(world.loop.timeline.command(world.loop.tick) < stand - 0.05)
    if interface == 'position':
        assert_smooth(world.setpoints, LIMITS)
        assert depths(np.array(world.setpoints), box_around_start).min() >= -0.005
