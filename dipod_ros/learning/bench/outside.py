# SPDX-License-Identifier: Apache-2.0
"""A reference from outside: Stable-Baselines3's PPO in Gymnasium's own env, from random weights.

PPO (Schulman et al., arXiv:1707.06347) as Raffin et al. (JMLR 22, 2021) implement it, at that
library's defaults but for eight worlds. It decides every control step and has seen no
demonstration. What it ends with is judged on the episodes that all others are judged on.

Nothing of the library is kept, for it saves by pickle: a job that was killed begins again. The
library seeds the global generators of python, numpy and torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.experiment_result import SCHEMA, collapsed, settings_of, smooth
from dipod_ros.learning.bench.experiment_score import EVALUATION_SEED, Effort, score_of
from dipod_ros.learning.bench.jobs import Job
from dipod_ros.learning.bench.regimes import REGIMES, TASKS
from dipod_ros.learning.evaluate import SuccessRate, evaluate
from dipod_ros.sim.external.gymnasium_chunks import GymnasiumChunkEnv
from dipod_ros.sim.external.registry import GYMNASIUM

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class OutsideConfig:
    """Arguments of Stable-Baselines3's PPO; all but `n_envs` are its defaults.

    The names are the library's but for those that a regime of the benchmark changes.
    """

    n_envs: int = 8
    n_steps: int = 2048  # per world and update, fewer where the budget is less than one update
    batch_size: int = 64
    epochs: int = 10  # n_epochs
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2  # clip_range
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        for name in ('n_envs', 'n_steps', 'batch_size', 'epochs'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')

    def ppo(self, budget: int) -> dict[str, Any]:
        """Return the arguments of PPO for a budget of control steps."""
        # Whole minibatches, so that the library has none to cut short.
        whole = self.batch_size // math.gcd(self.batch_size, self.n_envs)
        enough = whole * math.ceil(budget / (self.n_envs * whole))
        arguments = asdict(self) | {'n_steps': min(self.n_steps, enough)}
        arguments['n_epochs'] = arguments.pop('epochs')
        arguments['clip_range'] = arguments.pop('clip')
        return arguments


def run_outside(
    job: Job,
    config: OutsideConfig,
    progress: Progress = lambda share, text: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Learn, measure, and return a result with the keys of every other; None when `stop` said so.

    It learns for the control steps of the job, rounded up to whole updates. torch is left with one
    thread. Raises UserError for a task that is not Gymnasium's, or when a package is missing.
    """
    if job.task not in GYMNASIUM:
        raise UserError(f'method {job.method} is for {" and ".join(GYMNASIUM)} only')
    regime, task = REGIMES[job.regime], TASKS[job.task]
    budget = regime.control_steps or int(regime.budget * task.control_steps)
    torch.set_num_threads(1)
    model, versions = _make(GYMNASIUM[job.task], config.ppo(budget), job.seed)
    recorder = _recorder(budget, progress, stop)
    # Not of learning: imports, models of the worlds.
    began, cpu = time.monotonic(), time.process_time()
    try:
        model.learn(budget, callback=recorder)
    finally:
        model.get_env().close()
    if recorder.stopped:
        return None
    seconds = dict(recorder.seconds)
    wall, seconds['cpu'] = time.monotonic() - began, time.process_time() - cpu
    seconds['other'] = wall - seconds['rollout'] - seconds['update']

    measuring = time.monotonic()
    effort = Effort.of(job)
    env = GymnasiumChunkEnv(GYMNASIUM[job.task], effort.worlds, EVALUATION_SEED, horizon=1)
    progress(0.8, 'measuring')
    final = _evaluate(env, model, effort.final, progress)
    settings = settings_of(job, '') | {'start_sha256': None, 'versions': versions}
    del settings['critic']  # ours, which has no part in it
    curve = recorder.curve
    return {
        'schema': SCHEMA,
        'job': asdict(job),
        'settings': settings,
        'score_kind': task.score_kind,
        'control_steps': model.num_timesteps,
        'minutes': model.num_timesteps * env.control_period_s / 60,
        'episodes': recorder.episodes,
        'updates': len(curve),
        'wall_s': wall,
        **{f'{name}_s': value for name, value in seconds.items()},
        'curve': curve,
        'collapsed': collapsed(smooth([row['return_mean'] for row in curve])),
        'score': score_of(job, final),
        'final': final.to_dict(),
        'measure_s': time.monotonic() - measuring,
        **_nothing(),
    }


