# SPDX-License-Identifier: Apache-2.0
"""What every policy-gradient method must do through a real Learner, whatever its loss."""

from dataclasses import replace

import numpy as np
import torch

from dipod_ros.learning.collapse import HealthConfig
from dipod_ros.learning.critic import CriticConfig
from dipod_ros.learning.learner import Learner
from dipod_ros.learning.learner_state import LearnerConfig


def learner_config(algorithm, **options):
    """Return quick settings, without a health alarm."""
    settings = LearnerConfig(
        algorithm=algorithm,
        critic=CriticConfig(width=32, epochs=4),
        health=HealthConfig(1e9, 0.0, states=32, actions_per_state=4),
        critic_warmup_updates=0,
        gap_every=0,
    )
    return replace(settings, **options)


def run(learner, make_rollout, updates, **options):
    """Update on rollouts of the present policy, which depend on the number of updates only."""
    rows = []
    for _ in range(updates):
        version = learner.version
        acting = learner.behaviour(version)
        rollout = make_rollout(acting, seed=learner.updates, version=version, **options)
        rows.append(learner.update(rollout))
    return rows


def bandit_success(make_rollout, policy, algorithm, updates=12):
    """Return success before and after learning to move the way that the observation's sign says."""
    settings = learner_config(algorithm, critic_warmup_updates=1)
    learner = Learner(policy, settings)

    def act(current, seed, version=0):
        rollout = make_rollout(current, episodes=256, length=1, seed=seed, version=version)
        right = np.sign(rollout.chunks[:, 0, 0]) == np.sign(rollout.observations[:, 0])
        return replace(rollout, rewards=right.astype(np.float32), success=right)

    start = act(learner.policy.clone(), 1000).success.mean()
    for _ in range(updates):
        learner.update(act(learner.behaviour(learner.version), learner.updates, learner.version))
    return start, act(learner.policy.clone(), 1000).success.mean()


def assert_resumes_bit_by_bit(make_rollout, make_start, algorithm, path):
    """Learn four updates in one go and in two, with another start and another global seed."""
    settings = learner_config(algorithm)
    straight = Learner(make_start(0), settings)
    rows = run(straight, make_rollout, 4)

    first = Learner(make_start(0), settings)
    begun = run(first, make_rollout, 2)
    first.save(path)
    torch.manual_seed(99)
    resumed = Learner(make_start(5), settings)
    resumed.load(path)
    assert begun + run(resumed, make_rollout, 2) == rows
    a, b = straight.snapshot(), resumed.snapshot()
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    # Adam remembers every parameter that the method moves.
    moved = [k for k in a if k.startswith('policy_adam') and k.endswith('exp_avg')]
    assert len(moved) == len(straight.algorithm.parameters(straight.policy))


def first_pass(make_rollout, policy, algorithm):
    """Return the metrics of one update of one epoch in one minibatch."""
    learner = Learner(policy, learner_config(replace(algorithm, epochs=1, minibatches=1)))
    return run(learner, make_rollout, 1)[0]


def finite_differences(function, x, h=1e-6):
    """Return the gradient of a scalar function at x (float64) by central differences."""
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[i] = h
        out.view(-1)[i] = (function(x + step) - function(x - step)) / (2 * h)
    return out
