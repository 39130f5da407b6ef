# SPDX-License-Identifier: Apache-2.0
"""A policy in the shadow sees with its own eyes: real checkpoints, whatever acts beside it."""

import numpy as np
import pytest
from checkpoints import make_limits, make_policy
from eyes import FINE, SMALL, TOPIC, make_camera_policy, make_camera_spec

from dipod_ros.policy.image import golden_image
from dipod_ros.policy.vision import load_encoder
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import PolicyLoader
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.loop import LoopConfig
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.picture import Picture
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.shadow import Shadow

DT, DT_NS = 0.04, 40_000_000
START = np.array([0.1, 0.2, 0.3])
STEP_RAD = 0.002  # chunks are well within the limits


class Stage:
    """A camera, an arm, a policy that acts in lockstep and one in its shadow."""

    def __init__(self, folder, clock):
        self.loader = PolicyLoader(make_limits(), DT, [folder], EngineFactory('torch'))
        self.clock, self.noise = clock, NoiseSource('gaussian', 7)
        self.shadow = Shadow(
            self.loader.build, make_limits(), DT, self.noise, 0.02, clock, wait=True
        )

    def run(self, acting, shadow, seen=(1, 2, 3), taken=None):
        """Decide once per picture; return the decisions and the shadow's figures.

        taken: also called as the shadow is, before it is shown a decision.
        """
        agent = Agent(self.loader.build(self.loader.validate(acting)), self.noise, 'tester')
        buffer = ObservationBuffer(self.clock)
        loop = LockstepLoop(
            agent,
            buffer,
            SafetyFilter(make_limits(), DT),
            DecisionLog(self.clock),
            Notices(),
            LoopConfig(),
            self.clock,
        )
        self.shadow.want(self.loader.validate(shadow))
        with self.shadow._wake:
            assert self.shadow._wake.wait_for(lambda: self.shadow._policy is not None, 30)
        decided, stamp_ns = [], 0
        for k, seed in enumerate(seen):
            loop.on_outcome(Outcome(stamp_ns, 0 if k else -1, reset=k == 0))
            buffer.put('image', TOPIC, Picture(golden_image(SMALL, seed), 'rgb'), stamp_ns)
            buffer.put('point', 'goal', np.array([0.1, 0.2, 0.3]), stamp_ns)
            buffer.put('joint_velocity', 'joint_states', np.zeros(3), stamp_ns)
            buffer.put('joint_position', 'joint_states', START, stamp_ns)
            assert loop.step() is not None
            if taken is not None:
                taken(buffer, stamp_ns)
            self.shadow.show(loop.decided)
            decided.append(loop.decided)
            stamp_ns += len(loop.decided.sampled.chunk) * DT_NS
        return decided, self.shadow.figures


@pytest.fixture
def stage(tmp_path, clock):
    stage = Stage(tmp_path, clock)
    yield stage
    stage.shadow.close()


def expected_max_rad(policy, decided, seen):
    """Return how far a camera policy is from what was decided, by its own encoder's features."""
    encoder = load_encoder(policy.spec.images[0][0], policy.encoder_weights)
    apart = 0.0
    for one, seed in zip(decided, seen, strict=True):
        base = one.plan.point(one.plan.chunk_start)
        features = encoder.encode(golden_image(SMALL, seed)[None])[0]
        vector = np.concatenate([START, features, base]).astype(np.float32)
        noise = one.sampled.noise[: policy.spec.noise_size]
        chunk = policy.act(vector[None], noise[None])[0]
        apart = max(apart, np.abs(np.cumsum(chunk - one.sampled.chunk, axis=0)).max())
    return apart


@pytest.mark.parametrize('beside', ['a camera policy with another encoder', 'a state policy'])
@pytest.mark.parametrize('image', [SMALL, FINE], ids=['small', 'fine'])
def test_it_looks_through_its_own_encoder(stage, tmp_path, beside, image):
    if beside == 'a state policy':
        make_policy(0, step_rad=STEP_RAD).save(tmp_path / 'acting')
    else:
        make_camera_policy(0, STEP_RAD).save(tmp_path / 'acting')
    policy = make_camera_policy(1, STEP_RAD, make_camera_spec(image=image))
    policy.save(tmp_path / 'shadow')
    decided, figures = stage.run('acting', 'shadow')
    assert (figures.compared, figures.faults, figures.skipped) == (3, 0, 0), figures.fault
    assert figures.max_rad == pytest.approx(expected_max_rad(policy, decided, (1, 2, 3)), rel=1e-5)


def test_the_observation_of_the_acting_policy_stays_its_own(stage, tmp_path):
    acting = make_camera_policy(0, STEP_RAD)
    acting.save(tmp_path / 'acting')
    make_camera_policy(1, STEP_RAD).save(tmp_path / 'shadow')
    decided, _ = stage.run('acting', 'shadow')
    encoder = load_encoder(acting.spec.images[0][0], acting.encoder_weights)
    for one, seed in zip(decided, (1, 2, 3), strict=True):
        features = encoder.encode(golden_image(SMALL, seed)[None])[0]
        np.testing.assert_allclose(one.sampled.observation[3:8], features, atol=1e-5)


def test_beside_itself_it_differs_by_nothing_whatever_comes_meanwhile(stage, tmp_path):
    """It looks at the pictures of the decision, not at newer ones."""
    make_camera_policy(0, STEP_RAD).save(tmp_path / 'acting')

    def taken(buffer, stamp_ns):
        buffer.put('image', TOPIC, Picture(golden_image(SMALL, 99), 'rgb'), stamp_ns + DT_NS)

    _, figures = stage.run('acting', 'acting', taken=taken)
    assert (figures.compared, figures.max_rad) == (3, 0.0)


def test_without_a_picture_there_is_nothing_to_compare(stage, tmp_path):
    make_policy(0, step_rad=STEP_RAD).save(tmp_path / 'acting')
    spec = make_camera_spec(topic='elsewhere/image_raw')
    make_camera_policy(1, STEP_RAD, spec).save(tmp_path / 'shadow')
    _, figures = stage.run('acting', 'shadow')
    assert (figures.compared, figures.faults, figures.skipped) == (0, 0, 3)
