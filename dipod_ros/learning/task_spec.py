# SPDX-License-Identifier: Apache-2.0
"""The specification of a policy for a task of the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dipod_ros.policy.spec import PolicySpec, SamplerSpec

if TYPE_CHECKING:
    from dipod_ros.sim.vector_env import ChunkVectorEnv


def spec_for(
    env: ChunkVectorEnv,
    sampler: SamplerSpec | None = None,
    network: Mapping[str, Any] | None = None,
) -> PolicySpec:
    """Return what a policy for this env must be; sampler and network have the spec's defaults."""
    options: dict[str, Any] = {}
    if sampler is not None:
        options['sampler'] = sampler
    if network is not None:
        options['network'] = dict(network)
    return PolicySpec(
        task=env.task.name,
        robot=env.robot.name,
        joints=tuple(env.joints),
        limits=env.limits,
        streams=tuple(env.streams),
        horizon=env.horizon,
        control_period_s=env.control_period_s,
        **options,
    )
