# SPDX-License-Identifier: Apache-2.0
"""One process of test_parallel: learns on fixed rollouts and writes what became of the policy."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dipod_ros.learning import parallel
from dipod_ros.learning.algorithms.self_distillation import InterleavedConfig
from dipod_ros.learning.collapse import HealthConfig
from dipod_ros.learning.critic import CriticConfig
from dipod_ros.learning.learner import Learner
from dipod_ros.learning.learner_state import LearnerConfig
from dipod_ros.learning.q_critic import QCriticConfig
from dipod_ros.learning.rollout import Rollout
from dipod_ros.learning.run import RunConfig, TrainingRun
from dipod_ros.policy.flow import load_policy


def rollout_of(learner: Learner, count: int = 90) -> Rollout:
    """Return decisions of the present policy; the reward likes one direction."""
    policy = learner.behaviour(learner.version)
    rng = np.random.default_rng(learner.updates)
    observations = rng.normal(size=(count, policy.spec.observation_size)).astype(np.float32)
    noise = rng.normal(size=(count, policy.spec.noise_size)).astype(np.float32)
    chunks = policy.act(observations, noise)
    rewards = (chunks.reshape(count, -1)[:, 0] > 0).astype(np.float32)
    last = np.ones(count, dtype=bool)
    return Rollout(
        observations=observations,
        noise=noise,
        chunks=chunks,
        rewards=rewards,
        next_observations=observations,
        terminated=last,
        last=last,
        version=np.full(count, learner.version, dtype=np.int64),
        success=rewards > 0,
        returns=rewards,
        control_steps=count,
    )


def main(checkpoint: str, folder: str, what: str = '') -> None:
    """Learn for three updates and write weights and metrics.

    `what`: q_critic for one beside it; few for 4 decisions an update; run for a run in a folder of
    each process's own; uneven and settings for something that is not the same in all of them.
    """
    parallel.join()
    name, rank = f'{parallel.world_size()}-{parallel.rank()}', parallel.rank()
    settings = LearnerConfig(
        # 90 rows in 4 minibatches of 23, 23, 23 and 21: two processes never share them evenly.
        algorithm=InterleavedConfig(beta=0.1, epochs=3, minibatches=4, samples_per_action=4),
        critic=CriticConfig(width=16, epochs=2),
        health=HealthConfig(states=16, actions_per_state=4, max_cfm_ratio=9.0),
        q_critic=QCriticConfig(members=2, width=16, first_rounds=2, rounds=2, steps=5, imagined=7)
        if what == 'q_critic'
        else None,
        critic_warmup_updates=rank if 'settings' in what else 0,
        gap_every=0,
    )
    if 'run' in what:
        config = RunConfig(learner=settings, tensorboard=False)
        run = TrainingRun(Path(folder) / f'run-{rank}', Path(checkpoint), config)
        learner = run.learner
        count = 90 + (rank if 'uneven' in what else 0)
        rows = [run.update(rollout_of(learner, count))[0] for _ in range(3)]
        run.close()
    else:
        learner = Learner(load_policy(checkpoint), settings)
        count = 4 if what == 'few' else 90
        rows = [learner.update(rollout_of(learner, count)) for _ in range(3)]
    tensors = dict(learner.policy.state_dict())
    if learner.q is not None:
        tensors |= learner.q.state()
    save_file(tensors, Path(folder) / f'{name}.safetensors')
    (Path(folder) / f'{name}.json').write_text(json.dumps(rows))
    parallel.leave()


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
