# SPDX-License-Identifier: Apache-2.0
"""Training state on disk: modules, optimisers and counters as safetensors + JSON. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump

from dipod_ros.errors import UserError
from dipod_ros.policy.atomic import write_file


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the tensors of an optimiser's state (Adam moments and step counts) by name."""
    tensors = {}
    for index, state in optimizer.state_dict()['state'].items():
        for name, value in state.items():
            tensors[f'{prefix}.{index}.{name}'] = torch.as_tensor(value).clone()
    return tensors


def unpack_optimizer(
    prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `pack_optimizer` took; hyper-parameters stay those of `optimizer`.

    Raises ValueError when it is of other parameters: PyTorch would find out at the next step.
    """
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f'{prefix}.'):
            _, index, name = key.rsplit('.', 2)
            shape = parameters[int(index)].shape if int(index) < len(parameters) else None
            shape = torch.Size() if name == 'step' else shape
            if value.shape != shape:
                raise ValueError(f'{key} has shape {tuple(value.shape)}, expected {shape}')
            state.setdefault(int(index), {})[name] = value.clone()
    saved = optimizer.state_dict()
    saved['state'] = state
    optimizer.load_state_dict(saved)


def pack_module(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's tensors with a prefix."""
    return {f'{prefix}.{k}': v.detach().clone() for k, v in module.state_dict().items()}


def unpack_module(
    prefix: str, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `pack_module` took."""
    cut = len(prefix) + 1
    module.load_state_dict({k[cut:]: v for k, v in tensors.items() if k.startswith(f'{prefix}.')})


def save_state(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]
) -> None:
    """Write tensors and JSON-serialisable `info` atomically; raises UserError."""
    path = Path(path)
    payload = dump(
        {k: v.contiguous() for k, v in tensors.items()}, metadata={'info': json.dumps(info)}
    )
    try:
        write_file(path, payload)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def load_state(
    path: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_state` wrote; raises UserError when the file is missing or corrupt."""
    try:
        with safe_open(str(path), framework='pt') as handle:
            info = _info(handle)
            return {k: handle.get_tensor(k) for k in handle.keys()}, info  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f'cannot read training state {path}: {error}') from error


def load_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `info` alone of what `save_state` wrote; raises UserError as `load_state`."""
    try:
        with safe_open(str(path), framework='pt') as handle:
            return _info(handle)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f'cannot read training state {path}: {error}') from error


def _info(handle: Any) -> dict[str, Any]:
    info = json.loads((handle.metadata() or {}).get('info', '{}'))
    if not isinstance(info, dict):
        raise ValueError(f'its info is a {type(info).__name__}')
    return info
