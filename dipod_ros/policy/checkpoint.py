# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: policy.safetensors + manifest.yaml in one folder. No torch, no pickle.

A folder appears under its name only when it is complete (written beside it, flushed, renamed), so a
kill at any moment leaves the previous checkpoint, never half of a new one.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from dipod_ros.errors import UserError
from dipod_ros.policy.atomic import write_folder
from dipod_ros.policy.image import check_encoder_weights, split_weights
from dipod_ros.policy.plain_yaml import YamlError, dump_yaml, parse_yaml, read_yaml
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.policy.weight_shapes import MAX_WEIGHTS_BYTES, weight_bytes

FORMAT_VERSION = 1
WEIGHTS_FILE = 'policy.safetensors'
MANIFEST_FILE = 'manifest.yaml'
KINDS = ('flow', 'student')
# What a weights file may hold beside its weights: their names, a note.
MAX_BESIDE_BYTES = 1 << 20
# Messages and files that name a version hold 64 bits; Python writes no number of any length.
MAX_VERSION = (1 << 63) - 1


class CheckpointError(UserError):
    """A checkpoint that cannot be used; one line that says which and why."""


@dataclass(frozen=True, eq=False)
class Golden:
    """One fixed observation [O] and noise [N] with the chunk [H, A] (rad) they must give.

    `features` [F] by image stream are what its encoder must make of `image.golden_image`.
    """

    observation: np.ndarray
    noise: np.ndarray
    chunk: np.ndarray
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Manifest:
    """What manifest.yaml says: enough to validate a checkpoint without reading its weights."""

    spec: PolicySpec
    kind: str  # 'flow' learns online; 'student' is a few-step distillate of one
    sha256: str  # of policy.safetensors
    version: int = 0  # counts the updates of one training run
    golden: Golden | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A manifest with its weights, arrays by name exactly as stored."""

    manifest: Manifest
    weights: dict[str, np.ndarray]

    @property
    def spec(self) -> PolicySpec:
        """The policy's specification."""
        return self.manifest.spec

    def without_encoders(self) -> Checkpoint:
        """Return the same checkpoint with the weights of the policy's own network alone."""
        return Checkpoint(self.manifest, split_weights(self.weights)[0])


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check manifest.yaml of a checkpoint folder; the weights stay unread.

    Raises CheckpointError when the folder, the file or a field is missing or wrong.
    """
    folder = Path(path)
    file = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise CheckpointError(f'no checkpoint folder at {folder}')
    for name in (MANIFEST_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f'{folder} is not a checkpoint: it has no {name}')
    try:
        data = read_yaml(file)
    except UserError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(data, dict):
        raise CheckpointError(f'{file} holds no mapping')
    if data.get('format_version') != FORMAT_VERSION:
        raise CheckpointError(
            f'{file} has format_version {data.get("format_version")!r}; '
            f'this release reads {FORMAT_VERSION}'
        )
    if data.get('kind') not in KINDS:
        raise CheckpointError(f'{file}: kind {data.get("kind")!r} is not one of {list(KINDS)}')
    sha = str(data.get('sha256', ''))
    if not re.fullmatch(r'[0-9a-f]{64}', sha):
        raise CheckpointError(f'{file}: sha256 is not 64 hexadecimal digits')
    try:
        spec = PolicySpec.from_dict(data.get('spec') or {})
        golden = _read_golden(data.get('golden'), spec)
        version = int(data.get('version', 0))
        if abs(version) > MAX_VERSION:
            raise UserError('version has more than 64 bits')
        return Manifest(
            spec=spec,
            kind=data['kind'],
            sha256=sha,
            version=version,
            golden=golden,
            lineage=dict(data.get('lineage') or {}),
            metrics=dict(data.get('metrics') or {}),
            path=folder,
        )
    except (UserError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f'{file}: {error}') from error


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and verify its weights against the manifest's sha256.

    Raises CheckpointError when the file is corrupt, not the one the manifest describes, or holds
    anything else than finite float32 numbers.
    """
    manifest = read_manifest(path)
    file = Path(path) / WEIGHTS_FILE
    needed = weight_bytes(manifest.spec)
    if needed > MAX_WEIGHTS_BYTES:
        raise CheckpointError(
            f'{path}: its network {dict(manifest.spec.network)} has {needed} bytes of weights, at '
            f'most {MAX_WEIGHTS_BYTES} are read'
        )
    try:
        size = file.stat().st_size
        if size > needed + MAX_BESIDE_BYTES:
            raise CheckpointError(
                f'{file} is larger than it can be: {size} bytes, and the network of its manifest '
                f'has {needed} bytes of weights'
            )
        payload = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f'{file} cannot be read: {error.strerror or error}') from error
    actual = hashlib.sha256(payload).hexdigest()
    if actual != manifest.sha256:
        raise CheckpointError(
            f'{file} is corrupt: its sha256 is {actual[:12]}..., '
            f'the manifest says {manifest.sha256[:12]}...'
        )
    try:
        weights = parse_safetensors(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f'{file} is not a safetensors file: {error}') from error
    _check_weights(manifest.spec, weights, str(file))
    return Checkpoint(manifest, weights)


