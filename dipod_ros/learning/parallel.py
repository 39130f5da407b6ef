# SPDX-License-Identifier: Apache-2.0
"""Data-parallel learning under `torchrun`: who takes which rows, and how gradients meet. torch.

Every process holds the whole batch and draws the same random numbers; of each minibatch it takes
every n-th row. Weighted by its rows, the sum of the gradients is the gradient of the whole
minibatch: the run is that of one process up to round-off. Alone, every function here does nothing.

Learning runs on the CPU, on machines with a GPU too: the networks are small, and their tensors are
never moved. So the group is gloo's; nccl takes tensors of a GPU only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import distributed


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


def wait() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        distributed.barrier()


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
    """Add up named numbers over all processes; all must have the same names."""
    if world_size() == 1:
        return values
    names = sorted(values)
    total = torch.tensor([values[n] for n in names], dtype=torch.float64)
    distributed.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))
