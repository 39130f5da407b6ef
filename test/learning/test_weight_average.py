# SPDX-License-Identifier: Apache-2.0
"""The running average of the weights over an update: what it is, and when there is none."""

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.base import Batch, run_epochs  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402

DECAY, EPOCHS, MINIBATCHES = 0.8, 3, 2


@pytest.fixture
def updated(make_policy):
    """Return a function: ema -> (weights after each gradient step, weights after the update)."""

    def run(ema):
        algorithm = DipodConfig(
            epochs=EPOCHS, minibatches=MINIBATCHES, samples_per_action=4, ema=ema
        ).build()
        policy = algorithm.start(make_policy())
        parameters = algorithm.parameters(policy)
        rng = torch.Generator().manual_seed(1)
        normal = [torch.randn(12, 2, generator=rng) for _ in range(3)]
        batch = Batch(*normal, torch.randn(12, generator=rng), {})
        batch = Batch(*normal, batch.advantages, algorithm.remember(policy.clone(), batch, rng))
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        seen = [[p.detach().clone() for p in parameters]]
        optimizer.register_step_post_hook(
            lambda *_: seen.append([p.detach().clone() for p in parameters])
        )
        run_epochs(algorithm, policy, optimizer, batch, torch.Generator().manual_seed(2))
        return seen, parameters

    return run


def test_the_policy_is_the_average_of_the_weights_on_the_way(updated):
    seen, after = updated(DECAY)
    assert len(seen) == 1 + EPOCHS * MINIBATCHES
    for index, parameter in enumerate(after):
        expected = seen[0][index].clone()
        for weights in seen[1:]:
            expected = DECAY * expected + (1 - DECAY) * weights[index]
        torch.testing.assert_close(parameter.detach(), expected)
    assert any(not torch.equal(a.detach(), b) for a, b in zip(after, seen[-1], strict=True))


def test_without_it_the_policy_is_where_the_last_step_ended(updated):
    seen, after = updated(0.0)
    assert all(torch.equal(a.detach(), b) for a, b in zip(after, seen[-1], strict=True))
    # The gradient steps of an update are the same ones; only what is kept of them differs.
    averaged, _ = updated(DECAY)
    assert all(torch.equal(a, b) for a, b in zip(seen[-1], averaged[-1], strict=True))


@pytest.mark.parametrize('ema', [-0.1, 1.0, float('nan')])
def test_an_impossible_average_is_refused(ema):
    with pytest.raises(UserError, match='ema must be at least 0 and below 1'):
        DipodConfig(ema=ema)
