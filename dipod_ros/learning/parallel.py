# SPDX-License-Identifier: Apache-2.0
"""Data-parallel learning under `torchrun`: who takes which rows, and how gradients meet. torch.

Every process holds the whole batch and draws the same random numbers; of each minibatch it takes
every n-th row. Weighted by its rows, the sum of the gradients is the gradient of the whole
minibatch: the run is that of one process up to round-off. Alone, every function here does nothing.

Learning runs on the CPU, on machines with a GPU too: the networks are small, and their tensors are
never moved. So the group is gloo's; nccl takes tensors of a GPU only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import distributed

from dipod_ros.errors import UserError


def join() -> None:
    """Join the process group that `torchrun` describes; does nothing in a plain process."""
    if 'RANK' in os.environ and not distributed.is_initialized():
        distributed.init_process_group('gloo')


def leave() -> None:
    """Leave the process group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 when alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return how many processes learn together, 1 when alone."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(payload: bytes) -> list[bytes]:
    """Return what every process gave, in the order of their numbers."""
    if world_size() == 1:
        return [payload]
    size = torch.tensor([len(payload)])
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    distributed.all_gather(sizes, size)
    # gloo takes tensors of one size, and not of none.
    mine = torch.zeros(max(1, *map(int, sizes)), dtype=torch.uint8)
    mine[: len(payload)] = _tensor(payload)
    parts = [torch.zeros_like(mine) for _ in sizes]
    distributed.all_gather(parts, mine)
    return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, sizes, strict=True)]


def broadcast(payload: bytes = b'') -> bytes:
    """Return what the first process gave; what the others give is ignored."""
    if world_size() == 1:
        return payload
    size = torch.tensor([len(payload)])
    distributed.broadcast(size, 0)
    data = _tensor(payload) if rank() == 0 else torch.zeros(int(size), dtype=torch.uint8)
    if len(data):
        distributed.broadcast(data, 0)
    return data.numpy().tobytes()


def require_same(values: Mapping[str, str | int]) -> None:
    """Raise UserError, in every process, for the first of these values that is not the same in all.

    Gradients of different policies, or of different episodes, add up without any error.
    """
    rows = [json.loads(row) for row in gather(json.dumps(dict(values)).encode())]
    for name in values:
        found = [row[name] for row in rows]
        if len(set(found)) > 1:
            raise UserError(
                f'processes that learn together differ in {name} '
                f'({" | ".join(map(str, found))}): start them with the same arguments and files'
            )


def _tensor(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy())


def share(index: torch.Tensor) -> torch.Tensor:
    """Return the rows of a minibatch [B] that this process takes."""
    return index[rank() :: world_size()]


def sum_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Add up the gradients of all processes, in one message."""
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    # A process whose share is empty has none: it must still take part.
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in parts])
    distributed.all_reduce(flat)
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p).clone()


def sum_values(values: dict[str, float]) -> dict[str, float]:
    """Add up named numbers over all processes; a name that one of them lacks counts 0 there.

    A process that had no row of any minibatch has no statistics of its own.
    """
    if world_size() == 1:
        return values
    names = sorted(set().union(*map(json.loads, gather(json.dumps(list(values)).encode()))))
    total = torch.tensor([values.get(n, 0.0) for n in names], dtype=torch.float64)
    distributed.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))
