# SPDX-License-Identifier: Apache-2.0
"""What a job of the benchmark begins with: its worlds and the checkpoint that all seeds share."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.jobs import Job
from dipod_ros.learning.bench.methods import METHODS
from dipod_ros.learning.bench.regimes import REGIMES, TASKS
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.demonstrations.scripted import record
from dipod_ros.learning.rollout import collect_episodes
from dipod_ros.learning.seeding import numpy_rng
from dipod_ros.learning.state_io import load_state, pack_module, save_state, unpack_module
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.flow import FlowPolicy, load_policy
from dipod_ros.resources import share_dir
from dipod_ros.sim.tasks.registry import task_names
from dipod_ros.sim.vector_env import ChunkVectorEnv

# All seeds of a benchmark begin with the same policy; this one decides it.
START_SEED = 0
STARTS = Path('runs/starts')
# As many as the shipped models were cloned from (`dipod models`).
DEMONSTRATIONS = 300


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


def start_folder(task: str, say: Callable[[str], None] | None = None) -> Path:
    """Return the checkpoint that learning starts from, making it first where none is shipped.

    It is kept in `runs/starts`, where one process makes it and others wait.
    """
    shipped = share_dir() / 'models' / f'{task}_flow'
    if shipped.is_dir():
        return ckpt.read_manifest(shipped).path
    try:
        from dipod_ros.learning.bench.starts import make_start
    except ModuleNotFoundError as error:
        raise UserError(f'there is no start for task {task} in this installation') from error
    with _locked(STARTS / f'.{task}.lock'):
        return Path(make_start(task, STARTS / task, seed=START_SEED, say=say))


def known_start(task: str) -> str | None:
    """Return the sha256 of the start of a task, or None where it has not been made here."""
    with contextlib.suppress(UserError):
        shipped = share_dir() / 'models' / f'{task}_flow'
        return ckpt.read_manifest(shipped if shipped.is_dir() else STARTS / task).sha256
    return None


def start_demonstrations(task: str) -> Demonstrations:
    """Return the demonstrations that the start of a task was cloned from.

    Those of a shipped start are recorded again, by the commands on its card: the same seed gives
    the same data.
    """
    if task not in task_names():
        # Made with the start, and beside it.
        return Demonstrations.load(start_folder(task).parent / 'demonstrations.safetensors')
    file = STARTS / 'demonstrations' / f'{task}.safetensors'
    with _locked(file.with_suffix('.lock')):
        if not file.is_file():
            record(task, DEMONSTRATIONS, START_SEED).save(file)
    return Demonstrations.load(file)


def start_policy(job: Job, run_dir: Path) -> tuple[FlowPolicy, str]:
    """Return the policy that learning starts from and the sha256 of its checkpoint."""
    folder = start_folder(job.task)
    sha256 = ckpt.read_manifest(folder).sha256
    policy = load_policy(folder)
    if REGIMES[job.regime].start == 'scratch':
        torch.manual_seed(START_SEED)
        fresh = FlowPolicy(policy.spec)
        fresh.normalizer.load_state_dict(policy.normalizer.state_dict())
        policy = fresh
    if METHODS[job.method].module == 'gaussian_ppo':
        return _gaussian(job, policy, Path(run_dir), sha256), sha256
    sampler = METHODS[job.method].sampler
    return (policy if sampler is None else policy.with_sampler(sampler)), sha256


def _gaussian(job: Job, flow: FlowPolicy, run_dir: Path, sha256: str) -> FlowPolicy:
    """Return the Gaussian closest to a flow in the states that the flow meets; made once."""
    from dipod_ros.learning.algorithms.gaussian_ppo import GaussianPolicy, gaussian_start

    name = f'gaussian-{job.task}-{job.regime}'
    file = run_dir / 'starts' / f'{name}.safetensors'
    with _locked(run_dir / 'starts' / f'.{name}.lock'):
        if file.is_file():
            tensors, info = load_state(file)
            if info == {'flow': sha256}:
                policy = GaussianPolicy(flow)
                unpack_module('policy', policy, tensors)
                return policy.requires_grad_(False)
        task = TASKS[job.task]
        env = make_worlds(job, min(64, task.evaluation_episodes), seed=START_SEED)
        rng = numpy_rng(START_SEED, 'gaussian-start')
        size = flow.spec.noise_size
        rollout = collect_episodes(env, flow.act, size, rng, seed=int(rng.integers(2**31)))
        observations = flow.normalizer.observation(torch.from_numpy(rollout.observations))
        policy = gaussian_start(flow, observations, START_SEED)
        save_state(file, pack_module('policy', policy), {'flow': sha256})
        return policy


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep other processes out meanwhile."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(file, 'w', encoding='utf-8')  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f'cannot write {file.parent}: {error.strerror or error}') from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
