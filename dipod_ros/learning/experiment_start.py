# SPDX-License-Identifier: Apache-2.0
"""What a job of the benchmark begins with: its worlds and the checkpoint that all seeds share."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.suites import METHODS, REGIMES, TASKS, Job
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.flow import FlowPolicy, load_policy
from dipod_ros.resources import share_dir
from dipod_ros.sim.tasks.registry import task_names
from dipod_ros.sim.vector_env import ChunkVectorEnv

# Of the random weights of `scratch`: the same for all seeds, as a cloned start is.
SCRATCH_SEED = 0


def make_worlds(job: Job, count: int, seed: int) -> Any:
    """Return `count` worlds of the job's task that freeze when their episode is over."""
    if job.task in task_names():
        env = ChunkVectorEnv(job.task, count, 'arm7', seed=seed, autoreset=False)
    else:
        try:
            from dipod_ros.sim.external.registry import make_env
        except ModuleNotFoundError as error:
            raise UserError(f'task {job.task} is not part of this installation') from error
        env = make_env(job.task, count, seed)
    if REGIMES[job.regime].tight:
        tolerance = TASKS[job.task].tight_tolerance
        if tolerance is None:
            fit = [name for name, task in TASKS.items() if task.tight_tolerance]
            raise UserError(f'regime {job.regime} is not for {job.task}: use one of {fit}')
        env.task.tolerance = tolerance
    return env


def start_folder(task: str, run_dir: Path) -> Path:
    """Return the checkpoint that learning starts from, making it first where none is shipped.

    It is kept below `run_dir`, where one process makes it and others wait.
    """
    shipped = share_dir() / 'models' / f'{task}_flow'
    if shipped.is_dir():
        return ckpt.read_manifest(shipped).path
    try:
        from dipod_ros.learning.starts import make_start
    except ModuleNotFoundError as error:
        raise UserError(f'there is no start for task {task} in this installation') from error
    folder = Path(run_dir) / 'starts'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'.{task}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Path(make_start(task, folder / task, seed=0))


def start_policy(job: Job, run_dir: Path) -> tuple[FlowPolicy, str]:
    """Return the policy that learning starts from and the sha256 of its checkpoint."""
    folder = start_folder(job.task, run_dir)
    policy = load_policy(folder)
    if REGIMES[job.regime].start == 'scratch':
        torch.manual_seed(SCRATCH_SEED)
        fresh = FlowPolicy(policy.spec)
        fresh.normalizer.load_state_dict(policy.normalizer.state_dict())
        policy = fresh
    sampler = METHODS[job.method].sampler
    if sampler is not None:
        policy = policy.with_sampler(sampler)
    return policy, ckpt.read_manifest(folder).sha256
