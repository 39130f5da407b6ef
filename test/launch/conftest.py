# SPDX-License-Identifier: Apache-2.0
"""Launch files and small programs that stand for nodes, in a ROS workspace of the test's own."""

import sys
import textwrap
import time
from pathlib import Path

import pytest

DEADLINE_S = 30.0


class Workspace:
    """An install prefix with one package, `toy`, and a folder of launch files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = root / 'install'
        (self.prefix / 'lib/toy').mkdir(parents=True)
        (self.prefix / 'share/toy').mkdir(parents=True)

    def node(self, name: str, body: str) -> None:
        """Add an executable; `body` is Python."""
        path = self.prefix / 'lib/toy' / name
        path.write_text(f'#!{sys.executable} -S\nimport sys\n{textwrap.dedent(body)}')
        path.chmod(0o755)

    def file(self, text: str, name: str = 'a.launch.yaml') -> Path:
        """Write a launch file."""
        path = self.root / name
        path.write_text(textwrap.dedent(text))
        return path


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    made = Workspace(tmp_path)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(made.prefix))
    return made


@pytest.fixture
def wait_until():
    """Poll for what another process does."""

    def wait(condition, what):
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f'waited {DEADLINE_S} s for {what} in vain'
            time.sleep(0.01)

    return wait