def _nothing() -> dict[str, Any]:
    """Return what can be said of a flow, of its start, or of a task judged by success alone."""
    result: dict[str, Any] = {'gap_curve': [], 'alarms': 0, 'sweep': {}, 'zero_noise': {}}
    names = (
        'action_std_ratio', 'alarm_at', 'sampler', 'score_exploring', 'gap_nats',
        'exact_gap_nats', 'student', 'steps_to_08', 'minutes_to_08', 'steps_to_095',
        'minutes_to_095',
    )  # fmt: skip
    return result | dict.fromkeys(names)


def _evaluate(env: GymnasiumChunkEnv, model: Any, episodes: int, progress: Progress) -> SuccessRate:
    """Judge the mean action on the episodes of all others: same starts and physics, chunks of 1."""

    def act(observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return model.predict(observations, deterministic=True)[0][:, None]

    return evaluate(
        env,
        act,
        0,
        episodes=episodes,
        seed=EVALUATION_SEED,
        progress=lambda done: progress(0.8 + 0.2 * min(1.0, done / episodes), 'measuring'),
    )


def _make(env_id: str, arguments: dict[str, Any], seed: int) -> tuple[Any, dict[str, str]]:
    """Return the learner in its worlds, and which versions of the packages these are."""
    try:
        import gymnasium
        import imageio  # noqa: F401  Gymnasium's MuJoCo envs import it
        import mujoco
        import stable_baselines3
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError as error:
        raise UserError(
            f'sb3_ppo needs Stable-Baselines3 ({error}): pip install "dipod_ros[bench]"'
        ) from error
    arguments = dict(arguments)
    worlds = make_vec_env(env_id, arguments.pop('n_envs'), seed=seed, vec_env_cls=DummyVecEnv)
    model = stable_baselines3.PPO('MlpPolicy', worlds, seed=seed, device='cpu', **arguments)
    # Its own logger would leave a folder behind.
    model.set_logger(Logger(None, []))
    packages = (stable_baselines3, gymnasium, mujoco)
    return model, {package.__name__: package.__version__ for package in packages}


def _recorder(budget: int, progress: Progress, stop: Callable[[], bool]) -> Any:
    """Return a callback of the library that keeps the curve, one row per update, and the times."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Recorder(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.curve: list[dict[str, float]] = []
            self.episodes = 0
            self.stopped = False
            self.seconds = {'rollout': 0.0, 'update': 0.0}
            self._finished: list[tuple[float, bool]] = []  # return, whether upright to the end
            self._mark = 0.0

        def _on_training_start(self) -> None:
            self._mark = time.monotonic()

        def _on_rollout_start(self) -> None:
            self._note('update')  # the one before

        def _on_step(self) -> bool:
            for done, info in zip(self.locals['dones'], self.locals['infos'], strict=True):
                if done:
                    upright = bool(info['TimeLimit.truncated'])
                    self._finished.append((float(info['episode']['r']), upright))
            self.stopped = stop()
            return not self.stopped

        def _on_rollout_end(self) -> None:
            self._note('rollout')
            self.episodes += len(self._finished)
            means = np.mean(self._finished, 0) if self._finished else (math.nan, math.nan)
            row = {'success_rate': float(means[1]), 'return_mean': float(means[0])}
            row |= {'control_steps': self.num_timesteps, 'episodes': self.episodes}
            self.curve.append(row)
            self._finished = []
            text = f'return {row["return_mean"]:.0f}'
            progress(0.8 * min(1.0, self.num_timesteps / budget), text)

        def _on_training_end(self) -> None:
            self._note('update')

        def _note(self, name: str) -> None:
            now = time.monotonic()
            self.seconds[name] += now - self._mark
            self._mark = now

    return Recorder()
