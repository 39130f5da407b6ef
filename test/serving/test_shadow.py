# SPDX-License-Identifier: Apache-2.0
"""The shadow sees what the acting policy saw, says how far apart they are, and delays nobody."""

import threading

import numpy as np
import pytest
from checkpoints import HORIZON, JOINTS, make_limits, make_spec

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.policy.spec import SamplerSpec
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.observation import ObservationLayout
from dipod_ros.serving.shadow import BUILDING, FAILED, OFF, RUNNING, Shadow

CHUNK_NS = HORIZON * 40_000_000
START = np.array([0.1, 0.2, 0.3])
SMALL = np.full((HORIZON, 3), 0.01, np.float32)


class Stage:
    """A lockstep loop with a shadow that is shown each of its decisions."""

    def __init__(self, bench, wait=True):
        self.bench = bench
        self.policy = None
        self.built = threading.Event()
        self.changes = 0
        self.changed = threading.Condition()
        self.shadow = Shadow(
            self.build,
            bench.limits,
            bench.spec.control_period_s,
            bench.agent.noise,
            0.02,
            bench.clock,
            self.on_change,
            wait,
        )
        self.stamp_ns = 0

    def candidate(self, chunk, spec=None):
        """Return a policy that gives this chunk, and its engine."""
        spec = spec or self.bench.spec
        engine = type(self.bench.engine)(chunk)
        layout = ObservationLayout(spec, self.bench.limits.joints)
        return LoadedPolicy(Manifest(spec, 'flow', 'c' * 64), engine, layout), engine

    def build(self, manifest):
        if isinstance(self.policy, Exception):
            raise self.policy
        return self.policy

    def on_change(self):
        with self.changed:
            self.changes += 1
            self.changed.notify_all()

    def run(self, policy):
        self.policy = policy
        self.shadow.want(Manifest(make_spec(), 'flow', 'c' * 64))
        self.wait(lambda: self.shadow.state in (RUNNING, FAILED))

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 10)

    def decide(self, count=1):
        for _ in range(count):
            first = self.stamp_ns == 0
            outcome = Outcome(self.stamp_ns, -1 if first else 0, reset=first)
            self.bench.loop.on_outcome(outcome)
            self.bench.sense(self.stamp_ns, START)
            assert self.bench.loop.step() is not None
            self.shadow.show(self.bench.loop.decided)
            self.stamp_ns += CHUNK_NS
        return self.shadow.figures


@pytest.fixture
def make_stage(make_bench):
    stages = []

    def make(**more):
        stages.append(Stage(make_bench(LockstepLoop), **more))
        return stages[-1]

    yield make
    for stage in stages:
        stage.shadow.close()


@pytest.fixture
def stage(make_stage):
    return make_stage()


def test_it_sees_the_same_observation_and_noise_and_says_how_far_apart_they_are(stage):
    policy, engine = stage.candidate(SMALL + np.float32([0.0, 0.001, -0.002]))
    stage.run(policy)
    figures = stage.decide(3)
    np.testing.assert_array_equal(engine.observations, stage.bench.engine.observations)
    np.testing.assert_array_equal(engine.noises, stage.bench.engine.noises)
    steps = np.arange(1, HORIZON + 1)
    assert figures.compared == 3 and figures.dropped == figures.skipped == figures.faults == 0
    assert figures.max_rad == pytest.approx(0.002 * HORIZON, rel=1e-4)
    expected = np.sqrt(np.mean((steps[:, None] * [0.0, 0.001, 0.002]) ** 2))
    assert figures.rms_rad == pytest.approx(expected, rel=1e-4)
    assert figures.last.number == 2 and figures.last.max_rad == figures.max_rad


def test_a_policy_beside_itself_differs_by_nothing(stage):
    stage.run(stage.bench.agent.policy)
    figures = stage.decide(2)
    assert (figures.compared, figures.max_rad, figures.rms_rad) == (2, 0.0, 0.0)


def test_it_says_what_the_limits_would_have_moved_and_moves_nothing(make_stage):
    stage, alone = make_stage(), make_stage()
    alone.decide(4)
    policy, _ = stage.candidate(np.full((HORIZON, 3), 0.5))
    stage.run(policy)
    figures = stage.decide(4)
    assert stage.bench.safety.counts == alone.bench.safety.counts
    np.testing.assert_array_equal(
        stage.bench.loop.decided.plan.motion.points, alone.bench.loop.decided.plan.motion.points
    )
    assert figures.clamp_share == 1.0 and figures.active_clamp_share == 0.0
    # What the acting filter would have reported for this chunk from the same state.
    plan = stage.bench.loop.decided.plan
    targets = plan.previous + np.cumsum(np.full((HORIZON, 3), 0.5), axis=0)
    velocity = plan.velocity(plan.start, 0.04)
    motion = stage.bench.safety.follow(plan.previous, velocity, targets)
    assert figures.last.clamp_rad == pytest.approx(motion.clamp_rad)


