# SPDX-License-Identifier: Apache-2.0
"""A flow fitted to its own actions keeps their spread by midpoint, and loses it by Euler."""

import logging

import pytest

torch = pytest.importorskip('torch')

from drift_flows import rng, train  # noqa: E402

from dipod_ros.learning.algorithms.base import Batch, run_epochs  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.algorithms.self_distillation import InterleavedConfig  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

ACTIONS = 512


@pytest.fixture(scope='module')
def flow(make_policy):
    """Return a flow whose actions are N(0.3 o, 0.5^2)."""

    def draw(o, generator):
        return 0.3 * o[:, :1] + 0.5 * torch.randn(len(o), 1, generator=generator)

    return train(make_policy(size=1, width=32), draw, steps=150)


def std_of(policy, generator):
    """Return the std of own actions in one state."""
    o = torch.zeros(4096, policy.spec.observation_size)
    with torch.no_grad():
        return float(policy.sample(o, torch.randn(4096, 1, generator=generator)).std())


def spread_after(flow, sampler, updates=3):
    """Return the std over that at the start after updates with the regulariser alone: A = 0."""
    algorithm = DipodConfig(beta=1.0, epochs=25, minibatches=1, learning_rate=3e-3).build()
    policy = algorithm.start(flow.with_sampler(sampler))
    optimizer = torch.optim.Adam(algorithm.parameters(policy), lr=algorithm.config.learning_rate)
    before = std_of(policy, rng())
    for update in range(updates):
        draws = rng(100 + update)
        o = torch.randn(ACTIONS, policy.spec.observation_size, generator=draws)
        z = torch.randn(ACTIONS, 1, generator=draws)
        with torch.no_grad():
            batch = Batch(o, policy.sample(o, z), z, torch.zeros(ACTIONS), {})
            batch.memory.update(algorithm.remember(policy, batch, draws))
        run_epochs(algorithm, policy, optimizer, batch, draws)
    return std_of(policy, rng()) / before


def test_the_regulariser_keeps_the_spread_by_midpoint_and_loses_it_by_euler(flow):
    """As many evaluations of the network each; at the start Euler's actions have 0.7 of the std."""
    kept = spread_after(flow, SamplerSpec('midpoint', 2))
    lost = spread_after(flow, SamplerSpec('euler', 4))
    assert kept > 0.8
    assert lost < 0.5


WARNED = [
    (DipodConfig(beta=0.1), 'euler-4', True),
    (DipodConfig(beta=0.1), 'euler-10', True),
    (InterleavedConfig(beta=0.1, burst_every=0), 'euler-4', True),
    (DipodConfig(beta=0.0, gap_target=1.0), 'euler-4', True),  # beta adapts: it is above 0
    (DipodConfig(beta=0.1), 'euler-64', False),
    (DipodConfig(beta=0.1), 'midpoint-2', False),
    (DipodConfig(beta=0.0), 'euler-4', False),
    # What is held are the actions of another policy, the same ones in all updates.
    (DipodConfig(beta=0.1, anchor='start'), 'euler-4', False),
]


@pytest.mark.parametrize(('config', 'sampler', 'warned'), WARNED)
def test_a_regulariser_beside_a_sampler_that_narrows_is_warned_of(
    make_policy, caplog, config, sampler, warned
):
    policy = make_policy(sampler=SamplerSpec.parse(sampler))
    with caplog.at_level(logging.WARNING):
        learning = config.build().start(policy)
    assert learning.spec.sampler == policy.spec.sampler
    assert len(caplog.messages) == warned
    for text in caplog.messages:
        assert text.startswith(f'the actions of {sampler} ') and '--sampler midpoint-5' in text
