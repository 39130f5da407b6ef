# SPDX-License-Identifier: Apache-2.0
"""`dipod bench sim`: the vectorised worlds beside raw MuJoCo, and lockstep through ROS.

The lockstep part, with its own baseline, is bench_lockstep.py.
"""

from __future__ import annotations

import time
from typing import Any

import mujoco
import numpy as np
from tqdm import tqdm

from dipod_ros.cli.bench_lockstep import measure_lockstep
from dipod_ros.cli.bench_measure import Options, no_garbage_collection, spread
from dipod_ros.policy.flow import FlowPolicy, load_policy
from dipod_ros.sim.vector_env import ChunkVectorEnv
from dipod_ros.sim.world import STATE

WORLDS = 256
MS = 1e3


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of the worlds by themselves and of lockstep through ROS."""
    policy = load_policy(options.student)
    return {
        **_measure_worlds(policy, options.pick(20, 3)),
        **measure_lockstep(options),
    }


def _measure_worlds(policy: FlowPolicy, rounds: int) -> dict[str, Any]:
    """Time steps of the env, and the same physics by mj_step; the policy acts, untimed."""
    spec = policy.spec
    env = ChunkVectorEnv(spec.task, WORLDS, spec.robot, seed=0, threads=1)
    rng = np.random.default_rng(0)
    observation, _ = env.reset()
    env_s, raw_s = np.empty(rounds), np.empty(rounds)
    with no_garbage_collection(), tqdm(total=rounds + 1, desc='sim: worlds', leave=False) as bar:
        for i in range(-1, rounds):  # the first round warms up
            noise = rng.standard_normal((WORLDS, spec.noise_size)).astype(np.float32)
            actions = policy.act(observation, noise)
            states = env.episodes.worlds.state.copy()
            start = time.perf_counter()
            observation, *_, info = env.step(actions)
            took = time.perf_counter() - start
            raw = _time_raw_steps(env, states, info['executed'])
            if i >= 0:
                env_s[i], raw_s[i] = took, raw
            bar.update()
    control_steps = WORLDS * env.horizon
    return {
        'task': spec.task,
        'worlds': WORLDS,
        'env_steps_per_s': float(control_steps / np.median(env_s)),
        'raw_steps_per_s': float(control_steps / np.median(raw_s)),
        'raw_mj_step_ratio': float(np.median(raw_s / env_s)),
        'physics_steps_per_control_step': env.task.world.substeps,
        **spread('env_step_ms', env_s * MS),
        **spread('raw_step_ms', raw_s * MS),
    }


def _time_raw_steps(env: ChunkVectorEnv, states: np.ndarray, points: np.ndarray) -> float:
    """Return the seconds that mj_step alone takes for what the env did.

    From the same states [N, S], towards the same control points [N, H, A], as many physics steps.
    """
    world = env.task.world
    model, substeps = world.model, world.substeps
    data = mujoco.MjData(model)
    seconds = 0.0
    for state, chunk in zip(states, points, strict=True):
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, state, STATE)
        start = time.perf_counter()
        for point in chunk:
            data.ctrl[world.actuator_index] = point
            mujoco.mj_step(model, data, substeps)
        seconds += time.perf_counter() - start
    return seconds
