# SPDX-License-Identifier: Apache-2.0
"""`dipod bench train`: what an update costs, and how much of learning is gradient math.

Every figure stands beside its baseline of the same run: DiPOD beside FPO++ (the same update without
the regulariser), bfloat16 beside float32, and the whole loop beside Stable-Baselines3's PPO where
that is installed. Sides take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dipod_ros.cli.bench_measure import Options, no_garbage_collection, spread
from dipod_ros.errors import UserError
from dipod_ros.learning.algorithms.base import Batch, run_epochs
from dipod_ros.learning.algorithms.dipod import DipodConfig
from dipod_ros.learning.learner import Learner
from dipod_ros.learning.learner_state import LearnerConfig
from dipod_ros.learning.q_critic import QCriticConfig
from dipod_ros.learning.rollout import Rollout, collect_episodes
from dipod_ros.learning.seeding import numpy_rng, torch_rng
from dipod_ros.learning.vision import see_with
from dipod_ros.policy.flow import FlowPolicy, load_policy
from dipod_ros.sim.vector_env import ChunkVectorEnv

MS = 1e3


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of one machine; a few minutes, or seconds with `quick`."""
    policy = load_policy(options.flow)
    episodes = options.pick(64, 8)
    env = ChunkVectorEnv(policy.spec.task, episodes, policy.spec.robot, seed=0, autoreset=False)
    see_with(env, policy)
    results = _epoch_cost(policy, _collect(env, policy, 0), options)
    plain = DipodConfig(epochs=options.pick(DipodConfig().epochs, 5))
    results |= _loop_shares(env, policy, LearnerConfig(plain), options)
    recommended = replace(plain, learning_rate=1e-3, ema=0.95)
    # The first update warms up: how long it takes does not count.
    critic = QCriticConfig(first_rounds=options.pick(QCriticConfig().first_rounds, 1))
    with_critic = LearnerConfig(recommended, q_critic=critic)
    results['with_q_critic'] = _loop_shares(env, policy, with_critic, options)
    results['outside'] = _outside(env, options)
    return results


def _collect(env: Any, policy: FlowPolicy, update: int, version: int = 0) -> Rollout:
    rng = numpy_rng(0, 'bench-train', update)
    return collect_episodes(
        env,
        policy.act,
        policy.spec.noise_size,
        rng,
        seed=int(rng.integers(2**31)),
        version=version,
    )


def _epoch_cost(policy: FlowPolicy, rollout: Rollout, options: Options) -> dict[str, Any]:
    """Time one epoch of each side on the same batch, in turns."""
    sides = {
        'fpo_float32': DipodConfig(beta=0.0, epochs=1),
        'dipod_float32': DipodConfig(beta=0.1, epochs=1),
        'fpo_bfloat16': DipodConfig(beta=0.0, epochs=1, precision='bfloat16'),
        'dipod_bfloat16': DipodConfig(beta=0.1, epochs=1, precision='bfloat16'),
    }
    rounds = options.pick(60, 8)
    runs = {name: _epoch(policy, rollout, config) for name, config in sides.items()}
    times = {name: np.empty(rounds) for name in sides}
    with no_garbage_collection(), tqdm(total=rounds + 2, desc='train: epochs', leave=False) as bar:
        for i in range(-2, rounds):  # two rounds warm up
            # Not always in the same order: whoever comes first after a pause has a cold cache.
            names = list(runs) if i % 2 else list(runs)[::-1]
            for name in names:
                start = time.process_time()
                runs[name]()
                if i >= 0:
                    times[name][i] = time.process_time() - start
            bar.update()

    def ratio(a: str, b: str) -> float:
        return float(np.median(times[a] / times[b]))

    return {
        'decisions': len(rollout),
        'samples_per_step': sides['fpo_float32'].samples_per_step,
        **{k: v for name in sides for k, v in spread(f'{name}_epoch_ms', times[name] * MS).items()},
        'dipod_over_fpo': ratio('dipod_float32', 'fpo_float32'),
        'dipod_over_fpo_bfloat16': ratio('dipod_bfloat16', 'fpo_bfloat16'),
        'bfloat16_speedup': ratio('fpo_float32', 'fpo_bfloat16'),
    }


