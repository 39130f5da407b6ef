# SPDX-License-Identifier: Apache-2.0
"""Which GPU backends were seen to work on this machine: written by a check, read by `auto`.

No GPU backend is trusted because its libraries are there. `dipod gpu-check` runs it against the CPU
on this very GPU and keeps the outcome with the versions; another driver, version or GPU is another
record.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dipod_ros.serving.engines.cuda_driver import Gpu

PACKAGES = ('torch', 'tensorrt', 'torch_tensorrt', 'dipod_ros')


def machine_key(gpu: Gpu) -> str:
    """Return a hash of the GPU, its driver and the versions of what runs on it."""
    facts = [gpu.name, gpu.sm, gpu.driver, *map(_version, PACKAGES)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read(gpu: Gpu) -> dict[str, float]:
    """Return the median run in us of each backend that passed here, empty when none did."""
    try:
        data = json.loads((_folder() / f'{machine_key(gpu)}.json').read_text(encoding='utf-8'))
        return {str(k): float(v) for k, v in data['passed_us'].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write(gpu: Gpu, passed_us: Mapping[str, float]) -> None:
    """Keep what passed, replacing an older record; raises nothing when that fails."""
    with contextlib.suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=_folder(), suffix='.part')
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            json.dump({'gpu': gpu.name, 'passed_us': dict(passed_us)}, file)
        os.replace(name, _folder() / f'{machine_key(gpu)}.json')


def _folder() -> Path:
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(root).expanduser() / 'dipod_ros' / 'verified'


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''
