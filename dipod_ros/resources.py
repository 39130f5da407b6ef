# SPDX-License-Identifier: Apache-2.0
"""Finds the files that travel beside the Python package (config, launch, models, sim).

The same lookup serves a source checkout, `pip install -e`, `pip install` and a colcon workspace, so
nothing here needs the ament index: a machine that has only pip has none.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dipod_ros.errors import UserError

PACKAGE = 'dipod_ros'


@lru_cache(maxsize=1)
def share_dir() -> Path:
    """Return the folder that holds config/, launch/, models/ and sim/.

    Raises UserError when the installation carries none, which means that it is incomplete.
    """
    package_dir = Path(__file__).resolve().parent
    checkout = package_dir.parent
    if (checkout / 'package.xml').is_file() and (checkout / 'launch').is_dir():
        return checkout
    # <prefix>/lib/pythonX.Y/{site,dist}-packages/dipod_ros, with or without local/: walk up to the
    # prefix. The unresolved path matters for `colcon build --symlink-install`.
    for start in (package_dir, Path(__file__).absolute().parent):
        for prefix in start.parents:
            share = prefix / 'share' / PACKAGE
            if (share / 'package.xml').is_file():
                return share
    raise UserError(
        f'the data files of {PACKAGE} are not installed beside {package_dir}: '
        'install again with `pip install .` or `colcon build` from the source checkout'
    )


def resource(relative: str) -> Path:
    """Return the path of a shipped file or folder, for example `config/robots/arm7.yaml`.

    Raises UserError when there is no such file, listing what its folder holds.
    """
    path = share_dir() / relative
    if not path.exists():
        folder = path.parent
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise UserError(f'no shipped file {relative!r}; {folder} holds {there or "nothing"}')
    return path
