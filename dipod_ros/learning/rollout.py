# SPDX-License-Identifier: Apache-2.0
"""Rollouts: decisions in order, whole episodes after one another. numpy; collected from an env."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dipod_ros.errors import UserError

if TYPE_CHECKING:
    from dipod_ros.policy.spec import PolicySpec
    from dipod_ros.sim.vector_env import ChunkVectorEnv


# Beyond any reward or angle that somebody means. Its square, and that of a sum of thousands, is a
# float32: a single number that is not would spoil the update that it is learned from.
MAX_NUMBER = 1e12

# (observations [N, O], noise [N, Z]) -> chunks [N, H, A]
Actor = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Rollout:
    """M decisions, episode after episode.

    next_observations are those that followed; they are ignored where `terminated`. `last` marks the
    final decision of each episode. `version` [M] is the policy version that sampled the chunk.
    `step` [M] is how many decisions came before in the episode: counted from the first one here
    where it is not given, which is wrong where an episode's beginning was cut off.
    """

    observations: np.ndarray  # [M, O] float32, raw
    noise: np.ndarray  # [M, Z] float32
    chunks: np.ndarray  # [M, H, A] float32, as sampled, rad per control step
    rewards: np.ndarray  # [M] float32
    next_observations: np.ndarray  # [M, O] float32
    terminated: np.ndarray  # [M] bool
    last: np.ndarray  # [M] bool
    version: np.ndarray  # [M] int64
    success: np.ndarray  # [E] bool, per episode
    returns: np.ndarray  # [E] float32, undiscounted, of the whole episode
    control_steps: int
    step: np.ndarray | None = None  # [M] int64

    def __post_init__(self) -> None:
        if self.step is None:
            object.__setattr__(self, 'step', decision_index(self.last))

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        """Number of episodes E."""
        return len(self.success)

    @property
    def tells_apart(self) -> bool:
        """Whether some decision or episode here was worth more than another."""
        return bool(np.ptp(self.rewards) > 0 or np.ptp(self.returns) > 0)

    def require_fits(self, spec: PolicySpec) -> None:
        """Raise UserError when a policy of this specification cannot learn from these decisions."""
        if len(self) == 0 or self.episodes == 0:
            raise UserError('the rollout is empty: collect at least one whole episode')
        observed, size = self.observations.shape[1:], int(np.prod(self.chunks.shape[1:]))
        if observed != (spec.observation_size,) or size != spec.action_size:
            raise UserError(
                f'rollout holds observations of {observed} and chunks of {self.chunks.shape[1:]}, '
                f'the policy has {spec.observation_size} and {spec.horizon} x {len(spec.joints)}'
            )
        if self.noise.shape[1:] != (spec.noise_size,):
            raise UserError(
                f'rollout holds noise of {self.noise.shape[1:]}, the policy takes {spec.noise_size}'
            )
        # One NaN would be in the critic for ever: it is kept when a collapsed policy is put back.
        for name in ('observations', 'noise', 'chunks', 'rewards', 'returns'):
            values = getattr(self, name)
            if not np.all(np.isfinite(values)):
                raise UserError(f'rollout holds {name} that are not finite')
            if not np.all(np.abs(values) <= MAX_NUMBER):
                raise UserError(f'rollout holds {name} beyond {MAX_NUMBER:g}: scale them down')
        if not np.all(np.isfinite(self.next_observations[~self.terminated])):
            raise UserError('rollout holds next_observations that are not finite before its ends')

    @staticmethod
    def concatenate(parts: Iterable[Rollout]) -> Rollout:
        """Join rollouts; episodes stay whole."""
        parts = list(parts)
        names = (
            'observations', 'noise', 'chunks', 'rewards', 'next_observations',
            'terminated', 'last', 'version', 'success', 'returns', 'step',
        )  # fmt: skip
        joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in names}
        return Rollout(**joined, control_steps=sum(p.control_steps for p in parts))


def decision_index(last: np.ndarray) -> np.ndarray:
    """Return how many decisions came before each one in its episode, int64 [M].

    `last` [M] marks the ends of episodes that stand one after another.
    """
    position = np.arange(len(last))
    starts = np.where(np.append(True, last[:-1]), position, 0)[: len(last)]
    return position - np.maximum.accumulate(starts)


def collect_episodes(
    env: ChunkVectorEnv,
    actor: Actor,
    noise_size: int,
    rng: np.random.Generator,
    *,
    seed: int,
    version: int = 0,
    zero_noise: bool = False,
) -> Rollout:
    """Run one episode in each world of `env` (made with autoreset=False).

    Running every world exactly once keeps the success rate unbiased: with automatic restarts short
    (successful) episodes would be counted more often.
    """
    observation, _ = env.reset(seed=seed)
    count = env.num_envs
    alive = np.ones(count, dtype=bool)
    success = np.zeros(count, dtype=bool)
    steps: list[dict[str, np.ndarray]] = []
    control_steps = 0
    while alive.any():
        noise = rng.standard_normal((count, noise_size)).astype(np.float32)
        if zero_noise:
            noise[:] = 0
        chunk = np.zeros((count, *env.single_action_space.shape), dtype=np.float32)
        chunk[alive] = actor(observation[alive], noise[alive])
        following, reward, terminated, truncated, info = env.step(chunk)
        steps.append(
            {
                'observations': observation.astype(np.float32),
                'noise': noise,
                'chunks': chunk,
                'rewards': reward.astype(np.float32),
                'next_observations': following.astype(np.float32),
                'terminated': terminated.copy(),
                'last': terminated | truncated,
                'alive': alive.copy(),
            }
        )
        control_steps += int(np.sum(info['control_steps'][alive]))
        success |= alive & np.asarray(info['success'], dtype=bool)
        alive &= ~(terminated | truncated)
        observation = following
    # [T, N, ...] -> episode after episode
    took = np.stack([s['alive'] for s in steps]).T
    fields = {
        name: np.stack([s[name] for s in steps]).swapaxes(0, 1)[took]
        for name in steps[0]
        if name != 'alive'
    }
    totals = (np.stack([s['rewards'] for s in steps]).T * took).sum(1)
    return Rollout(
        **fields,
        version=np.full(int(took.sum()), version, dtype=np.int64),
        success=success,
        returns=totals.astype(np.float32),
        control_steps=control_steps,
    )
