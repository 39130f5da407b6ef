# SPDX-License-Identifier: Apache-2.0
"""Turns the stream of decisions into rollouts of finished, trustworthy episodes. numpy, no ROS.

The stream is a network's: records repeat, get lost, come from policies long gone, from several
robots, and from chunks that were never executed as sampled. All of that is counted, none is learned
from. What an episode did after the last such chunk is: it began in a state like any other.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.replay_episode import Episode, episode_rollout
from dipod_ros.learning.rollout import MAX_NUMBER, Rollout
from dipod_ros.policy.decision import Decision
from dipod_ros.policy.spec import PolicySpec

# Robots remembered at a time; the one silent for longest is forgotten first.
MAX_ACTORS = 64
# As many decisions may wait where the episodes of one update are so long.
MOST_WAITING = 100_000
# Numbers (seq) that an actor may skip, or fall back by, in one record: three hours of 10 Hz. One
# record that is further away is not believed, two in a row are.
MAX_GAP = 100_000
# Beyond any count of decisions or episodes, and exact as the float that the counters become.
MAX_COUNT = 2**53


@dataclass
class _Actor:
    last_seq: int = -1
    episode: int | None = None  # the one under way
    decisions: list[Decision] = field(default_factory=list)
    spoiled: str = ''  # why nothing of the episode is kept: the counter, or '' when it is whole
    usable: int = 0  # decisions since the last interrupted one
    far_seq: int | None = None  # of the record before, where that was not believed


class ReplayAssembler:
    """Collects decisions by actor and hands out finished episodes.

    Counters (see `counts`): received, duplicates, lost (gaps in seq), invalid (wrong shapes or
    numbers), interrupted (decisions up to and with a chunk that was not executed as sampled),
    incomplete (episodes with a gap or without an end), stale (decisions of policies too old or
    unknown), skipped (episodes passed over for newer ones), overflow (episodes dropped because
    nobody took them).

    `unusable` counts by the same names, but always in decisions, what nothing can be learned from
    since the last usable episode: how much, and mostly why.
    """

    def __init__(
        self,
        spec: PolicySpec,
        keep_episodes: int = 64,
        max_waiting_decisions: int = 20_000,
        most_waiting_decisions: int = MOST_WAITING,
    ) -> None:
        """Take the spec that every decision must fit, and the bounds on memory.

        Beyond `max_waiting_decisions` the oldest episodes are dropped, but never one of the newest
        `keep_episodes`, so that an update can have as many however long they are; an episode under
        way may be as long. `most_waiting_decisions` is for those as well; see `take`.
        """
        self.spec = spec
        self.counts: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self._fresh = 0  # finished episodes that were usable when last looked at
        self._keep = keep_episodes
        self._most_waiting = most_waiting_decisions
        self._actors: OrderedDict[str, _Actor] = OrderedDict()
        self._ready: deque[Episode] = deque()
        self._waiting = 0
        self._max_waiting = max_waiting_decisions

    @property
    def ready_episodes(self) -> int:
        """Finished episodes that wait to be taken."""
        return len(self._ready)

    def add(self, decision: Decision) -> None:
        """Take one decision as it arrived."""
        self.counts['received'] += 1
        if not self._fits(decision):
            self._refuse('invalid')
            return
        actor = self._actors.setdefault(decision.actor, _Actor())
        self._actors.move_to_end(decision.actor)
        if len(self._actors) > MAX_ACTORS:
            self._actors.popitem(last=False)
        if actor.last_seq >= 0 and abs(decision.seq - actor.last_seq) > MAX_GAP:
            before, actor.far_seq = actor.far_seq, decision.seq
            if before is None or not 0 < decision.seq - before <= MAX_GAP:
                self._refuse('invalid')
                return
            # The numbers do go on from there.
            actor.last_seq, actor.spoiled = before, 'lost'
        actor.far_seq = None
        if decision.seq <= actor.last_seq:
            self._refuse('duplicates')
            return
        gap = decision.seq - actor.last_seq - 1
        # A trainer that joins late starts in the middle: what came before is not lost.
        if gap and actor.last_seq >= 0:
            self.counts['lost'] += gap
            actor.spoiled = 'lost'
        actor.last_seq = decision.seq
        if decision.episode != actor.episode:
            why = actor.spoiled
            if actor.episode is not None:
                self.counts['incomplete'] += 1
                self._discard(actor, why or 'incomplete')
            # After a gap the end of the one before is what was lost, or the beginning of this one.
            actor.episode, actor.spoiled = decision.episode, '' if not decision.step else why
        # An episode that never ends must not fill the memory either.
        if decision.step != len(actor.decisions) or len(actor.decisions) >= self._max_waiting:
            actor.spoiled = actor.spoiled or 'incomplete'
        actor.decisions.append(decision)
        actor.usable += 1
        if actor.spoiled:
            self._discard(actor, actor.spoiled)
        elif decision.interrupted:
            self.unusable['interrupted'] += actor.usable
            actor.usable = 0
        if decision.terminated or decision.truncated:
            self._finish(actor)
            actor.episode = None

    def take(
        self, least: int, most: int, version_of: Callable[[str], int | None]
    ) -> Rollout | None:
        """Return the newest finished episodes, or None while there are fewer than `least`.

        Where more than `most` wait, the stream is faster than learning: the older ones are dropped,
        because each update would learn from staler episodes than the one before.

        `version_of` maps a policy's sha256 to its version, or to None when it is too old to learn
        from; leading stale decisions of an episode are cut off, as are episodes that are all stale.
        Raises UserError when fewer than `least` fill the memory, which they will for ever.
        """
        self._drop_stale(version_of)
        if len(self._ready) < least:
            if self._waiting > self._most_waiting:
                raise UserError(
                    f'{len(self._ready)} episodes are {self._waiting} decisions already, more than '
                    f'the {self._most_waiting} that are kept: set episodes_per_update to at most '
                    f'{len(self._ready)} (it is {least}), or end episodes earlier'
                )
            return None
        while len(self._ready) > most:
            self._waiting -= len(self._ready.popleft())
            self.counts['skipped'] += 1
        parts = []
        while self._ready:
            episode = self._ready.popleft()
            self._waiting -= len(episode)
            parts.append(episode_rollout(episode, version_of, self.spec))
        self._fresh = 0
        self.unusable.clear()
        return Rollout.concatenate(parts)

    def newest(self, count: int, version_of: Callable[[str], int | None]) -> Rollout | None:
        """Return the newest `count` finished episodes and leave them waiting; None for none."""
        self._drop_stale(version_of)
        waiting = list(self._ready)[-count:]
        parts = [episode_rollout(episode, version_of, self.spec) for episode in waiting]
        return Rollout.concatenate(parts) if parts else None

    def _drop_stale(self, version_of: Callable[[str], int | None]) -> None:
        kept: deque[Episode] = deque()
        for episode in self._ready:
            decisions = episode.decisions
            fresh = len(decisions)
            while fresh and version_of(decisions[-fresh].policy_sha) is None:
                fresh -= 1
            usable = decisions[len(decisions) - fresh :]
            # A swap back to an old policy in mid-episode leaves a hole that GAE cannot bridge.
            if any(version_of(d.policy_sha) is None for d in usable):
                usable = []
            if len(usable) == 1 and usable[0].truncated:
                usable = []
            for counter in (self.counts, self.unusable):
                counter['stale'] += len(decisions) - len(usable)
            self._waiting -= len(decisions) - len(usable)
            if usable:
                kept.append(replace(episode, decisions=usable))
        self._ready = kept
        if len(kept) > self._fresh:
            self.unusable.clear()
        self._fresh = len(kept)

    def _refuse(self, why: str) -> None:
        for counter in (self.counts, self.unusable):
            counter[why] += 1

    def _discard(self, actor: _Actor, why: str) -> None:
        """Forget what an episode has come to so far; interrupted decisions were counted before."""
        self.unusable[why] += actor.usable
        actor.decisions, actor.usable = [], 0

    def _finish(self, actor: _Actor) -> None:
        decisions, usable = actor.decisions, actor.usable
        actor.decisions, actor.usable = [], 0
        if actor.spoiled:
            self.counts['incomplete'] += 1
            return
        # The first chunk on an arm is slowed by the ramp: what came after it is as sampled.
        cut = max((i + 1 for i, d in enumerate(decisions) if d.interrupted), default=0)
        self.counts['interrupted'] += cut
        total, length = sum(d.reward for d in decisions), len(decisions)
        decisions = decisions[cut:]
        if not decisions:
            return
        if len(decisions) == 1 and decisions[0].truncated:
            self.counts['incomplete'] += 1
            self.unusable['incomplete'] += usable
        else:
            self.counts['episodes'] += 1
            self._ready.append(Episode(decisions, total, length))
            self._waiting += len(decisions)
            while self._waiting > self._max_waiting and len(self._ready) > self._keep:
                self._waiting -= len(self._ready.popleft())
                self.counts['overflow'] += 1

    def _fits(self, decision: Decision) -> bool:
        shape = (self.spec.horizon, len(self.spec.joints))
        return (
            0 <= decision.seq <= MAX_COUNT
            and 0 <= decision.step <= MAX_COUNT
            and abs(decision.episode) <= MAX_COUNT
            and decision.observation.shape == (self.spec.observation_size,)
            and decision.noise.shape == (self.spec.noise_size,)
            and decision.chunk.shape == shape
            and bool(np.isfinite(decision.observation).all())
            and all(
                np.abs(values).max() <= MAX_NUMBER  # NaN is not
                for values in (decision.noise, decision.chunk, decision.reward)
            )
        )
