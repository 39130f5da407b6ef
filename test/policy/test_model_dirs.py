# SPDX-License-Identifier: Apache-2.0
"""A parameter names the folders that checkpoints may come from, never all there are."""

from pathlib import Path

import pytest

from dipod_ros.errors import UserError
from dipod_ros.policy.model_dirs import folders_of


def test_folders_may_be_relative_and_of_a_home(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert folders_of(('runs', '.', '~/models', '/srv/a')) == [
        Path('runs'), Path(), tmp_path / 'models', Path('/srv/a'),
    ]  # fmt: skip
    assert folders_of(()) == []


@pytest.mark.parametrize('name', ['', '  ', '\t'])
def test_an_empty_name_is_refused(name):
    with pytest.raises(UserError, match='model_dirs holds an empty name'):
        folders_of(('runs', name))


@pytest.mark.parametrize('name', ['/', '//', '/usr/..', '../' * 60])
def test_everything_there_is_is_refused(name):
    with pytest.raises(UserError, match='everything on this machine'):
        folders_of((name,))


@pytest.mark.parametrize('name', ['~nobody_of_this_name/models', 'a\0b'])
def test_what_can_be_no_folder_is_the_users_mistake(name):
    with pytest.raises(UserError, match='names no folder'):
        folders_of((name,))
