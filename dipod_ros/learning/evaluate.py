# SPDX-License-Identifier: Apache-2.0
"""Success of a policy with a confidence interval, on episodes of its own. numpy, no ROS."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dipod_ros.learning.rollout import Actor, collect_episodes
from dipod_ros.learning.seeding import numpy_rng

if TYPE_CHECKING:
    from dipod_ros.sim.vector_env import ChunkVectorEnv

# 97.5 % quantile of the normal distribution
Z95 = 1.959963984540054


@dataclass(frozen=True)
class SuccessRate:
    """Successes of `episodes`, with the Wilson score interval (95 %)."""

    success: float
    low: float
    high: float
    episodes: int
    return_mean: float
    control_steps: int

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f'{self.success:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.episodes} episodes'


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval (Wilson, 1927); honest near 0 and 1."""
    if episodes < 1:
        return 0.0, 1.0
    p, n, z = successes / episodes, episodes, Z95
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    # At 0 and at n successes the bound is p itself, but for round-off on the wrong side of it.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def evaluate(
    env: ChunkVectorEnv,
    actor: Actor,
    noise_size: int,
    *,
    episodes: int = 512,
    seed: int = 0,
    zero_noise: bool = False,
    progress=None,
) -> SuccessRate:
    """Run at least `episodes` episodes, in whole batches of `env.num_envs`.

    The initial conditions depend on `seed` alone, so two policies meet the same episodes.
    `progress` is called with the number of episodes finished so far.
    """
    successes = returns = steps = count = 0
    batch = 0
    while count < episodes:
        rollout = collect_episodes(
            env,
            actor,
            noise_size,
            numpy_rng(seed, 'evaluation-noise', batch),
            seed=int(numpy_rng(seed, 'evaluation', batch).integers(2**31)),
            zero_noise=zero_noise,
        )
        successes += int(rollout.success.sum())
        returns += float(rollout.returns.sum())
        steps += rollout.control_steps
        count += rollout.episodes
        batch += 1
        if progress is not None:
            progress(count)
    low, high = wilson_interval(successes, count)
    return SuccessRate(successes / count, low, high, count, returns / count, steps)


def evaluate_policy(env, policy, **options) -> SuccessRate:
    """Evaluate a torch FlowPolicy with its own sampler; options as for `evaluate`."""
    return evaluate(env, policy.act, policy.spec.noise_size, **options)
