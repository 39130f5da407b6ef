# SPDX-License-Identifier: Apache-2.0
"""One training run of the benchmark: a job in, a file of results out; a killed one goes on.

    <run_dir>/<task>/<regime>/<method>/seed<k>.json             the result, written last
                                       seed<k>.run.json         while it learns: its curve ...
                                       seed<k>.state.safetensors  ... and its learner
                                       seed<k>.policy/          checkpoint at the end

The learner's collapse alarm is off, unless the method says otherwise: a benchmark has to see what
a method does by itself. What the alarm would have said is recorded. torch, no ROS.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.experiment_result import (
    SCHEMA,
    collapsed,
    fits,
    numbers,
    read_result,
    settings_of,
    smooth,
    steps_to,
    write_json,
)
from dipod_ros.learning.bench.experiment_score import (
    exact_gap,
    fitted_gap,
    measure,
    without_noise,
)
from dipod_ros.learning.bench.experiment_start import (
    make_worlds,
    start_demonstrations,
    start_policy,
)
from dipod_ros.learning.bench.jobs import Job, critic_settings, update_config
from dipod_ros.learning.bench.methods import METHODS
from dipod_ros.learning.bench.program import program
from dipod_ros.learning.bench.regimes import REGIMES, TASKS
from dipod_ros.learning.collapse import HealthConfig, first_alarm
from dipod_ros.learning.critic import CriticConfig
from dipod_ros.learning.imitation import ImitationConfig
from dipod_ros.learning.learner import Learner
from dipod_ros.learning.learner_state import LearnerConfig
from dipod_ros.learning.q_critic import QCriticConfig
from dipod_ros.learning.rollout import Rollout, collect_episodes
from dipod_ros.learning.seeding import numpy_rng

log = logging.getLogger(__name__)

# Updates between states on disk; a killed job repeats at most these.
SAVE_EVERY = 10
# Updates between the estimates by which a method adapts to the gap.
ADAPT_EVERY = 4
ALARM = HealthConfig()
# Only a policy that is no number any more is put back.
NO_ALARM = HealthConfig(max_cfm_ratio=math.inf, min_action_std_ratio=0.0)
CURVE = (
    'success_rate', 'return_mean', 'cfm_ratio', 'action_std_ratio', 'clip_fraction',
    'explained_variance', 'advantage_mean', 'advantage_rms', 'beta', 'lag_mean', 'alarms',
)  # fmt: skip

Progress = Callable[[float, str], None]


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """A job was asked to stop; what it has done is on disk."""


def run_job(
    job: Job,
    run_dir: Path,
    progress: Progress = lambda share, text: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a job, or what is left of it, and return its result; one that is there is only read.

    Args:
        job: what to run.
        run_dir: folder of the benchmark.
        progress: called with the share that is done and a few words.
        stop: asked between updates; True saves, and raises Interrupted.

    """
    file = job.file(run_dir)
    done = read_result(file)
    if done is not None:
        return done
    if METHODS[job.method].module == 'outside':
        return _run_outside(job, file, progress, stop)
    training = Training(job, Path(run_dir))
    while not training.finished:
        if stop():
            training.save()
            raise Interrupted(str(job))
        text = training.step()
        progress(0.8 * min(1.0, training.learner.control_steps / training.budget), text)
        if training.finished or training.learner.updates % SAVE_EVERY == 0:
            training.save()
    began = time.monotonic()
    keeps_flow = training.learner.algorithm.keeps_flow
    figures = measure(
        job,
        training.learner.policy,
        keeps_flow,
        lambda share: progress(0.8 + 0.2 * share, 'measuring'),
    )
    result = training.report() | figures | {'measure_s': time.monotonic() - began}
    result['program'] = program()
    if training.method.flow:  # a Gaussian has no checkpoint
        lineage = {'start': training.start_sha256, 'job': str(job)}
        policy = without_noise(training.learner.policy, keeps_flow)  # which is what was judged
        policy.save(job.file(run_dir, '.policy'), lineage=lineage, overwrite=True)
    write_json(file, result)
    training.discard()
    progress(1.0, 'done')
    return result


