# SPDX-License-Identifier: Apache-2.0
"""What is said of the program behind a result: its commit in a checkout, else its version."""

import shutil
import subprocess
from pathlib import Path

import pytest

import dipod_ros
from dipod_ros.learning.bench.program import program

SOURCE = Path(dipod_ros.__file__).parent / '__init__.py'


@pytest.fixture(autouse=True)
def _fresh():
    program.cache_clear()
    yield
    program.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that is all of a repository, and how to run git there."""
    (tmp_path / 'dipod_ros').mkdir()
    copy = tmp_path / 'dipod_ros' / '__init__.py'
    shutil.copy(SOURCE, copy)
    monkeypatch.setattr(dipod_ros, '__file__', str(copy))
    who = ['-c', 'user.name=n', '-c', 'user.email=e@example.org']

    def git(*arguments):
        command = ['git', '-C', str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git('init', '-q')
    return copy, git


def test_a_checkout_is_named_by_its_commit(package):
    copy, git = package
    git('add', '.')
    git('commit', '-qm', 'first')
    commit = git('rev-parse', '--short=8', 'HEAD')
    assert program() == f'{dipod_ros.__version__} {commit}'
    copy.write_text(copy.read_text() + '# changed\n')
    program.cache_clear()
    assert program() == f'{dipod_ros.__version__} {commit}+'


def test_a_package_in_the_repository_of_another_is_named_by_its_version(package):
    copy, git = package
    (copy.parent.parent / 'other').write_text('of somebody else')
    git('add', 'other')
    git('commit', '-qm', 'not of this package')
    assert program() == dipod_ros.__version__
