# SPDX-License-Identifier: Apache-2.0
"""Owns the scripted, imperfect demonstrations of OGBench's cube task. No ROS, no torch.

OGBench's own oracle acts, with flaws that last for a whole episode: it is slow, and it sees the
cube where it is not. Noise of zero mean would not do: cloning averages it away, and what is cloned
is better than what was shown, with nothing left to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipod_ros.sim.demonstrations import Demonstrations
from dipod_ros.sim.external.ogbench_cube import OgbenchCubeEnv


@dataclass(frozen=True)
class Flaws:
    """How a demonstrator is worse than the oracle; drawn per episode, but for the noise."""

    speed: tuple[float, float] = (0.4, 0.9)  # share of the oracle's motion, uniform
    grasp_offset_m: float = 0.015  # std of where it takes the cube to be, along x and y
    noise: float = 0.1  # std of each action of each control step, in the env's units


def collect_cube(
    episodes: int,
    seed: int = 0,
    flaws: Flaws | None = None,
    progress: Callable[[int], None] | None = None,
) -> Demonstrations:
    """Record episodes of OgbenchCubeEnv, failures included.

    A chunk begins at every control step, not at every fifth: the rows overlap. `progress` is
    called with 1 after each episode. Raises UserError when OGBench is missing.
    """
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

    flaws = flaws or Flaws()
    env = OgbenchCubeEnv(1, seed)
    oracle = CubeMarkovOracle(env=env.cube, min_norm=0.4)
    observations, actions, owners, success = [], [], [], []
    for episode in range(episodes):
        if episode:
            env.reset()
        rng = np.random.default_rng([seed, 1, episode])
        speed = rng.uniform(*flaws.speed)
        offset = np.append(rng.normal(0, flaws.grasp_offset_m, 2), 0)
        oracle.reset(None, None)
        # The oracle draws where to go after its success from numpy's global generator.
        oracle._final_pos = rng.uniform(*env.cube._arm_sampling_bounds)
        oracle._final_yaw = rng.uniform(-np.pi, np.pi)
        seen, done, placed = [], [], False
        # To the end of the chunk in which it succeeds, as an episode of the env is played.
        while len(done) < env.max_steps and not (placed and len(done) % env.horizon == 0):
            seen.append(env.observe_world(0, len(done)))
            state = env.describe(0)
            state['privileged/block_0_pos'] = state['privileged/block_0_pos'] + offset
            action = oracle.select_action(None, state)
            action[:4] *= speed
            done.append(np.clip(action + rng.normal(0, flaws.noise, 5), -1, 1))
            placed |= env.advance(0, done[-1])
        windows = len(done) - env.horizon + 1
        observations += seen[:windows]
        actions += [done[k : k + env.horizon] for k in range(windows)]
        owners += [episode] * windows
        success.append(placed)
        if progress is not None:
            progress(1)
    return Demonstrations(
        observations=np.array(observations, dtype=np.float32),
        actions=np.array(actions, dtype=np.float32),
        episodes=np.array(owners, dtype=np.int64),
        success=np.array(success),
    )
