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
MAX_BYTES = 2 << 30  # all graphs together; the least recently used go first
MAX_BAD = 3  # files set aside that are kept
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
        path = cache_dir() / f'{key}.onnx'
        graph = path.read_bytes()
        with contextlib.suppress(OSError):  # a folder that may be read alone
            os.utime(path)  # used just now
        return graph
    return None


def write(key: str, graph: bytes) -> None:
    """Keep a graph; a folder that cannot be written is no error, only a slower start next time.

    Others make way when there are too many: any checkpoint of another shape brings one.
    """
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix='.part')
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(graph)
            os.replace(name, folder / f'{key}.onnx')
            _evict(folder, keep=key)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def set_aside(key: str) -> None:
    """Rename a graph that does not work: it is not loaded again and can still be looked at."""
    path = cache_dir() / f'{key}.onnx'
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix('.onnx.bad'))
        bad = sorted(cache_dir().glob('*.onnx.bad'), key=lambda p: p.stat().st_mtime_ns)
        for old in bad[:-MAX_BAD]:
            old.unlink(missing_ok=True)


def _evict(folder: Path, keep: str) -> None:
    """Remove the graphs used longest ago until the rest fits into MAX_BYTES; never `keep`."""
    with contextlib.suppress(FileNotFoundError):  # another process removes them too
        found = [(p.stat(), p) for p in folder.glob('*.onnx')]
        total = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda f: (f[0].st_mtime_ns, f[1].name)):
            if total <= MAX_BYTES:
                break
            if path.stem != keep:
                total -= stat.st_size
                path.unlink()


def package_version(package: str) -> str:
    """Return the version of an installed package, '' when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''
