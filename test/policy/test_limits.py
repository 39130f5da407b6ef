# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked for, what is commanded stays inside the limits."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits, LimitFilter, spline_setpoints

# Round-off of differences of numbers around 3 rad is 1e-15; this is a thousand times as much.
ROUND_OFF_RAD = 1e-12
NASTY = [np.nan, np.inf, -np.inf, 1e308, -1e308, 1e6, -1e6, 0.0]


def limits_of(lower, span, velocity, acceleration, size):
    full = [np.full(size, v) for v in (lower, lower + span, velocity, acceleration)]
    return JointLimits(tuple(f'j{i}' for i in range(size)), *full)


@st.composite
def runs(draw):
    """Limits, a control period, a start and targets: ordinary, at the limits, or absurd."""
    size = draw(st.integers(1, 3))
    limits = limits_of(
        lower=draw(st.floats(-3.1, 1.0)),
        span=draw(st.sampled_from([1e-3, 0.1, 1.0, 6.0])),
        velocity=draw(st.sampled_from([1e-2, 0.5, 2.0, 20.0])),
        acceleration=draw(st.sampled_from([1e-2, 1.0, 10.0, 500.0])),
        size=size,
    )
    dt = draw(st.sampled_from([0.004, 0.04, 0.25]))
    edges = [float(limits.lower[0]), float(limits.upper[0])]
    element = st.one_of(
        st.floats(edges[0], edges[1]),
        st.sampled_from(edges + NASTY),
        st.floats(-10, 10),
    )
    targets = draw(hnp.arrays(np.float64, (draw(st.integers(1, 40)), size), elements=element))
    start = draw(hnp.arrays(np.float64, size, elements=st.floats(-4, 4)))
    return limits, dt, start, targets


def run_filter(limits, dt, start, targets):
    """Return control points [T + 2, A], the first two at rest."""
    limiter = LimitFilter(limits, dt)
    limiter.reset(start)
    points = [limiter.position.copy(), limiter.position.copy()]
    points += [limiter.step(t) for t in targets]
    return np.array(points)


def assert_inside(points, limits, dt):
    """Check a series [T, A] sampled every `dt` against all limits, by finite differences."""
    assert np.all(np.isfinite(points))
    assert np.all(points >= limits.lower - ROUND_OFF_RAD)
    assert np.all(points <= limits.upper + ROUND_OFF_RAD)
    first, second = np.diff(points, axis=0), np.diff(points, n=2, axis=0)
    assert np.all(np.abs(first) <= limits.velocity * dt + ROUND_OFF_RAD)
    assert np.all(np.abs(second) <= limits.acceleration * dt**2 + ROUND_OFF_RAD)


@settings(max_examples=150)
@given(runs())
def test_control_points_stay_inside_every_limit(run):
    limits, dt, start, targets = run
    points = run_filter(limits, dt, start, targets)
    assert_inside(points, limits, dt)
    # Of positions not even round-off is over: drivers compare them.
    assert np.all(points >= limits.lower) and np.all(points <= limits.upper)


@settings(max_examples=100)
@given(runs(), st.integers(1, 4), st.integers(2, 9))
def test_setpoints_between_control_points_and_across_chunks_stay_inside(run, horizon, substeps):
    limits, dt, start, targets = run
    points = run_filter(limits, dt, start, targets)
    previous, setpoints = points[:2], [points[1:2]]
    for begin in range(2, len(points), horizon):
        chunk = points[begin : begin + horizon]
        setpoints.append(spline_setpoints(previous, chunk, substeps))
        previous = np.concatenate([previous, chunk])[-2:]
    assert_inside(np.concatenate(setpoints), limits, dt / substeps)


