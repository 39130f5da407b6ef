# SPDX-License-Identifier: Apache-2.0
"""The loop around supervised losses: AdamW, a cosine to 0, averaged weights, a state on disk."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipod_ros.learning.state_io import (
    load_state,
    pack_module,
    pack_optimizer,
    save_state,
    unpack_module,
    unpack_optimizer,
)


class AveragedTraining:
    """Modules that a loss moves, and the slow average of their weights, which is the result."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        trained: list[nn.Parameter],
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float,
        ema: float,
    ) -> None:
        """Take the modules by name and those of their parameters that the loss moves."""
        self.modules = dict(modules)
        self.average = {name: copy.deepcopy(module) for name, module in modules.items()}
        for module in self.average.values():
            module.requires_grad_(False)
        self.done = 0
        self.steps = steps
        self._ema = ema
        self._optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda k: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * k / steps)).item()),
        )

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights down the gradient of a loss, and the average after them."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        # A short average in the beginning, so that the random weights do not linger.
        decay = min(self._ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for name, module in self.modules.items():
                for slow, fast in zip(
                    self.average[name].parameters(), module.parameters(), strict=True
                ):
                    slow.lerp_(fast, 1 - decay)
        self.done += 1

    def resume(self, file: Path | None, identity: Mapping[str, Any]) -> None:
        """Go on from a state that was saved with the same identity; any other is left alone."""
        if file is None or not file.is_file():
            return
        tensors, info = load_state(file)
        if info.get('identity') != identity:
            return
        for name, module in self.modules.items():
            unpack_module(name, module, tensors)
            unpack_module(f'average.{name}', self.average[name], tensors)
        unpack_optimizer('adam', self._optimizer, tensors)
        self.done = int(info['done'])
        # The schedule is a function of the step alone: move it there without optimiser steps.
        schedule = self._schedule
        schedule.last_epoch = self.done
        for group, base, factor in zip(
            self._optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group['lr'] = base * factor(self.done)

    def save(self, file: Path, identity: Mapping[str, Any]) -> None:
        """Write everything needed to go on; raises UserError."""
        tensors = pack_optimizer('adam', self._optimizer)
        for name, module in self.modules.items():
            tensors |= pack_module(name, module)
            tensors |= pack_module(f'average.{name}', self.average[name])
        save_state(file, tensors, {'identity': identity, 'done': self.done})
