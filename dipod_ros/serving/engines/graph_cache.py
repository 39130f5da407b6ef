# SPDX-License-Identifier: Apache-2.0
"""Exported graphs kept on disk, so that a server starts in a fraction of the time of an export.

Without torch in the process: exporting needs it, running and refitting do not. A graph is kept with
its weights zeroed; they come from the checkpoint each time, and a golden check follows, so a stale
or damaged file can cost time but never come to act.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from dipod_ros.policy.spec import PolicySpec

FORMAT = 1
# Whoever writes the graph decides what is in it: another release is another graph.
EXPORTERS = ('torch', 'onnx', 'onnxscript', 'dipod_ros')


def graph_key(spec: PolicySpec, guided: bool = False) -> str:
    """Return a hash of everything that shapes the graph: sizes, network, sampler, exporters.

    Weights, limits, names and rates do not: checkpoints with the same key differ in weights alone.
    """
    shape = {
        'format': FORMAT,
        'observation_size': spec.observation_size,
        'horizon': spec.horizon,
        'joints': len(spec.joints),
        'network': dict(spec.network),
        'sampler': asdict(spec.sampler),
        'exporters': [package_version(name) for name in EXPORTERS],
    }
    if guided:
        shape['guided'] = True
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def cache_dir() -> Path:
    """Return where graphs are kept: $XDG_CACHE_HOME/dipod_ros/graphs, by default in ~/.cache."""
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(root).expanduser() / 'dipod_ros' / 'graphs'


def read(key: str) -> bytes | None:
    """Return the graph kept under `key`, None when there is none or it cannot be read."""
    with contextlib.suppress(OSError):
        return (cache_dir() / f'{key}.onnx').read_bytes()
    return None


def write(key: str, graph: bytes) -> None:
    """Keep a graph; a folder that cannot be written is no error, only a slower start next time."""
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix='.part')
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(graph)
            os.replace(name, folder / f'{key}.onnx')
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def set_aside(key: str) -> None:
    """Rename a graph that does not work: it is not loaded again and can still be looked at."""
    path = cache_dir() / f'{key}.onnx'
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix('.onnx.bad'))


def package_version(package: str) -> str:
    """Return the version of an installed package, '' when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''
