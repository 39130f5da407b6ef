# SPDX-License-Identifier: Apache-2.0
"""Save a flow that was trained by code of your own as a checkpoint that the server takes.

    python docs/examples/own_flow.py --out runs/own_flow
    dipod inspect runs/own_flow
    dipod up sim.launch.yaml robot:=config/robots/arm2.yaml task:=none checkpoint:=own_flow

`train` stands for your code: it knows nothing of this package but the time features. It follows the
convention that most flow libraries have, the other way round from the one here:

    theirs: s=0 is noise, s=1 the action, x_s = (1-s) eps + s a, u = a - eps
    here:   t=0 is the action, t=1 noise, x_t = (1-t) a + t eps, v = eps - a

so that t = 1 - s and v = -u. The policy it learns moves the two joints of arm2 to TARGET.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.networks import time_features
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, Stream
from dipod_ros.sim.robot import load_robot

TARGET = np.array([0.9, -0.5])  # rad
HORIZON, WIDTH, DEPTH = 5, 64, 2


class OwnVelocity(nn.Module):
    """u(x, s; o): the layers of `residual_mlp`, or the server could not build it by its name."""

    def __init__(self, action_size: int, observation_size: int) -> None:
        super().__init__()
        self.first = nn.Linear(action_size + 16 + observation_size, WIDTH)
        self.middle = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH - 1))
        self.last = nn.Linear(WIDTH, action_size)

    def forward(self, x: torch.Tensor, s: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """Return u [B, D] at x [B, D], s [B], observation [B, O], all normalised."""
        h = nn.functional.silu(self.first(torch.cat([x, time_features(1 - s), o], dim=-1)))
        for layer in self.middle:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)


@dataclass
class Trained:
    """A network with the means and standard deviations that its inputs were normalised by."""

    net: OwnVelocity
    o_mean: torch.Tensor
    o_std: torch.Tensor
    a_mean: torch.Tensor
    a_std: torch.Tensor


def train(steps: int, seed: int = 0) -> Trained:
    """Clone an expert that goes to TARGET: your code, your data, your loss."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    command = rng.uniform([-1.5, -2.0], [1.5, 2.0], size=(4096, 2))
    position = command + rng.normal(scale=0.02, size=command.shape)
    chunks, at = [], command.copy()
    for _ in range(HORIZON):
        chunks.append(np.clip(0.2 * (TARGET - at), -0.03, 0.03))  # rad per control step
        at = at + chunks[-1]
    o = torch.tensor(np.concatenate([position, command], axis=1), dtype=torch.float32)
    a = torch.tensor(np.concatenate(chunks, axis=1), dtype=torch.float32)  # [M, H*A], step by step
    made = Trained(OwnVelocity(a.shape[1], o.shape[1]), o.mean(0), o.std(0), a.mean(0), a.std(0))
    o, a = (o - made.o_mean) / made.o_std, (a - made.a_mean) / made.a_std
    optimizer = torch.optim.Adam(made.net.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(a), (256,))
        eps, s = torch.randn(256, a.shape[1]), torch.rand(256)
        x = (1 - s[:, None]) * eps + s[:, None] * a[rows]
        loss = (made.net(x, s, o[rows]) - (a[rows] - eps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made


def make_spec() -> PolicySpec:
    """Say what the policy looks at, what it moves, how fast, and how it is sampled."""
    robot = load_robot('arm2')
    return PolicySpec(
        task='none',
        robot=robot.name,
        joints=robot.joints,
        limits=robot.limits,
        # In the order in which the network was trained on them.
        streams=(
            Stream('joint_position', 'joint_position', 2, 'joint_states'),
            Stream('command', 'command', 2),
        ),
        horizon=HORIZON,
        control_period_s=robot.control_period_s,
        network={'kind': 'residual_mlp', 'width': WIDTH, 'depth': DEPTH},
        sampler=SamplerSpec('midpoint', 5),
    )


def to_policy(made: Trained, spec: PolicySpec) -> FlowPolicy:
    """Put weights and statistics where they belong; raises where names or shapes do not fit."""
    names = {'first': 'input', 'middle': 'blocks', 'last': 'output'}
    weights = {}
    for name, value in made.net.state_dict().items():
        layer, rest = name.split('.', 1)
        sign = -1.0 if layer == 'last' else 1.0  # v = -u, and the last layer is linear
        weights[f'net.{names[layer]}.{rest}'] = (sign * value).numpy()
    weights['normalizer.observation_mean'] = made.o_mean.numpy()
    weights['normalizer.observation_std'] = made.o_std.numpy()
    weights['normalizer.action_mean'] = made.a_mean.numpy()
    weights['normalizer.action_std'] = made.a_std.numpy()
    policy = FlowPolicy(spec)
    policy.load_weights(weights)
    return policy


def main() -> None:
    """Train, and write the checkpoint with the golden values that a server checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=3000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    manifest = to_policy(train(args.steps), make_spec()).save(args.out, lineage={'method': 'own'})
    print(f'{args.out}: {manifest.sha256[:12]}')


if __name__ == '__main__':
    main()
