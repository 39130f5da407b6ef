# SPDX-License-Identifier: Apache-2.0
"""Small specs and policies, so that a test says only what it is about."""

import numpy as np
import pytest
from hypothesis import settings

from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, Stream

# The same examples in every run, and no verdict that depends on the machine's speed.
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.load_profile('repeatable')

TINY = {'kind': 'residual_mlp', 'width': 16, 'depth': 2}


@pytest.fixture(scope='session')
def make_limits():
    """Return limits of `size` joints named j0, j1, ..."""

    def make(size=2, lower=-2.0, upper=1.5, velocity=1.2, acceleration=6.0):
        full = [np.full(size, v) for v in (lower, upper, velocity, acceleration)]
        return JointLimits(tuple(f'j{i}' for i in range(size)), *full)

    return make


@pytest.fixture(scope='session')
def make_spec(make_limits):
    """Return a spec of `size` joints that sees joint positions and a goal."""

    def make(size=2, horizon=3, sampler=None, network=TINY, **changes):
        limits = make_limits(size)
        values = {
            'task': 'toy',
            'robot': 'toy_arm',
            'joints': limits.joints,
            'limits': limits,
            'streams': (
                Stream('position', 'joint_position', size, 'joint_states'),
                Stream('goal', 'point', 3, 'goal'),
            ),
            'horizon': horizon,
            'control_period_s': 0.04,
            'network': network,
            'sampler': sampler or SamplerSpec(),
        }
        return PolicySpec(**(values | changes))

    return make


@pytest.fixture(scope='session')
def make_policy(make_spec):
    """Return a policy with random weights and a normaliser that is not the identity."""
    torch = pytest.importorskip('torch')
    from dipod_ros.policy.flow import FlowPolicy

    def make(seed=0, spec=None, **options):
        torch.manual_seed(seed)
        policy = FlowPolicy(spec or make_spec(**options))
        rng = np.random.default_rng(seed)
        size = policy.spec.observation_size, policy.spec.action_size
        policy.normalizer.fit(
            rng.normal(0.3, 0.7, (50, size[0])), rng.normal(-0.01, 0.05, (50, size[1]))
        )
        return policy

    return make
