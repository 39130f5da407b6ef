# SPDX-License-Identifier: Apache-2.0
"""What counts as gradient math, and what as watching drift, in the times of learning."""

import time

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.learning import learner as module  # noqa: E402
from dipod_ros.learning import q_advantages, q_critic  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.learner import Learner  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.q_critic import QCriticConfig  # noqa: E402


def test_only_gradient_steps_count_as_their_time(make_policy, make_rollout, monkeypatch):
    """On a clock that each gradient step moves by one and everything else by a thousand."""
    clock, steps = [0.0], [0]
    monkeypatch.setattr(time, 'process_time', lambda: clock[0])

    def slow(function, seconds, count=0):
        def call(*args, **options):
            clock[0] += seconds
            steps[0] += count
            return function(*args, **options)

        return call

    config = LearnerConfig(
        DipodConfig(epochs=2, minibatches=2, samples_per_action=4),
        critic=CriticConfig(width=16, epochs=3, minibatches=4),
        health=HealthConfig(1e9, 0.0, states=32, actions_per_state=4),
        q_critic=QCriticConfig(
            members=2, width=16, depth=1, first_rounds=3, rounds=2, steps=5, batch=16, imagined=8
        ),
        critic_warmup_updates=0,
        gap_every=1,
    )
    learner = Learner(make_policy(), config)
    for owner in (learner, learner.critic, learner.q):
        owner.optimizer.step = slow(owner.optimizer.step, 1.0, 1)
    for part in (q_critic, q_advantages):
        monkeypatch.setattr(part, 'own_chunks', slow(part.own_chunks, 1000.0))
    monkeypatch.setattr(learner.q, 'values', slow(learner.q.values, 1000.0))
    monkeypatch.setattr(learner.q, '_targets', slow(learner.q._targets, 1000.0))
    monkeypatch.setattr(learner.critic, '_judge', slow(learner.critic._judge, 1000.0))
    monkeypatch.setattr(learner.algorithm, 'remember', slow(learner.algorithm.remember, 1000.0))
    monkeypatch.setattr(module, 'check_health', slow(module.check_health, 500.0))
    monkeypatch.setattr(module, 'executed_gap', slow(module.executed_gap, 200.0))
    for update in range(2):
        learner.update(make_rollout(learner.policy, seed=update, version=learner.version))
    # Of the policy, of the critic (which remembers the first rollout) and of Q.
    assert steps[0] == 2 * 2 * 2 + 3 * (4 + 8) + 5 * (3 + 2)
    assert learner.gradient_s == steps[0] < clock[0] / 10
    assert (learner.health_s, learner.gap_s) == (1000.0, 400.0)