@pytest.mark.parametrize('substeps', [1, 8])
@pytest.mark.parametrize('acceleration', [0.5, 6.0, 400.0])
def test_bang_bang_towards_the_limits_never_crosses_them(make_limits, acceleration, substeps):
    """The worst driver: flat out towards a limit, turning at every possible phase."""
    limits = make_limits(1, acceleration=acceleration)
    dt = 0.04
    for period in range(1, 60):
        side = (np.arange(240) // period) % 2
        targets = np.where(side == 0, limits.upper[0], limits.lower[0])[:, None]
        points = run_filter(limits, dt, np.array([0.4]), targets)
        assert_inside(spline_setpoints(points[:2], points[2:], substeps), limits, dt / substeps)


def test_a_limit_is_reached_and_not_merely_avoided(make_limits):
    limits = make_limits(1)
    points = run_filter(limits, 0.04, np.zeros(1), np.full((120, 1), 99.0))
    assert points[-1] == pytest.approx(limits.upper, abs=1e-6)
    # Nor timidly: the top speed is used on the way.
    assert np.diff(points, axis=0).max() == pytest.approx(limits.velocity[0] * 0.04, rel=1e-9)


def test_a_reachable_target_is_reached_exactly(make_limits):
    limits = make_limits(2)
    goal = np.array([0.31, -1.7])
    points = run_filter(limits, 0.04, np.zeros(2), np.tile(goal, (200, 1)))
    np.testing.assert_allclose(points[-1], goal, atol=1e-9)


@settings(max_examples=50)
@given(runs())
def test_what_is_inside_the_limits_passes_unchanged(run):
    limits, dt, start, targets = run
    points = run_filter(limits, dt, start, targets)[2:]
    limiter = LimitFilter(limits, dt)
    limiter.reset(start)
    for point in points:
        np.testing.assert_allclose(limiter.step(point), point, atol=ROUND_OFF_RAD)
        assert limiter.last_clamp <= ROUND_OFF_RAD


@settings(max_examples=60)
@given(runs())
def test_braking_comes_to_rest_at_the_acceleration_limit(run):
    limits, dt, start, targets = run
    limiter = LimitFilter(limits, dt)
    limiter.reset(start)
    points = [limiter.step(t) for t in targets]
    # |v| / (a dt) periods, rounded up, and one for the last fraction.
    periods = int(np.ceil(np.max(np.abs(limiter.velocity) / (limits.acceleration * dt)))) + 1
    speeds = [np.abs(limiter.velocity)]
    for _ in range(min(periods, 3000)):
        points.append(limiter.brake())
        speeds.append(np.abs(limiter.velocity))
    assert limiter.at_rest()
    assert np.all(np.diff(speeds, axis=0) <= ROUND_OFF_RAD / dt)
    assert_inside(np.array(points), limits, dt)


@st.composite
def pieces(draw):
    """Targets that take turns at being reachable, out of reach, at rest and no number at all."""
    limits, dt, start, targets = draw(runs())
    size = len(limits.joints)
    free = LimitFilter(limits, dt)
    free.reset(start)
    parts = []
    for kind in draw(st.lists(st.sampled_from(['free', 'any', 'rest', 'edge']), max_size=5)):
        if kind == 'any':
            parts.append(targets[: draw(st.integers(0, 12))])
            continue
        if kind == 'edge':
            parts.append(np.tile(limits.upper, (draw(st.integers(1, 9)), 1)))
            continue
        before = free.position.copy()
        speed = draw(hnp.arrays(np.float64, size, elements=st.floats(-1, 1)))
        speed = 0.0 if kind == 'rest' else speed * limits.velocity
        steps = np.arange(1, draw(st.integers(1, 16)) + 1)[:, None]
        # What came out of a filter goes through one unchanged, but for round-off.
        parts.append(np.array([free.step(before + k * speed * dt) for k in steps]))
    targets = np.concatenate([np.zeros((0, size)), *parts])
    return limits, dt, start, targets


@settings(max_examples=300)
@given(pieces(), st.lists(st.integers(0, 40), max_size=3), st.booleans())
def test_tracking_many_targets_is_stepping_through_them_to_the_last_bit(run, cuts, scaled):
    """The cuts are seams: the next call begins in motion."""
    limits, dt, start, targets = run
    stepped, tracked = LimitFilter(limits, dt), LimitFilter(limits, dt)
    stepped.reset(start)
    tracked.reset(start)
    scale = np.linspace(0.05, 1.0, len(targets)) if scaled else None
    scales = [None] * len(targets) if scale is None else scale
    one_by_one = [stepped.step(t, s) for t, s in zip(targets, scales, strict=True)]
    edges = [0, *sorted(min(c, len(targets)) for c in cuts), len(targets)]
    together = [
        tracked.track(targets[a:b], None if scale is None else scale[a:b])
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    if one_by_one:
        np.testing.assert_array_equal(np.concatenate(together), one_by_one)
    for name in ('position', 'velocity', 'last_clamp'):
        np.testing.assert_array_equal(getattr(tracked, name), getattr(stepped, name))


def test_targets_within_reach_come_out_as_they_are(make_limits):
    limits = make_limits(2)
    limiter = LimitFilter(limits, 0.04)
    limiter.reset(np.zeros(2))
    targets = run_filter(limits, 0.04, np.zeros(2), np.full((12, 2), 0.5))[2:]
    np.testing.assert_allclose(limiter.track(targets * 0.9), targets * 0.9, atol=ROUND_OFF_RAD)


@settings(max_examples=150)
@given(runs(), st.lists(st.sampled_from([0.02, 0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=40))
def test_whatever_the_speed_scale_does_every_limit_holds(run, scales):
    """The scale jumps at any speed: down to a limit that the arm is far above, and up again."""
    limits, dt, start, targets = run
    limiter = LimitFilter(limits, dt)
    limiter.reset(start)
    points = [limiter.position.copy()] * 2
    for k, target in enumerate(targets):
        speed, scale = np.abs(limiter.velocity), scales[k % len(scales)]
        points.append(limiter.step(target, scale))
        slowed = np.maximum(scale * limits.velocity, speed - limits.acceleration * dt)
        assert np.all(np.abs(limiter.velocity) <= slowed + ROUND_OFF_RAD / dt)
    assert_inside(np.array(points), limits, dt)


def test_moving_is_not_at_rest(make_limits):
    limiter = LimitFilter(make_limits(2), 0.04)
    limiter.reset(np.zeros((3, 2)))
    targets = np.zeros((3, 2))
    targets[1, 0] = 1.0
    limiter.step(targets)
    assert limiter.at_rest().tolist() == [True, False, True]


def test_a_joint_without_a_number_brakes_and_the_others_go_on(make_limits):
    limiter = LimitFilter(make_limits(2), 0.04)
    limiter.reset(np.zeros(2))
    for _ in range(5):
        limiter.step(np.array([1.0, 1.0]))
    speed = limiter.velocity.copy()
    limiter.step(np.array([np.nan, 1.0]))
    assert limiter.velocity[0] == pytest.approx(speed[0] - 6.0 * 0.04)
    assert limiter.velocity[1] >= speed[1] - 1e-9
    assert limiter.last_clamp == np.inf


@pytest.mark.parametrize('target', NASTY)
def test_absurd_targets_are_no_reason_to_warn(make_limits, target):
    limiter = LimitFilter(make_limits(2), 0.04)
    limiter.reset(np.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        limiter.step(np.full(2, target))


def test_last_clamp_is_the_distance_between_asked_and_commanded(make_limits):
    limiter = LimitFilter(make_limits(2), 0.04)
    limiter.reset(np.zeros((2, 2)))
    # From rest one period reaches a dt^2 = 6 * 0.0016 = 0.0096 rad.
    targets = np.array([[0.5, -0.001], [0.004, 0.0096]])
    limiter.step(targets)
    np.testing.assert_allclose(limiter.last_clamp, [0.5 - 0.0096, 0.0], atol=1e-12)


def test_a_batch_does_exactly_what_single_filters_do(make_limits):
    limits, rng = make_limits(3), np.random.default_rng(1)
    starts = rng.uniform(-2, 1.5, (4, 5, 3))
    targets = rng.normal(0, 3, (30, 4, 5, 3))
    targets[rng.random(targets.shape) < 0.05] = np.nan
    batch = LimitFilter(limits, 0.04)
    batch.reset(starts)
    together = np.array([batch.step(t) for t in targets])
    for i in range(4):
        for j in range(5):
            alone = run_filter(limits, 0.04, starts[i, j], targets[:, i, j])[2:]
            np.testing.assert_array_equal(together[:, i, j], alone)


def test_a_masked_reset_restarts_the_marked_arms_alone(make_limits):
    limiter = LimitFilter(make_limits(2), 0.04)
    limiter.reset(np.zeros((3, 2)))
    for _ in range(4):
        limiter.step(np.ones((3, 2)))
    position, velocity = limiter.position.copy(), limiter.velocity.copy()
    limiter.reset(np.full((3, 2), 0.7), mask=np.array([False, True, False]))
    np.testing.assert_array_equal(limiter.position[1], 0.7)
    np.testing.assert_array_equal(limiter.velocity[1], 0)
    np.testing.assert_array_equal(limiter.position[[0, 2]], position[[0, 2]])
    np.testing.assert_array_equal(limiter.velocity[[0, 2]], velocity[[0, 2]])
    assert limiter.last_clamp[1] == 0 and limiter.last_clamp[0] > 0


def test_a_start_outside_the_position_limits_is_clipped(make_limits):
    limiter = LimitFilter(make_limits(1), 0.04)
    limiter.reset(np.array([9.0]))
    assert limiter.position == 1.5


def test_a_start_that_is_not_a_number_is_refused(make_limits):
    limiter = LimitFilter(make_limits(2), 0.04)
    with pytest.raises(UserError, match='finite'):
        limiter.reset(np.array([0.0, np.nan]))


def test_a_masked_out_start_may_be_anything(make_limits):
    limiter = LimitFilter(make_limits(1), 0.04)
    limiter.reset(np.zeros((2, 1)))
    limiter.reset(np.array([[np.nan], [0.5]]), mask=np.array([False, True]))
    np.testing.assert_array_equal(limiter.position, [[0.0], [0.5]])


def test_a_copy_plans_ahead_without_moving_the_original(make_limits):
    limiter = LimitFilter(make_limits(2), 0.04)
    limiter.reset(np.zeros(2))
    limiter.step(np.ones(2))
    ahead = limiter.copy()
    assert ahead.last_clamp == limiter.last_clamp > 0
    before = limiter.position.copy(), limiter.velocity.copy(), limiter.last_clamp.copy()
    first = ahead.step(np.ones(2))
    ahead.brake()
    for now, then in zip(
        (limiter.position, limiter.velocity, limiter.last_clamp), before, strict=True
    ):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(limiter.step(np.ones(2)), first)


def test_returned_points_are_not_the_filters_own_memory(make_limits):
    limiter = LimitFilter(make_limits(1), 0.04)
    limiter.reset(np.zeros(1))
    limiter.step(np.ones(1))[:] = 99.0
    assert limiter.position[0] < 1.0


BLOCK = {
    'position_lower': [-1.0, -2.0],
    'position_upper': [1.0, 2.0],
    'velocity': [1.0, 1.0],
    'acceleration': [5.0, 5.0],
}


def test_limits_survive_the_way_through_a_robot_file():
    limits = JointLimits.from_params(('a', 'b'), BLOCK)
    assert limits.to_params() == BLOCK
    assert limits.upper.dtype == np.float64


@pytest.mark.parametrize('key', sorted(BLOCK))
@pytest.mark.parametrize('value', [None, [], 'absent'])
def test_a_missing_limit_is_named(key, value):
    block = {k: v for k, v in BLOCK.items() if k != key}
    if value != 'absent':
        block[key] = value
    with pytest.raises(UserError, match=f'limits.{key}'):
        JointLimits.from_params(('a', 'b'), block)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('velocity', [1.0, 0.0]),
        ('velocity', [1.0, -1.0]),
        ('acceleration', [0.0, 5.0]),
        ('acceleration', [5.0, np.inf]),
        ('velocity', [np.nan, 1.0]),
        ('position_lower', [1.0, -2.0]),
        ('position_lower', [3.0, -2.0]),
        ('position_upper', [np.inf, 2.0]),
        ('velocity', [1.0]),
        ('velocity', [1.0, 1.0, 1.0]),
        ('velocity', 1.0),
        ('velocity', ['fast', 'faster']),
        ('velocity', 'ab'),
        ('velocity', [[1.0], [1.0, 2.0]]),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_in_one_line(key, value):
    with pytest.raises(UserError) as error:
        JointLimits.from_params(('a', 'b'), BLOCK | {key: value})
    message = str(error.value)
    assert '\n' not in message
    assert key.removeprefix('position_') in message


def test_a_joint_that_is_named_twice_is_refused_by_name():
    with pytest.raises(UserError, match=r"distinct, \['a'\] named more than once"):
        JointLimits.from_params(('a', 'a'), BLOCK)


def test_no_joints_is_no_robot():
    with pytest.raises(UserError, match='joints'):
        JointLimits.from_params((), BLOCK)


@pytest.mark.parametrize('dt', [0.0, -0.04, np.nan])
def test_a_control_period_must_be_positive(make_limits, dt):
    with pytest.raises(UserError, match='control_period_s'):
        LimitFilter(make_limits(), dt)