def test_joints_in_another_order_are_compared_in_the_robots(stage):
    turned = JOINTS[::-1]
    spec = make_spec(joints=turned, limits=make_limits(turned))
    policy, engine = stage.candidate((SMALL * np.float32([1, 2, 3]))[:, ::-1], spec)
    stage.bench.engine.chunk = SMALL * np.float32([1, 2, 3])
    stage.run(policy)
    figures = stage.decide(2)
    assert figures.compared == 2 and figures.max_rad == pytest.approx(0.0, abs=1e-7)
    seen, acting = engine.observations[1], stage.bench.engine.observations[1]
    np.testing.assert_array_equal(seen[:3], acting[:3][::-1])
    np.testing.assert_array_equal(seen[6:9], acting[6:9][::-1])  # the command


def test_a_sampler_with_more_noise_begins_with_the_same(stage):
    spec = make_spec(sampler=SamplerSpec('sde', 4))
    assert spec.noise_size > stage.bench.spec.noise_size
    policy, engine = stage.candidate(SMALL, spec)
    stage.run(policy)
    stage.decide(2)
    for own, acting in zip(engine.noises, stage.bench.engine.noises, strict=True):
        assert own.shape == (spec.noise_size,)
        np.testing.assert_array_equal(own[: len(acting)], acting)
        assert np.std(own[len(acting) :]) > 0.5


def test_noise_of_another_size_shares_its_beginning():
    source = NoiseSource('gaussian', 3)
    for small, large in ((1, 7), (18, 90), (35, 70)):
        np.testing.assert_array_equal(source.sample(5, small), source.sample(5, large)[:small])


def test_a_longer_chunk_is_compared_as_far_as_both_go(stage):
    spec = make_spec(horizon=2 * HORIZON)
    policy, _ = stage.candidate(np.concatenate([SMALL, SMALL + 1]), spec)
    stage.run(policy)
    assert stage.decide().max_rad == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ('chunk', 'says'),
    [(np.full((HORIZON, 3), np.nan), 'not finite'), (RuntimeError('no memory'), 'no memory')],
)
def test_its_faults_are_counted_and_stay_its_own(stage, chunk, says):
    stage.run(stage.candidate(chunk)[0])
    figures = stage.decide(2)
    assert (figures.faults, figures.compared) == (2, 0) and says in figures.fault
    assert stage.bench.agent.number == 2


def test_what_the_acting_policy_failed_at_is_not_compared(stage):
    stage.run(stage.candidate(SMALL)[0])
    stage.decide()
    stage.bench.engine.chunk = np.full((HORIZON, 3), np.nan)
    figures = stage.decide()
    stage.bench.engine.chunk = SMALL
    figures = stage.decide()
    assert (figures.compared, figures.skipped, figures.faults) == (2, 1, 0)


def test_a_stream_that_is_not_there_is_no_comparison(stage):
    from dipod_ros.policy.spec import Stream

    spec = make_spec(streams=(*make_spec().streams, Stream('depth', 'vector', 2, 'depth')))
    stage.run(stage.candidate(SMALL, spec)[0])
    stage.decide()
    stage.bench.buffer.put('vector', 'depth', np.zeros(2), 0)
    figures = stage.decide()
    assert (figures.compared, figures.skipped) == (1, 1)


def test_a_slow_one_falls_behind_and_nobody_waits_for_it(make_stage):
    stage = make_stage(wait=False)
    begun, let = threading.Event(), threading.Event()
    policy, engine = stage.candidate(SMALL)
    engine.during = lambda: (begun.set(), let.wait(10))
    stage.run(policy)
    stage.decide()
    assert begun.wait(10)
    stage.decide(5)  # none of these waits: the shadow is still at the first
    let.set()
    stage.wait(lambda: stage.shadow.figures.compared == 2)
    assert stage.shadow.figures.dropped == 4
    assert stage.shadow.figures.last.number == 5


def test_another_acting_policy_is_another_comparison(stage):
    stage.run(stage.candidate(SMALL)[0])
    stage.decide(3)
    stage.bench.agent.policy = stage.bench.policy(stage.candidate(SMALL)[1], 'b' * 64)
    assert stage.decide().compared == 1


def test_a_build_that_fails_says_why(stage):
    stage.run(UserError('golden check failed'))
    assert stage.shadow.state == FAILED and 'golden' in stage.shadow.error
    assert stage.decide().compared == 0
    stage.run(stage.candidate(SMALL)[0])
    assert stage.shadow.error == '' and stage.decide().compared == 1


def test_ending_it_ends_it(stage):
    policy, engine = stage.candidate(SMALL)
    stage.run(policy)
    stage.decide()
    stage.shadow.want(None)
    assert stage.shadow.state == OFF
    stage.decide(2)
    assert len(engine.observations) == 1
    stage.shadow.close()
    stage.shadow.want(Manifest(make_spec(), 'flow', 'd' * 64))
    assert stage.shadow.state != BUILDING
    assert stage.shadow._thread not in threading.enumerate()