def _run_outside(
    job: Job, file: Path, progress: Progress, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Run a job that another library learns; one that is stopped begins again."""
    from dipod_ros.learning.bench.outside import run_outside

    result = run_outside(job, update_config(job), progress, stop)
    if result is None:
        raise Interrupted(str(job))
    write_json(file, result | {'program': program()})
    progress(1.0, 'done')
    return result


class Training:
    """Learning of one job up to its budget of control steps; goes on where a killed one stopped."""

    def __init__(self, job: Job, run_dir: Path) -> None:
        """Take up what is on disk, when it was made with the same settings, or begin."""
        self.job, self.task, self.regime = job, TASKS[job.task], REGIMES[job.regime]
        self.method, config = METHODS[job.method], update_config(job)
        self.budget = self.regime.control_steps or int(self.regime.budget * self.task.control_steps)
        self.episodes = self.regime.episodes or self.task.episodes
        self._state_file = job.file(run_dir, '.state.safetensors')
        self._run_file = job.file(run_dir, '.run.json')
        start, self.start_sha256 = start_policy(job, run_dir)
        imitated, q_critic = self.method.imitation, self.method.q_critic
        critic = CriticConfig(**critic_settings(job))
        if self.regime.window > 1:
            # The window is its memory: it would be fitted to each rollout once more in every update
            # that still learns from it.
            critic = replace(critic, history=1)
        self.learner = Learner(
            start,
            LearnerConfig(
                algorithm=config,
                critic=critic,
                imitation=None if imitated is None else ImitationConfig(**imitated),
                q_critic=None if q_critic is None else QCriticConfig(**q_critic),
                critic_warmup_updates=self.method.critic_warmup_updates,
                max_alarms_in_a_row=0,  # what a method does by itself is the result
                health=ALARM if self.method.guarded else NO_ALARM,
                max_lag=self.regime.lag + self.regime.window - 1,
                # A method that adapts to the gap measures it itself, as part of learning.
                gap_every=ADAPT_EVERY if config.build().adapts_to_gap else 0,
                seed=job.seed,
            ),
            [start_demonstrations(job.task)] if self.method.demonstrations else [],
        )
        self.settings = settings_of(job, self.start_sha256)
        self.curve: list[dict[str, float]] = []
        self.gap_curve: list[list[float]] = []
        self.seconds = {'rollout': 0.0, 'update': 0.0, 'other': 0.0, 'cpu': 0.0}
        self._versions: list[int] = []  # that collected rollout i
        self._pending: deque[Rollout] = deque()
        self._window: deque[Rollout] = deque(maxlen=self.regime.window)
        self._env = make_worlds(job, self.episodes, seed=job.seed)
        self._check(start)
        self._resume()

    @property
    def finished(self) -> bool:
        """Whether the budget has been learned from."""
        return self.learner.control_steps >= self.budget

    def step(self) -> str:
        """Collect, update, and note what happened; return it in a few words."""
        began, cpu = time.monotonic(), time.process_time()
        while len(self._pending) <= self.regime.lag:
            self._versions.append(self.learner.version)
            self._pending.append(self._collect(len(self._versions) - 1))
        collected = time.monotonic()
        rollout = self._pending.popleft()
        self._window.append(rollout)
        metrics = self.learner.update(self._joined())
        updated = time.monotonic()
        self.seconds['rollout'] += collected - began
        self.seconds['update'] += updated - collected
        row = {name: float(metrics[name]) for name in CURVE if name in metrics}
        row |= {'control_steps': self.learner.control_steps, 'episodes': self.learner.episodes}
        self.curve.append(row)
        self.seconds['other'] += time.monotonic() - updated
        self.seconds['cpu'] += time.process_time() - cpu
        self._measure_gap(rollout)
        return f'success {row["success_rate"]:.2f}'

    def save(self) -> None:
        """Write the state; the curve first, so that it never lacks an update of the learner."""
        began = time.monotonic()
        notes = {
            'settings': self.settings,
            'curve': self.curve,
            'gap_curve': self.gap_curve,
            'seconds': self.seconds,
            'versions': self._versions,
        }
        write_json(self._run_file, notes)
        self.learner.save(self._state_file)
        self.seconds['other'] += time.monotonic() - began

    def discard(self) -> None:
        """Remove the state: the result is there."""
        self._state_file.unlink(missing_ok=True)
        self._run_file.unlink(missing_ok=True)

    def report(self) -> dict[str, Any]:
        """Return everything that learning itself has to say."""
        steps = np.array([row['control_steps'] for row in self.curve])
        name = 'success_rate' if self.task.score_kind == 'success' else 'return_mean'
        score = smooth([row[name] for row in self.curve])
        minutes = self.learner.policy.spec.control_period_s / 60
        result = {
            'schema': SCHEMA,
            'job': asdict(self.job),
            'settings': self.settings,
            'score_kind': self.task.score_kind,
            'control_steps': self.learner.control_steps,
            'minutes': self.learner.control_steps * minutes,
            'episodes': self.learner.episodes,
            'updates': self.learner.updates,
            'wall_s': sum(self.seconds[k] for k in ('rollout', 'update', 'other')),
            **{f'{name}_s': value for name, value in self.seconds.items()},
            'curve': self.curve,
            'gap_curve': self.gap_curve,
            'action_std_ratio': self.curve[-1].get('action_std_ratio'),
            'alarms': self.learner.alarms,
            'alarm_at': first_alarm(self.curve, ALARM, self.learner.algorithm.keeps_flow),
            'collapsed': collapsed(score),
        }
        for level, key in ((0.8, '08'), (0.95, '095')):
            reached = steps_to(level, steps, score) if name == 'success_rate' else None
            result[f'steps_to_{key}'] = reached
            result[f'minutes_to_{key}'] = None if reached is None else reached * minutes
        return result

    def _joined(self) -> Rollout:
        """Return the rollouts of the window as one, which counts as the newest of them."""
        newest = self._window[-1]
        if len(self._window) == 1:
            return newest
        return replace(
            Rollout.concatenate(self._window),
            success=newest.success,
            returns=newest.returns,
            control_steps=newest.control_steps,
        )

    def _collect(self, number: int) -> Rollout:
        """Collect rollout `number` with the version that was, or is, due; repeatable."""
        version = self._versions[number]
        policy = self.learner.behaviour(version)
        rng = numpy_rng(self.job.seed, 'rollout', number)
        return collect_episodes(
            self._env,
            policy.act,
            policy.spec.noise_size,
            rng,
            seed=int(rng.integers(2**31)),
            version=version,
        )

    def _measure_gap(self, rollout: Rollout) -> None:
        """Note the gap when it is due; not part of the time of learning."""
        done, policy = self.learner.updates, self.learner.policy
        if self.learner.algorithm.keeps_flow and (done - 1) % self.regime.gap_every == 0:
            fitted = fitted_gap(self.job, policy, rollout.observations, done)
            exact = exact_gap(self.job, policy, rollout.observations, done)
            self.gap_curve.append([self.learner.control_steps, fitted, exact])

    def _check(self, start) -> None:
        got = self._env.single_observation_space.shape, self._env.single_action_space.shape
        spec = start.spec
        if got != ((spec.observation_size,), (spec.horizon, len(spec.joints))):
            raise UserError(
                f'the start of {self.job.task} is for observations of {spec.observation_size} and '
                f'chunks of {spec.horizon} x {len(spec.joints)}; its worlds have {got}'
            )

    def _resume(self) -> None:
        if not (self._state_file.is_file() and self._run_file.is_file()):
            return
        try:
            notes = json.loads(self._run_file.read_text(encoding='utf-8'))
            settings = notes['settings']
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{self._run_file} cannot be read: delete it to begin this job again'
            ) from error
        if not fits(self.settings, settings):
            log.warning('%s begins again: its settings have changed', self.job)
            return
        self.learner.load(self._state_file)
        done = self.learner.updates
        self.curve = numbers(notes['curve'][:done])
        steps = self.learner.control_steps
        self.gap_curve = [point for point in numbers(notes['gap_curve']) if point[0] <= steps]
        self.seconds = notes['seconds']
        # Rollouts that were collected and not yet learned from are collected again, by the same
        # versions with the same noise.
        self._versions = notes['versions'][: done + self.regime.lag]
        self._pending.extend(self._collect(i) for i in range(done, len(self._versions)))
        begin = max(0, done - self.regime.window + 1)
        self._window.extend(self._collect(i) for i in range(begin, done))
