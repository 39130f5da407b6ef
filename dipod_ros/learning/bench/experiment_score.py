# SPDX-License-Identifier: Apache-2.0
"""What a job of the benchmark measures when learning is over, on episodes of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipod_ros.learning.bench.experiment_start import make_worlds
from dipod_ros.learning.bench.jobs import Job
from dipod_ros.learning.bench.methods import METHODS
from dipod_ros.learning.bench.regimes import REGIMES, TASKS
from dipod_ros.learning.drift.report import executed_gap
from dipod_ros.learning.evaluate import SuccessRate, evaluate_policy
from dipod_ros.learning.health import elbo_gap_nats
from dipod_ros.learning.rollout import Rollout, collect_episodes
from dipod_ros.learning.seeding import numpy_rng, torch_rng
from dipod_ros.learning.students.distill import DistillConfig, distill
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.spec import SamplerSpec

# Evaluations of the network, and the sampler that has as many.
SWEEP = {
    1: SamplerSpec('euler', 1),
    2: SamplerSpec('midpoint', 1),
    4: SamplerSpec('midpoint', 2),
    10: SamplerSpec('midpoint', 5),
    50: SamplerSpec('midpoint', 25),
}
ZERO_NOISE = (1, 10)
# Below this effort the estimates of the gap are small as well; they are the same for all others.
SMALL = 0.1
# All jobs are judged on the same episodes: what differs is the policy.
EVALUATION_SEED = 20_000


@dataclass(frozen=True)
class Effort:
    """Episodes of each evaluation, worlds side by side, and the size of the distillation."""

    final: int
    sweep: int
    worlds: int
    distill_steps: int
    distill_pairs: int

    @classmethod
    def of(cls, job: Job) -> Effort:
        """Return what the task asks for, times the share that the regime leaves."""
        task, share = TASKS[job.task], REGIMES[job.regime].effort
        final = max(1, int(share * task.evaluation_episodes))
        sweep = max(1, int(share * task.sweep_episodes))
        whole = DistillConfig()
        return cls(
            final,
            sweep,
            min(task.worlds, final, sweep),
            max(1, int(share * whole.train_steps)),
            max(whole.batch, int(share * whole.pairs)),
        )


def score_of(job: Job, rate: SuccessRate) -> float:
    """Return what the task is judged by."""
    return rate.success if TASKS[job.task].score_kind == 'success' else rate.return_mean


def without_noise(policy: FlowPolicy, keeps_flow: bool) -> FlowPolicy:
    """Return a policy of the same weights whose noise belongs to one action: it can be distilled.

    A method that keeps the flow is midpoint's to integrate; one that trained the steps of a chain
    keeps these steps, without what is added after them.
    """
    own = policy.spec.sampler
    if hasattr(policy, 'to_flow'):
        return policy.to_flow()
    if own.solver in ('euler', 'midpoint'):
        return policy
    return policy.with_sampler(SWEEP[10] if keeps_flow else SamplerSpec('euler', own.steps))


def measure(
    job: Job, policy: FlowPolicy, keeps_flow: bool, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Return every final figure of a job.

    Args:
        job: task, regime and seed.
        policy: what learning ended with.
        keeps_flow: whether its velocity is still the flow of its own actions.
        progress: called with the share that is done.

    """
    effort = Effort.of(job)
    env = make_worlds(job, effort.worlds, seed=EVALUATION_SEED)
    policy = policy.clone()

    def rate(candidate: FlowPolicy, episodes: int, zero_noise: bool = False) -> SuccessRate:
        return evaluate_policy(
            env, candidate, episodes=episodes, seed=EVALUATION_SEED, zero_noise=zero_noise
        )

    flow = METHODS[job.method].flow
    # As it would be served: noise that a method explores with is not part of it.
    quiet = without_noise(policy, keeps_flow) if flow else policy
    final = rate(quiet, effort.final, zero_noise=not flow)
    explores = not flow or quiet is not policy
    result: dict[str, Any] = {
        'score': score_of(job, final),
        'score_exploring': score_of(job, rate(policy, effort.final)) if explores else None,
        'final': final.to_dict(),
        'sampler': str(quiet.spec.sampler) if flow else 'mean',
        'sweep': {},
        'zero_noise': {},
    }
    if not flow:
        return result
    for number, (evaluations, sampler) in enumerate(SWEEP.items()):
        progress((1 + number) / 8)
        with_sampler = policy.with_sampler(sampler)
        result['sweep'][str(evaluations)] = score_of(job, rate(with_sampler, effort.sweep))
        if evaluations in ZERO_NOISE:
            score = score_of(job, rate(with_sampler, effort.sweep, zero_noise=True))
            result['zero_noise'][str(evaluations)] = score
    progress(6 / 8)
    observations = _observations(job, env, quiet, effort.final)
    if keeps_flow:
        result['gap_nats'] = fitted_gap(job, policy, observations, 'final')
        result['exact_gap_nats'] = exact_gap(job, policy, observations, 'final')
    config = DistillConfig(
        steps=1, train_steps=effort.distill_steps, pairs=effort.distill_pairs, seed=job.seed
    )
    student = distill(quiet, observations, config)
    progress(7 / 8)
    result['student'] = score_of(job, rate(student, effort.final))
    return result


def fitted_gap(job: Job, policy: FlowPolicy, observations: np.ndarray, when: int | str) -> float:
    """Return the ELBO gap (nats) as a fit finds it, mostly far too low, at raw observations [M, O].

    `when` names its random draws.
    """
    normalised = policy.normalizer.observation(torch.from_numpy(observations))
    rng = torch_rng(job.seed, when, 'benchmark-gap')
    small = {'actions': 512, 'fit_steps': 25} if REGIMES[job.regime].effort < SMALL else {}
    return elbo_gap_nats(policy, normalised, rng, **small)


def exact_gap(
    job: Job, policy: FlowPolicy, observations: np.ndarray, when: int | str
) -> float | None:
    """Return the ELBO gap (nats) itself at raw observations [M, O]; None for a random sampler."""
    if policy.spec.sampler.solver not in ('euler', 'midpoint'):
        return None
    normalised = policy.normalizer.observation(torch.from_numpy(observations))
    rng = torch_rng(job.seed, when, 'benchmark-exact-gap')
    small = {'actions': 32} if REGIMES[job.regime].effort < SMALL else {}
    return executed_gap(policy, normalised, rng, **small).mean


def _observations(job: Job, env: Any, teacher: FlowPolicy, episodes: int) -> np.ndarray:
    """Return raw observations that the teacher meets, apart from those of the evaluation."""
    rollouts = []
    for batch in range(-(-episodes // env.num_envs)):
        rng = numpy_rng(job.seed, 'benchmark-distil', batch)
        seed = int(rng.integers(2**31))
        size = teacher.spec.noise_size
        rollouts.append(collect_episodes(env, teacher.act, size, rng, seed=seed))
    return Rollout.concatenate(rollouts).observations
