# SPDX-License-Identifier: Apache-2.0
"""The unit of an advantage, and what a few enormous ones may weigh."""

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.base import normalised, root_mean_square  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402


def test_advantages_are_in_units_of_their_root_mean_square_and_not_centred():
    torch.testing.assert_close(
        normalised(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / 12.5**0.5
    )


def test_a_few_enormous_advantages_do_not_outweigh_the_rest():
    """99 of 1 and one of -100: the one is 99 % of the sum of squares."""
    advantages = torch.ones(100)
    advantages[7] = -100.0
    plain, clipped = normalised(advantages), normalised(advantages, clip=3.0)
    assert plain[7].square() / plain.square().sum() > 0.98
    assert clipped[7].square() / clipped.square().sum() < 0.92
    assert clipped[0] > 2.9 * plain[0]
    assert root_mean_square(clipped) == pytest.approx(1)
    assert clipped[7] < 0 and len(clipped[clipped > 0].unique()) == 1


def test_what_is_bounded_are_the_advantages_as_they_came():
    advantages = torch.full((100,), 0.3)
    advantages[3], advantages[60] = -40.0, -30.0
    rms, clip = root_mean_square(advantages), 3.0
    scaled = normalised(advantages, clip)
    assert root_mean_square(scaled) == pytest.approx(1)
    # In the scale that they came in, none counts for more than clip root mean squares ...
    cut = scaled * (0.3 / scaled[0])
    assert float(cut.abs().max()) == pytest.approx(clip * float(rms))
    torch.testing.assert_close(cut, advantages.clamp(-clip * rms, clip * rms))
    # ... but the two are cut to the same, and all are scaled up again: 7, not 3.
    assert scaled[3] == scaled[60]
    assert float(scaled.abs().max()) == pytest.approx(float(clip * rms / root_mean_square(cut)))
    assert 6.9 < float(scaled.abs().max()) < 7.1


def test_advantages_within_the_clip_are_left_as_they_are():
    advantages = torch.tensor([1.0, -1.0, 0.5, -2.0])
    torch.testing.assert_close(normalised(advantages, 3.0), normalised(advantages))


def test_a_clip_below_zero_is_refused():
    with pytest.raises(UserError, match='advantage_clip must be at least 0, got -1'):
        DipodConfig(advantage_clip=-1.0)
