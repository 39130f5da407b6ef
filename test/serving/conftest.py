# SPDX-License-Identifier: Apache-2.0
"""A clock that only moves when told to, and the parts of a server around it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `checkpoints`

import exports  # noqa: E402

from dipod_ros.policy.checkpoint import Manifest  # noqa: E402
from dipod_ros.serving.agent import Agent  # noqa: E402
from dipod_ros.serving.decisions import DecisionLog  # noqa: E402
from dipod_ros.serving.engines.base import EngineInfo  # noqa: E402
from dipod_ros.serving.following import FollowingConfig  # noqa: E402
from dipod_ros.serving.loader import LoadedPolicy  # noqa: E402
from dipod_ros.serving.loop import LoopConfig  # noqa: E402
from dipod_ros.serving.noise import NoiseSource  # noqa: E402
from dipod_ros.serving.notices import Notices  # noqa: E402
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout  # noqa: E402
from dipod_ros.serving.safety import SafetyFilter  # noqa: E402

# The same examples in every run, and no verdict that depends on the machine's speed.
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.load_profile('repeatable')


@pytest.fixture(scope='module', autouse=True)
def _exports_once():
    """Whoever is to export a policy again gets the same bytes; test/policy exports for itself."""
    with exports.once_per_policy():
        yield


class Clock:
    """Steady seconds that a test moves by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class ScriptedEngine:
    """An engine that gives a chunk, calls a function or raises, as a test chooses; it remembers."""

    def __init__(self, chunk):
        self.chunk = chunk
        self.observations, self.noises = [], []
        self.during = lambda: None  # what happens in the world while it thinks

    def run(self, observation, noise):
        self.observations.append(observation)
        self.noises.append(noise)
        self.during()
        if isinstance(self.chunk, Exception):
            raise self.chunk
        if callable(self.chunk):
            return self.chunk(observation, noise)
        return np.asarray(self.chunk, dtype=np.float32)

    def refit(self, weights):
        return self

    def info(self):
        return EngineInfo('scripted', '1', 1, False)


class Bench:
    """One server loop with everything around it, driven step by step."""

    def __init__(self, loop_class, spec, limits, clock, **config):
        self.clock, self.spec, self.limits = clock, spec, limits
        self.engine = ScriptedEngine(np.full((spec.horizon, len(spec.joints)), 0.01))
        self.told = []
        self.safety = SafetyFilter(limits, spec.control_period_s)
        self.buffer = ObservationBuffer(clock)
        self.notices = Notices(lambda problem, text: self.told.append((problem, text)))
        self.agent = Agent(self.policy(self.engine), NoiseSource('gaussian', 7), 'tester')
        self.log = DecisionLog(clock, patience_s=1.0)
        self.loop = loop_class(
            self.agent,
            self.buffer,
            self.safety,
            self.log,
            self.notices,
            # Most of these arms stand wherever they are told to go.
            LoopConfig(**{'following': FollowingConfig(0.0), **config}),
            clock,
        )

    def policy(self, engine, sha='a' * 64):
        manifest = Manifest(self.spec, 'flow', sha)
        return LoadedPolicy(manifest, engine, ObservationLayout(self.spec, self.limits.joints))

    def sense(self, stamp_ns, position, goal=(0.1, 0.2, 0.3)):
        """Store what the subscriptions would store for one instant."""
        position = np.asarray(position, dtype=np.float64)
        if goal is not None:
            self.buffer.put('point', 'goal', np.asarray(goal, dtype=np.float64), stamp_ns)
        self.buffer.put('joint_velocity', 'joint_states', np.zeros_like(position), stamp_ns)
        self.buffer.put('joint_position', 'joint_states', position, stamp_ns)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_bench(clock):
    """Return a function that makes a Bench."""
    from checkpoints import make_limits, make_spec

    def make(loop_class, spec=None, limits=None, **config):
        return Bench(loop_class, spec or make_spec(), limits or make_limits(), clock, **config)

    return make
