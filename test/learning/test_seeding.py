# SPDX-License-Identifier: Apache-2.0
"""Generators depend on their keys alone."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.learning.seeding import numpy_rng, torch_rng  # noqa: E402

KEYS = [(0,), (1,), (-1,), (0, 'rollout', 0), (0, 'rollout', 1), (0, 'update', 1)]


@pytest.mark.parametrize('draw', [
    lambda *k: numpy_rng(*k).integers(2**62),
    lambda *k: int(torch.randint(2**62, (1,), generator=torch_rng(*k))),
])  # fmt: skip
def test_equal_keys_draw_equal_numbers_and_different_keys_different_ones(draw):
    first = [draw(*k) for k in KEYS]
    torch.manual_seed(1)
    np.random.seed(1)
    assert [draw(*k) for k in KEYS] == first
    assert len(set(first)) == len(KEYS)


def test_numbers_are_the_same_on_every_machine():
    """A resumed run may continue elsewhere."""
    assert numpy_rng(0, 'rollout', 12).integers(1000, size=3).tolist() == [162, 618, 170]
    assert torch_rng(0, 'rollout', 12).initial_seed() == 2116741039017210906
