# SPDX-License-Identifier: Apache-2.0
"""Small policies whose behaviour is known, and rollouts made from them."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from hypothesis import settings  # noqa: E402

from dipod_ros.learning.rollout import Rollout  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.limits import JointLimits  # noqa: E402
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, Stream  # noqa: E402

# The same examples in every run, and no verdict that depends on the machine's speed.
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.load_profile('repeatable')


@pytest.fixture(scope='session')
def make_spec():
    """Return a spec of `size` joints, `horizon` steps and one observed vector."""

    def make(size=2, horizon=1, observed=2, width=32, depth=2, sampler=None):
        joints = tuple(f'j{i}' for i in range(size))
        one = np.ones(size)
        return PolicySpec(
            task='toy',
            robot='toy_arm',
            joints=joints,
            limits=JointLimits(joints, -one, one, one, one),
            streams=(Stream('state', 'vector', observed, 'state'),),
            horizon=horizon,
            control_period_s=0.04,
            network={'kind': 'residual_mlp', 'width': width, 'depth': depth},
            sampler=sampler or SamplerSpec('midpoint', 5),
        )

    return make


@pytest.fixture(scope='session')
def make_policy(make_spec):
    """Return a policy with random weights; its normaliser is the identity."""

    def make(seed=0, **options):
        torch.manual_seed(seed)
        return FlowPolicy(make_spec(**options))

    return make


@pytest.fixture(scope='session')
def linear_flow(make_spec):
    """Return a function: matrix K [D, D] -> policy whose velocity is exactly K x.

    silu(z) - silu(-z) = z makes a one-layer network linear; units that begin without an effect let
    it learn something else. The flow dx/dt = K x takes noise z at t=1 to exp(-K) z at t=0.
    """

    def make(matrix, steps=20, width=64):
        matrix = torch.as_tensor(matrix, dtype=torch.float32)
        dim = len(matrix)
        torch.manual_seed(0)
        spec = make_spec(size=dim, width=width, depth=1, sampler=SamplerSpec('midpoint', steps))
        policy = FlowPolicy(spec)
        with torch.no_grad():
            weight, output = policy.net.input.weight, policy.net.output
            weight[: 2 * dim] = 0
            weight[:dim, :dim] = torch.eye(dim)
            weight[dim : 2 * dim, :dim] = -torch.eye(dim)
            policy.net.input.bias[: 2 * dim] = 0
            output.weight.zero_()
            output.weight[:, :dim] = matrix
            output.weight[:, dim : 2 * dim] = -matrix
            output.bias.zero_()
        return policy

    return make


@pytest.fixture(scope='session')
def make_rollout():
    """Return a function that lets a policy act in episodes of `length` random observations.

    `reward` maps a normalised chunk [M, D] to rewards [M]; every episode ends by itself.
    """

    def make(policy, episodes=32, length=2, seed=0, version=0, reward=None):
        rng = np.random.default_rng(seed)
        count = episodes * length
        spec = policy.spec
        observations = rng.normal(size=(count, spec.observation_size)).astype(np.float32)
        noise = rng.normal(size=(count, spec.noise_size)).astype(np.float32)
        chunks = policy.act(observations, noise)
        last = np.arange(count) % length == length - 1
        flat = chunks.reshape(count, -1)
        rewards = (reward(flat) if reward else (flat[:, 0] > 0)).astype(np.float32)
        return Rollout(
            observations=observations,
            noise=noise,
            chunks=chunks,
            rewards=rewards,
            next_observations=np.roll(observations, -1, axis=0),
            terminated=last,
            last=last,
            version=np.full(count, version, dtype=np.int64),
            success=rewards[last] > 0,
            returns=rewards.reshape(episodes, length).sum(1),
            control_steps=count * spec.horizon,
        )

    return make


@pytest.fixture(scope='session')
def assert_same_weights():
    """Return a function that compares the weights of two policies bit by bit."""

    def check(first, second):
        a, b = first.weights(), second.weights()
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)

    return check


@pytest.fixture
def with_versions():
    """Return a function that marks the decisions of a rollout with policy versions."""
    return lambda rollout, versions: replace(
        rollout, version=np.resize(np.asarray(versions, dtype=np.int64), len(rollout))
    )