def save(
    path: str | os.PathLike[str],
    spec: PolicySpec,
    weights: Mapping[str, np.ndarray],
    *,
    kind: str,
    golden: Golden | None = None,
    version: int = 0,
    lineage: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    extra_files: Mapping[str, str] | None = None,
) -> Manifest:
    """Write a checkpoint folder atomically and return its manifest.

    `extra_files` are text files (a model card, say) that belong to the checkpoint. `overwrite`
    replaces an older checkpoint, never a folder that is none. Raises CheckpointError when the
    folder is in the way or cannot be written.
    """
    folder = Path(path)
    if kind not in KINDS:
        raise CheckpointError(f'kind {kind!r} is not one of {list(KINDS)}')
    if folder.exists() and not overwrite:
        raise CheckpointError(f'{folder} exists already; choose another name or overwrite it')
    if folder.exists() and not (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(
            f'{folder} is no checkpoint and is not overwritten; choose another name'
        )
    _check_weights(spec, weights, f'cannot write {folder}')
    payload = dump_safetensors({k: np.ascontiguousarray(v) for k, v in weights.items()})
    sha = hashlib.sha256(payload).hexdigest()
    manifest: dict[str, Any] = {
        'format_version': FORMAT_VERSION,
        'kind': kind,
        'version': int(version),
        'sha256': sha,
        'spec': spec.to_dict(),
        'evaluations': spec.sampler.evaluations,
        'lineage': _plain(lineage or {}),
        'metrics': _plain(metrics or {}),
    }
    if golden is not None:
        manifest['golden'] = {
            'observation': _plain(golden.observation),
            'noise': _plain(golden.noise),
            'chunk': _plain(golden.chunk),
        }
        if golden.features:
            manifest['golden']['features'] = _plain(golden.features)
    text = dump_yaml(manifest, sort_keys=False, default_flow_style=None, width=110)
    try:
        parse_yaml(text)
    except YamlError as error:  # beyond the bounds of what is read
        raise CheckpointError(f'cannot write {folder}: its manifest {error}') from error
    files = {WEIGHTS_FILE: payload, MANIFEST_FILE: text.encode()}
    for name, body in (extra_files or {}).items():
        if name in files or name != Path(name).name:
            raise CheckpointError(f'{name!r} is no name for a file beside {list(files)}')
        files[name] = body.encode()
    try:
        write_folder(folder, files)
    except OSError as error:
        raise CheckpointError(f'cannot write {folder}: {error.strerror or error}') from error
    return read_manifest(folder)


def resolve(name_or_path: str, model_dirs: Iterable[Path]) -> Path:
    """Turn the name of a shipped model, or a path inside the model folders, into a folder.

    Raises CheckpointError for anything outside `model_dirs` (links are followed first), for names
    that do not exist, listing those that do, and for those that are no text: no log, and no message
    of ROS, takes the bytes of a file name that are not UTF-8.
    """
    roots = [Path(d).resolve() for d in model_dirs]
    text = name_or_path.strip()
    if not text:
        raise CheckpointError('checkpoint is empty; give the name of a model or its folder')
    candidates = [root / text for root in roots] + [Path(text)]
    outside = False
    for candidate in candidates:
        try:
            real = candidate.expanduser().resolve()
            if not real.is_dir() or real in roots:
                continue
        except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
            continue
        for name in (text, str(real)):
            if not _is_text(name):
                raise CheckpointError(f'{name[:200]!r} is no name in UTF-8: rename the folder')
        if any(real.is_relative_to(root) for root in roots):
            return real
        outside = True
    if outside:
        raise CheckpointError(
            f'{text} is outside the model folders {[str(r) for r in roots]}; '
            'move it there or add its folder to model_dirs'
        )
    names = sorted(
        p.parent.name
        for root in roots
        if root.is_dir()
        for p in root.glob(f'[!.]*/{MANIFEST_FILE}')
    )
    raise CheckpointError(f'no checkpoint {text[:200]!r}; models at hand: {names or "none"}')


def _is_text(name: str) -> bool:
    """Tell whether a name can be written in UTF-8; bytes that cannot are lone surrogates in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_weights(spec: PolicySpec, weights: Mapping[str, np.ndarray], where: str) -> None:
    bad = [k for k, v in weights.items() if v.dtype != np.float32]
    if bad:
        raise CheckpointError(f'{where}: weights that are not float32 in {bad[:3]}')
    bad = [k for k, v in weights.items() if not np.all(np.isfinite(v))]
    if bad:
        raise CheckpointError(f'{where}: weights that are not finite in {bad[:3]}')
    try:
        check_encoder_weights(spec.streams, weights)
    except UserError as error:
        raise CheckpointError(f'{where}: {error}') from error


def _read_golden(data: Any, spec: PolicySpec) -> Golden | None:
    if data is None:
        return None
    names = ('observation', 'noise', 'chunk')
    if not isinstance(data, Mapping) or not data.keys() >= set(names):
        raise UserError(f'golden must give {list(names)}')
    features = data.get('features') or {}
    if not isinstance(features, Mapping):
        raise UserError('golden features must be given by stream')
    golden = Golden(
        *(np.asarray(data[k], dtype=np.float32) for k in names),
        {str(k): np.asarray(v, dtype=np.float32) for k, v in features.items()},
    )
    images = {s.name: (s.size,) for s, _ in spec.images}
    if {k: v.shape for k, v in golden.features.items()} != images:
        raise UserError(f'golden features must be given for the image streams {list(images)}')
    shapes = (
        (spec.observation_size,),
        (spec.noise_size,),
        (spec.horizon, len(spec.joints)),
    )
    for name, shape in zip(names, shapes, strict=True):
        if getattr(golden, name).shape != shape:
            raise UserError(
                f'golden {name} has shape {getattr(golden, name).shape}, expected {shape}'
            )
    return golden


def _plain(value: Any) -> Any:
    """Turn numpy values into YAML ones; nine significant digits hold any float32."""
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f'{value:.9g}') if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
