# SPDX-License-Identifier: Apache-2.0
"""A network in half precision, except for the layers where rounding costs most. torch.

A network names those in `full_precision` and casts between the two with `like`, which does nothing
while all of it is float32.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def halved(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network in `dtype`, its `full_precision` parts in float32."""
    low = copy.deepcopy(net).to(dtype)
    for name in getattr(net, 'full_precision', ()):
        part = net.get_submodule(name)
        parent, _, last = name.rpartition('.')
        setattr(low.get_submodule(parent), last, copy.deepcopy(part))
    return low


def like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return x in the type of another tensor; x itself, and no operator, when that is its own."""
    return x if x.dtype == other.dtype else x.to(other.dtype)