def _epoch(policy: FlowPolicy, rollout: Rollout, config: DipodConfig) -> Callable[[], None]:
    """Return a function that runs one epoch of gradient steps on the whole rollout."""
    algorithm = config.build()
    learning = algorithm.start(policy)
    optimizer = torch.optim.Adam(algorithm.parameters(learning), lr=config.learning_rate)
    normalizer = policy.normalizer
    batch = Batch(
        normalizer.observation(torch.from_numpy(rollout.observations)),
        normalizer.action(torch.from_numpy(rollout.chunks).flatten(1)),
        torch.from_numpy(rollout.noise),
        torch.randn(len(rollout), generator=torch_rng(0, 'advantages')),
        {},
    )
    with torch.no_grad():
        batch = replace(batch, memory=algorithm.remember(policy, batch, torch_rng(0, 'path')))
    order = torch_rng(0, 'order')
    return lambda: run_epochs(algorithm, learning, optimizer, batch, order) and None


def _loop_shares(
    env: Any, policy: FlowPolicy, config: LearnerConfig, options: Options
) -> dict[str, Any]:
    """Return where the time of learning goes: rollouts, gradients, everything else."""
    learner = Learner(policy, replace(config, critic_warmup_updates=0))
    spent = {'rollout': 0.0, 'update': 0.0, 'gradient': 0.0, 'health': 0.0, 'gap': 0.0}
    steps, gap_s = 0, 0.0
    updates = options.pick(10, 2)
    for update in tqdm(range(updates + 1), desc='train: loop', leave=False):
        start = time.process_time()
        rollout = _collect(env, learner.policy, update, learner.version)
        middle = time.process_time()
        before = _timed(learner)
        learner.update(rollout)
        parts = {name: value - before[name] for name, value in _timed(learner).items()}
        gap_s = parts['gap'] or gap_s  # of the newest measurement
        if update == 0:  # warms up; the ELBO gap of every tenth update is still among the others
            continue
        parts |= {'rollout': middle - start, 'update': time.process_time() - middle}
        spent = {name: value + parts[name] for name, value in spent.items()}
        steps += rollout.control_steps
    total = spent['rollout'] + spent['update']
    # With a gap in every `gap_every`th update, however many were run here.
    every_s = gap_s / config.gap_every
    loop_s = (total - spent['gap']) / updates + every_s
    return {
        'loop_updates': updates,
        'update_s': spent['update'] / updates,
        'rollout_s': spent['rollout'] / updates,
        'not_gradient_share': 1 - spent['gradient'] / total,
        'gap_s': gap_s,
        'drift_log_share': every_s / loop_s,
        'health_share': spent['health'] / updates / loop_s,
        'learning_steps_per_s': steps / total,
    }


def _timed(learner: Learner) -> dict[str, float]:
    return {
        'gradient': learner.gradient_s,
        'health': learner.health_s,
        'gap': learner.gap_s,
    }


def _outside(env: Any, options: Options) -> dict[str, Any]:
    """Return env steps per second of ours and of Stable-Baselines3's PPO, or why there are none."""
    from dipod_ros.cli.bench_learn_speed import env_speed, ppo_speed

    try:
        rounds = options.pick(3, 1)
        ppo = ppo_speed('Hopper-v5', steps=options.pick(16_384, 2048), rounds=rounds)
        ours = env_speed('hopper', rounds=rounds)
    except UserError as error:
        return {'not_measured': str(error)}
    return {
        'task': 'Hopper-v5',
        'sb3_ppo_steps_per_s': ppo.per_cpu_s,
        'env_steps_per_s': ours['ours'].per_cpu_s,
        'stock_env_steps_per_s': ours['stock'].per_cpu_s,
        'env_over_sb3_ppo': ours['ours'].per_cpu_s / ppo.per_cpu_s,
    }
