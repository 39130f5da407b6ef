# SPDX-License-Identifier: Apache-2.0
"""Owns how fast the external benchmarks step here, beside the stock env; library code of a bench.

One thread, random actions, whole episodes. Ours and theirs take turns, and each figure is the
median of the rounds, so a machine that is busy for a while slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Control steps per round and side; the cube's take 1 ms each.
STEPS = {'cube_single': 2_000, 'hopper': 12_000, 'walker2d': 12_000}
WORLDS = 64


@dataclass(frozen=True)
class Speed:
    """Control steps per second of wall-clock: the median of the rounds, and all of them."""

    steps_per_s: float
    rounds: tuple[float, ...]
    # The same per second of processor time, which other processes take nothing away from.
    per_cpu_s: float


def env_speed(task: str, rounds: int = 3, seed: int = 0) -> dict[str, Speed]:
    """Return the speed of `ours` and of `stock` for an external task, measured in turns.

    Raises UserError for an unknown task or a package that is missing.
    """
    from dipod_ros.errors import UserError

    if task not in STEPS:
        raise UserError(f'no speed to measure for {task!r}; external tasks are {list(STEPS)}')
    sides = {'ours': _ours(task, seed), 'stock': _stock(task, seed)}
    return _in_turns(sides, STEPS[task], rounds)


def ppo_speed(env_id: str = 'Hopper-v5', steps: int = 16_384, rounds: int = 3) -> Speed:
    """Return the env steps per second of Stable-Baselines3's PPO at its defaults, one env.

    Collection and updates, as a user sees them; one thread. Raises UserError when it is missing.
    """
    try:
        from stable_baselines3 import PPO
    except ImportError as error:
        from dipod_ros.errors import UserError

        raise UserError(
            f'this needs Stable-Baselines3 ({error}): pip install "dipod_ros[bench]"'
        ) from error
    model = PPO('MlpPolicy', env_id, seed=0, device='cpu')

    def run(count: int) -> int:
        before = model.num_timesteps
        model.learn(count, reset_num_timesteps=False)
        return model.num_timesteps - before

    return _in_turns({'ppo': run}, steps, rounds)['ppo']


def _in_turns(sides: dict[str, Callable[[int], int]], steps: int, rounds: int) -> dict[str, Speed]:
    """Time `rounds` rounds of each side; a side runs about that many steps and returns how many."""
    from dipod_ros.errors import UserError

    if rounds < 1:
        raise UserError(f'rounds must be at least 1, got {rounds}')
    wall: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start, used = time.perf_counter(), time.process_time()
            done = run(steps)
            wall[name].append(done / (time.perf_counter() - start))
            processor[name].append(done / (time.process_time() - used))
    return {
        name: Speed(
            statistics.median(wall[name]), tuple(wall[name]), statistics.median(processor[name])
        )
        for name in sides
    }


def _ours(task: str, seed: int) -> Callable[[int], int]:
    import numpy as np

    from dipod_ros.sim.external.registry import make_env

    env = make_env(task, WORLDS, seed)
    rng = np.random.default_rng(seed)

    def run(count: int) -> int:
        done = 0
        while done < count:
            env.reset(options={'reset_mask': env.terminated | env.truncated})
            chunk = rng.uniform(-1, 1, env.action_space.shape)
            done += int(env.step(chunk)[4]['control_steps'].sum())
        return done

    return run


def _stock(task: str, seed: int) -> Callable[[int], int]:
    import numpy as np

    env, limit = _stock_env(task)
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)

    def run(count: int) -> int:
        in_episode = 0
        for _ in range(count):
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            _, _, terminated, truncated, _ = env.step(action)
            in_episode += 1
            if terminated or truncated or in_episode == limit:
                env.reset()
                in_episode = 0
        return count

    return run


def _stock_env(task: str) -> tuple[Any, int]:
    """Return the env that a user of the benchmark makes, and its episodes' length here."""
    import warnings

    import gymnasium

    from dipod_ros.errors import UserError
    from dipod_ros.sim.external.registry import GYMNASIUM

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if task in GYMNASIUM:
                return gymnasium.make(GYMNASIUM[task]), 1000
            import ogbench  # noqa: F401  registers its envs

            # As many steps as our episodes have, so that both meet the same mix of resets.
            return gymnasium.make('cube-single-singletask-task2-v0'), 80
    except ImportError as error:
        raise UserError(
            f'the stock env is not installed ({error}): pip install "dipod_ros[bench]"'
        ) from error
