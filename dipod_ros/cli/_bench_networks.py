# SPDX-License-Identifier: Apache-2.0
"""The larger networks that `dipod bench engine` times: random weights, the flow's own shapes."""

from __future__ import annotations

from dataclasses import replace

from dipod_ros.policy.checkpoint import Checkpoint, Manifest
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import PolicySpec

# Sizes that a CPU runs within a control period; for a GPU see `dipod gpu-check`.
NETWORKS = {
    'dit': {'kind': 'dit', 'width': 128, 'depth': 4, 'heads': 4},
    'unet': {'kind': 'unet', 'width': 64, 'depth': 2},
}
# Their exports take a tenth of the time.
QUICK_NETWORKS = {
    'dit': {'kind': 'dit', 'width': 32, 'depth': 1, 'heads': 2},
    'unet': {'kind': 'unet', 'width': 16, 'depth': 2},
}
# Of random networks, in normalised actions: they are rougher than what training makes.
VELOCITY_STD = 0.2


def random_checkpoint(spec: PolicySpec, network: dict[str, str | int], seed: int = 0) -> Checkpoint:
    """Return a checkpoint with seeded weights, none of them zero, and golden values.

    Time depends on the shapes alone. Parity needs outputs that differ, and what starts at zero by
    design (the gates of a transformer) would make every chunk the same; and velocities that leave
    the chunk about as large as a trained policy's, since errors are stated in normalised actions.
    """
    import torch

    torch.manual_seed(seed)
    policy = FlowPolicy(replace(spec, network=network))
    for parameter in policy.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    policy.requires_grad_(False)
    x, o = torch.randn(64, policy.spec.action_size), torch.randn(64, policy.spec.observation_size)
    scale = policy.velocity(x, torch.rand(64), o).std().item() / VELOCITY_STD
    policy.net.output.weight.div_(scale)
    policy.net.output.bias.div_(scale)
    manifest = Manifest(policy.spec, 'flow', '0' * 64, golden=policy.golden())
    return Checkpoint(manifest, policy.weights())
