# SPDX-License-Identifier: Apache-2.0
"""The newest policy versions, kept so that their decisions can be learned from. torch, no ROS.

A ratio compares the policy with the version that acted, so a decision is of use for as long as its
version is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import Algorithm, Batch, autocast
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.state_io import pack_module, unpack_module
from dipod_ros.policy.flow import FlowPolicy


class Versions:
    """At most `count` policies by version number; the one added first goes first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._policies: OrderedDict[int, FlowPolicy] = OrderedDict()

    @property
    def numbers(self) -> list[int]:
        """The versions that are known, in the order in which they were added."""
        return list(self._policies)

    def add(self, version: int, policy: FlowPolicy) -> None:
        """Keep a copy of a policy, and forget the oldest when there are too many."""
        self._policies[version] = policy.clone()
        while len(self._policies) > self.count:
            self._policies.popitem(last=False)

    def get(self, version: int) -> FlowPolicy | None:
        """Return the frozen policy of a version, or None when it is not known (any more)."""
        return self._policies.get(version)

    def require_known(self, rollout: Rollout) -> None:
        """Raise UserError when a rollout holds decisions of other versions."""
        unknown = sorted({int(v) for v in np.unique(rollout.version)} - self._policies.keys())
        if unknown:
            raise UserError(f'rollout holds decisions of forgotten policy versions {unknown}')

    @torch.no_grad()
    def remembered(
        self, batch: Batch, rollout: Rollout, algorithm: Algorithm, generator: torch.Generator
    ) -> Batch:
        """Add what each decision's own version says of it: the denominators of the ratios."""
        parts, order = [], []
        for version in np.unique(rollout.version):
            rows = torch.from_numpy(np.flatnonzero(rollout.version == version))
            with autocast(algorithm.config.precision):
                behaviour = self._policies[int(version)]
                parts.append(algorithm.remember(behaviour, batch[rows], generator))
            order.append(rows)
        back = torch.argsort(torch.cat(order))
        memory = {name: torch.cat([p[name] for p in parts])[back] for name in parts[0]}
        return replace(batch, memory=memory)

    def mismatch(self, rollout: Rollout, limit: int) -> float:
        """Return the largest |chunk executed - chunk computed from the same noise| (rad).

        Of at most `limit` decisions of each version; versions that are not known are left out.
        """
        worst = 0.0
        for version in np.unique(rollout.version):
            policy = self._policies.get(int(version))
            rows = np.flatnonzero(rollout.version == version)[:limit]
            if policy is not None and len(rows):
                own = policy.act(rollout.observations[rows], rollout.noise[rows])
                worst = max(worst, float(np.abs(own - rollout.chunks[rows]).max()))
        return worst

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights of all of them by name."""
        packed: dict[str, torch.Tensor] = {}
        for version, policy in self._policies.items():
            packed |= pack_module(f'recent.{version}', policy)
        return packed

    def read(
        self, tensors: Mapping[str, torch.Tensor], numbers: Sequence[int], like: FlowPolicy
    ) -> Versions:
        """Return what `tensors` and `numbers` said, for policies of the shape of `like`.

        Raises KeyError or RuntimeError when the tensors do not fit.
        """
        versions = Versions(self.count)
        for version in numbers:
            policy = like.clone()
            unpack_module(f'recent.{version}', policy, tensors)
            versions._policies[int(version)] = policy
        return versions
