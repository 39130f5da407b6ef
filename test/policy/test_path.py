# SPDX-License-Identifier: Apache-2.0
"""The conditional flow-matching loss against hand computation."""

import math

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.policy.flow import FlowPolicy  # noqa: E402
from dipod_ros.policy.path import (  # noqa: E402
    T_MAX,
    T_MIN,
    PathSamples,
    cfm_loss,
    draw_path_samples,
    many_cfm_losses,
)


class TimesXField(FlowPolicy):
    """v(x, t; o) = t x + o[0], simple enough for pencil and paper."""

    def velocity(self, x, t, observation):
        return t[:, None] * x + observation[:, :1]


def test_the_loss_of_one_sample_by_hand(make_spec):
    """D=2, a=(1, 2), eps=(3, -1), t=0.25, o[0]=0.5.

    x_t = .75 (1, 2) + .25 (3, -1) = (1.5, 1.25);  v = .25 x_t + .5 = (.875, .8125)
    u = eps - a = (2, -3);  v - u = (-1.125, 3.8125);  sum of squares 1.265625 + 14.53515625
    """
    policy = TimesXField(make_spec(size=2, horizon=1))
    observation = torch.tensor([[0.5, 9.0, 9.0, 9.0, 9.0]])
    samples = PathSamples(torch.tensor([[0.25]]), torch.tensor([[[3.0, -1.0]]]))
    ell = cfm_loss(policy, torch.tensor([[1.0, 2.0]]), observation, samples)
    assert ell.shape == (1, 1)
    assert ell.item() == pytest.approx((1.265625 + 14.53515625) / math.sqrt(2))


def test_each_action_meets_its_own_samples_and_observation(make_policy):
    policy = make_policy(size=2, horizon=2)
    generator = torch.Generator().manual_seed(0)
    action = torch.randn(3, 4, generator=generator)
    observation = torch.randn(3, 5, generator=generator)
    samples = draw_path_samples(3, 6, 4, generator)
    ell = cfm_loss(policy, action, observation, samples)
    assert ell.shape == (3, 6)
    for b in range(3):
        for s in range(6):
            t, eps = samples.t[b, s], samples.eps[b, s]
            x_t = (1 - t) * action[b] + t * eps
            v = policy.velocity(x_t[None], t[None], observation[b : b + 1])[0]
            alone = (v - (eps - action[b])).square().sum() / 2.0
            torch.testing.assert_close(ell[b, s], alone)


def test_rows_of_samples_are_taken_together():
    samples = draw_path_samples(5, 2, 3, torch.Generator().manual_seed(0))
    rows = torch.tensor([4, 1])
    taken = samples[rows]
    assert torch.equal(taken.t, samples.t[rows]) and torch.equal(taken.eps, samples.eps[rows])


def test_samples_repeat_with_their_generator_and_cover_the_path():
    first = draw_path_samples(4000, 2, 3, torch.Generator().manual_seed(7))
    again = draw_path_samples(4000, 2, 3, torch.Generator().manual_seed(7))
    other = draw_path_samples(4000, 2, 3, torch.Generator().manual_seed(8))
    assert torch.equal(first.t, again.t) and torch.equal(first.eps, again.eps)
    assert not torch.equal(first.t, other.t)
    assert T_MIN <= first.t.min() < 0.01 and 0.99 < first.t.max() <= T_MAX
    assert first.t.mean().item() == pytest.approx(0.5, abs=0.01)
    assert first.eps.std().item() == pytest.approx(1.0, abs=0.02)
    assert first.eps.shape == (4000, 2, 3)


@pytest.mark.parametrize('batch', [0, 1, 150])
def test_many_losses_are_those_of_one_call(make_policy, batch):
    policy = make_policy(size=2, horizon=2)
    generator = torch.Generator().manual_seed(3)
    action = torch.randn(batch, 4, generator=generator)
    observation = torch.randn(batch, 5, generator=generator)
    samples = draw_path_samples(batch, 64, 4, generator)  # 150 x 64 evaluations take three parts
    with torch.no_grad():
        whole = cfm_loss(policy, action, observation, samples)
    parts = many_cfm_losses(policy, action, observation, samples)
    assert parts.shape == (batch, 64) and not parts.requires_grad
    torch.testing.assert_close(parts, whole)
