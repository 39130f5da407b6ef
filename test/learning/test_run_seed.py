# SPDX-License-Identifier: Apache-2.0
"""A run without a seed of its own draws one, and goes on with it."""

import torch

from dipod_ros.learning.run_folder import STATE
from dipod_ros.learning.run_seed import seed_of_run
from dipod_ros.learning.state_io import save_state


def test_a_given_seed_is_taken_whatever_the_run_has(tmp_path):
    save_state(tmp_path / STATE, {'w': torch.zeros(1)}, {'seed': 7})
    assert seed_of_run(tmp_path, 0) == 0 and seed_of_run(tmp_path, 3) == 3


def test_a_new_run_draws_one_and_an_old_one_keeps_its_own(tmp_path):
    drawn = {seed_of_run(tmp_path, -1) for _ in range(8)}
    assert len(drawn) == 8 and min(drawn) >= 0
    save_state(tmp_path / STATE, {'w': torch.zeros(1)}, {'seed': 7})
    assert seed_of_run(tmp_path, -1) == 7


def test_a_run_whose_seed_is_none_that_can_be_given_draws_one(tmp_path):
    save_state(tmp_path / STATE, {'w': torch.zeros(1)}, {'seed': -1})
    assert seed_of_run(tmp_path, -1) >= 0
