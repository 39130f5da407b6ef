# SPDX-License-Identifier: Apache-2.0
"""The acting policy: what it samples, under which number, with which noise. numpy, no ROS."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dipod_ros.serving.episode_numbers import EpisodeNumbers
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.seam import Guidance
from dipod_ros.serving.swap import HotSwap

if TYPE_CHECKING:
    from dipod_ros.serving.picture import Picture


@dataclass(frozen=True, eq=False)
class Sampled:
    """What the policy said to one observation; arrays in the policy's joint order."""

    policy: LoadedPolicy
    number: int
    observation: np.ndarray  # float32 [O]
    noise: np.ndarray  # float32 [N]
    chunk: np.ndarray  # float32 [H, A], rad per control step; NaN throughout after a fault
    fault: str  # the engine's error, '' when there was none
    guidance: Guidance | None = None  # what the sampler was told to continue
    pictures: tuple[Picture, ...] = ()  # what it looked at, one per image stream

    @functools.cached_property
    def usable(self) -> bool:
        """Whether every number of the chunk is finite."""
        return bool(np.isfinite(self.chunk).all())


class Agent:
    """Runs the engine of the acting policy and swaps policies between chunks.

    `begin`, `sample`, `commit` and `prepare` belong to whoever decides; the rest may be read from
    anywhere.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        noise: NoiseSource,
        name: str,
        swap: HotSwap[LoadedPolicy] | None = None,
    ) -> None:
        """Take the first policy; `name` is the actor's name in the records."""
        self.policy = policy
        self.previous: LoadedPolicy | None = None  # what acted before, ready to act again
        self.noise = noise
        self.name = name
        self.number = 0  # of the next decision
        self.episodes = EpisodeNumbers()  # of those decisions, whatever loop makes them
        self._swap = swap
        self._retired: LoadedPolicy | None = None

    def begin(self) -> LoadedPolicy:
        """Return the policy for the next chunk; one that became ready takes over here."""
        if self._swap is not None:
            self._swap.take(self._install)
        return self.policy

    def sample(
        self,
        observation: np.ndarray,
        pictures: Sequence[Picture] = (),
        guidance: Guidance | None = None,
    ) -> Sampled:
        """Sample a chunk; an engine that raises gives a chunk of NaN and the reason.

        The features of `pictures`, one per image stream, are put into the observation. With
        `guidance` the chunk continues what is committed; the engine must be a guided one.
        """
        policy = self.policy
        spec = policy.manifest.spec
        noise = self.noise.sample(self.number, spec.noise_size)
        fault = ''
        known = () if guidance is None else (guidance.prefix, guidance.weights)
        try:
            if policy.eyes is not None:
                policy.eyes.look(pictures, observation)
            chunk = policy.engine.run(observation, noise, *known)
        except Exception as error:  # whatever a backend raises, the arm has to brake
            fault = f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
            chunk = np.full((spec.horizon, len(spec.joints)), np.nan, dtype=np.float32)
        return Sampled(
            policy, self.number, observation, noise, chunk, fault, guidance, tuple(pictures)
        )

    def commit(self) -> None:
        """Count the chunk sampled last as a decision: the next one gets the next number."""
        self.number += 1

    def withdraw(self, count: int) -> None:
        """Take back the newest decisions, which nobody hears of: others get their numbers."""
        self.number -= count

    def prepare(self) -> None:
        """Do now what the next `sample` need not wait for; call it when the command is out."""
        self.noise.prepare(self.number, self.policy.manifest.spec.noise_size)

    def settle(self) -> None:
        """Do what a swap leaves to do; call it when the command is out."""
        self._retired = None
        if self._swap is not None:
            self._swap.tell()

    def _install(self, policy: LoadedPolicy) -> None:
        # Freeing an engine takes longer than a decision may wait: `settle` does it.
        self._retired = self.previous
        self.previous, self.policy = self.policy, policy
