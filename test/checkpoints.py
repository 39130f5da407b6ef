# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints with random, seeded weights for the tests of whatever serves them."""

from dataclasses import replace

import numpy as np
import torch

from dipod_ros.policy import checkpoint
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, Stream

JOINTS = ('base', 'shoulder', 'elbow')
HORIZON = 6
PERIOD_S = 0.04
TINY = {'kind': 'residual_mlp', 'width': 16, 'depth': 2}
LIMITS = {
    'position_lower': [-2.0, -1.5, -2.5],
    'position_upper': [2.0, 1.5, 2.5],
    'velocity': [1.5, 1.2, 2.0],
    'acceleration': [6.0, 5.0, 8.0],
}


def make_limits(joints=JOINTS):
    return JointLimits.from_params(joints, {k: v[: len(joints)] for k, v in LIMITS.items()})


def make_spec(**changes):
    joints = changes.get('joints', JOINTS)
    values = {
        'task': 'toy',
        'robot': 'toy_arm',
        'joints': joints,
        'limits': make_limits(joints),
        'streams': (
            Stream('position', 'joint_position', len(joints), 'joint_states'),
            Stream('velocity', 'joint_velocity', len(joints), 'joint_states'),
            Stream('command', 'command', len(joints)),
            Stream('goal', 'point', 3, 'goal'),
        ),
        'horizon': HORIZON,
        'control_period_s': PERIOD_S,
        'network': TINY,
        'sampler': SamplerSpec('midpoint', 2),
    }
    return PolicySpec(**(values | changes))


def make_policy(seed=0, step_rad=0.02, **changes):
    """Return a policy whose increments are about `step_rad` per control period."""
    torch.manual_seed(seed)
    policy = FlowPolicy(make_spec(**changes))
    policy.normalizer.action_std.fill_(step_rad)
    return policy.requires_grad_(False)


def save_checkpoint(path, seed=0, **changes):
    """Write a checkpoint folder and return its manifest."""
    return make_policy(seed, **changes).save(path, version=seed, lineage={'test': True})


def save_fragile_checkpoint(path, seed=0):
    """Write a checkpoint that is sound at its golden values and overflows anywhere else."""
    policy = make_policy(seed)
    size, observation = policy.spec.action_size, policy.spec.observation_size
    weight = policy.net.input.weight
    weight.zero_()
    policy.net.input.bias.zero_()
    for block in policy.net.blocks:
        block.weight.zero_()
        block.bias.zero_()
    weight[::2, -observation:] = 1e30
    weight[1::2, -observation:] = -1e30  # whatever the sign of the sum, half of them are active
    policy.net.output.weight.fill_(1e30)
    o = np.zeros(observation, np.float32)
    z = np.zeros(size, np.float32)
    golden = checkpoint.Golden(o, z, policy.act(o[None], z[None])[0])
    assert np.isfinite(golden.chunk).all()
    return checkpoint.save(path, policy.spec, policy.weights(), kind='flow', golden=golden)


def save_lying_checkpoint(path, seed=0):
    """Write a checkpoint whose golden values belong to other weights."""
    policy = make_policy(seed)
    golden = policy.golden()
    return checkpoint.save(
        path,
        policy.spec,
        policy.weights(),
        kind='flow',
        golden=replace(golden, chunk=golden.chunk + np.float32(0.01)),
    )
