# SPDX-License-Identifier: Apache-2.0
"""Which policy acts next: what a person, the trainer, the shadow and an alarm may bring about.

One lock guards what is decided here; nothing that waits for another thread is done under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.policy.spec import Stream
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.loader import LoadedPolicy, PolicyLoader
from dipod_ros.serving.promotion import (
    APPROVAL,
    AT_ONCE,
    SHADOW,
    Candidate,
    PromotionConfig,
    Rejected,
)
from dipod_ros.serving.shadow import FAILED, Shadow
from dipod_ros.serving.swap import HotSwap

HOLD = (
    'after ~/rollback announcements wait for ~/approve, or for checkpoint or follow_trainer to be '
    'set'
)
AT_BOUNDARY = 'takes over where a chunk ends'


class Succession:
    """Decides about requests; the building is done by the swap, the trying out by the shadow.

    What answers a person returns whether it will be done, and what will happen or why not.
    """

    def __init__(
        self,
        loader: PolicyLoader,
        swap: HotSwap[LoadedPolicy],
        shadow: Shadow,
        agent: Callable[[], Agent],
        listen: Callable[[tuple[Stream, ...]], None],
        promotion: PromotionConfig,
        rejected: Rejected,
        say: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        """Take the parts.

        Args:
            loader: validates checkpoints.
            swap: builds them and hands them over.
            shadow: runs one beside the acting policy.
            agent: returns who acts.
            listen: connects these streams and no others; raises UserError when it cannot.
            promotion: what the trainer's checkpoints have to pass.
            rejected: what must not act again unless asked for by name.
            say: told why a request came to nothing, and of alarms.
            on_change: called after every change, from whichever thread made it.

        """
        self._loader, self._swap, self._shadow = loader, swap, shadow
        self._agent, self._listen = agent, listen
        self._promotion = promotion
        self._say, self._on_change = say, on_change
        self._lock = threading.RLock()
        self._watched: Manifest | None = None  # runs in the shadow while no candidate does
        self.rejected = rejected
        self.candidate: Candidate | None = None
        self.hold = ''  # why announcements are not adopted, '' when they may be
        self.alarm = ''  # what the last alarm was about, until somebody has another policy act
        self.refusal = ''  # why the newest request was refused, '' when it was not

    # What a person asks for

    def ask(self, name: str) -> None:
        """Swap to a checkpoint by name, whatever was said about it before."""
        with self._lock:
            manifest = self._valid(name, '', 'parameter')
            if manifest is None:
                return
            self.rejected.forgive(manifest.sha256)
            self.hold = ''
            if self._wanted(manifest):
                # What a person asked for by name is not replaced by whatever still waits.
                self._drop_candidate()
                self._on_change()
            else:
                self._swap_to(manifest, 'parameter')

    def reload(self, name: str) -> tuple[bool, str]:
        """Read a checkpoint again and swap to it if it is another one by now."""
        with self._lock:
            try:
                manifest = self._loader.validate(name)
            except UserError as error:
                return False, str(error)
            reason = self._rejection(manifest)
            if reason:
                return False, reason
            if self._wanted(manifest):
                what = 'acts already' if self._swap.requested is None else 'is on its way already'
                return True, f'{label(manifest)} {what}'
            if not self._swap_to(manifest, 'reload'):
                return False, self.refusal
            return True, f'{label(manifest)} is being built and {AT_BOUNDARY}'

    def rollback(self, following: bool) -> tuple[bool, str]:
        """Have the policy act again that acted before; `following` the trainer, hold it off."""
        with self._lock:
            agent = self._agent()
            if self._swap.pending_source == 'rollback' and self._swap.cancel('taken back'):
                return True, f'{label(agent.policy.manifest)} keeps acting' + self._held()
            previous = agent.previous
            if previous is None:
                return False, 'no other policy has acted before this one'
            reason = self._rejection(previous.manifest)
            if reason:
                return False, reason
            if following:
                self.hold = HOLD
                if self.candidate is not None:
                    self.candidate = Candidate(self.candidate.manifest, APPROVAL)
            self.refusal = ''
            dropped = self._swap.requested
            self._swap.offer(previous, previous.manifest, 'rollback')
            text = f'{label(previous.manifest)} {AT_BOUNDARY}'
            if dropped is not None:
                text += f'; the request for {label(dropped)} is dropped'
            return True, text + self._held()

    def approve(self) -> tuple[bool, str]:
        """Have the candidate act, and announcements after a rollback considered again."""
        with self._lock:
            candidate, hold, self.hold = self.candidate, self.hold, ''
            if candidate is None:
                self._on_change()
                if hold:
                    return True, 'nothing waits; announcements are considered again'
                return False, 'no checkpoint of the trainer waits for approval'
            self._end_candidate()
            if not self._swap_to(candidate.manifest, 'approval'):
                return False, self.refusal
            return True, f'{label(candidate.manifest)} is being built and {AT_BOUNDARY}'

    def reject(self) -> tuple[bool, str]:
        """Refuse the candidate for good."""
        with self._lock:
            candidate = self.candidate
            if candidate is None:
                return False, 'no checkpoint of the trainer waits'
            self._refuse(candidate.manifest, 'rejected by ~/reject')
            return True, f'{label(candidate.manifest)} is rejected'

    def watch(self, name: str) -> None:
        """Run a checkpoint beside the acting policy while no candidate does; '' ends that."""
        with self._lock:
            watched = self._valid(name, '', 'shadow_checkpoint') if name else None
            if watched is not None and not self._connected(watched, 'shadow_checkpoint'):
                watched = None
            self._watched = watched
            if self.candidate is None:
                self._shadow.want(self._watched)
            self._on_change()

    # The trainer

    def consider(self, path: str, sha256: str, mode: str) -> None:
        """Put what the trainer announced on its way, as far as `mode` and a hold allow."""
        with self._lock:
            manifest = self._valid(path, sha256, 'trainer')
            if manifest is None:
                return
            waiting = self.candidate
            if self._wanted(manifest) or (waiting and _same(waiting.manifest, manifest)):
                self._on_change()
                return
            reason = self._rejection(manifest)
            if reason:
                self._say_no(reason)
                return
            if mode == AT_ONCE and not self.hold:
                self._swap_to(manifest, 'trainer')
                return
            if not self._connected(manifest, 'trainer'):
                return
            self._give_up_candidate()
            self.candidate = Candidate(manifest, APPROVAL if self.hold else mode)
            self._shadow.want(manifest)
            self._on_change()

    def follow(self, following: bool) -> None:
        """Take note that following the trainer was switched on or off by a person."""
        with self._lock:
            self.hold = ''
            if not following:
                self._drop_candidate()
                if self._swap.pending_source == 'trainer':
                    self._swap.cancel('follow_trainer was switched off')
            self._on_change()

    # What is found out while acting

    def on_alarm(self, policy: LoadedPolicy, reason: str) -> None:
        """Reject the policy that acts and have the one before it act again."""
        with self._lock:
            manifest, previous = policy.manifest, self._agent().previous
            self.rejected.add(manifest.sha256, reason)
            text = f'{label(manifest)} is rejected: {reason}; '
            if previous is None or self.rejected.reason(previous.manifest.sha256):
                self.alarm = text + 'there is nothing to go back to'
                self._on_change()
            else:
                self.alarm = text + f'back to {label(previous.manifest)}'
                self._swap.offer(previous, previous.manifest, 'alarm', reason)
            self._say(self.alarm)

    def on_shadow(self) -> None:
        """Judge the candidate by what the shadow found; call it on the shadow's thread."""
        with self._lock:
            shadow, candidate = self._shadow, self.candidate
            if candidate is None or shadow.wanted is not candidate.manifest:
                return
            if shadow.state == FAILED:
                self._refuse(candidate.manifest, shadow.error)
                return
            figures = shadow.figures
            if candidate.mode != SHADOW or not self._promotion.decided(figures):
                return
            reason = self._promotion.refusal(figures)
            if reason:
                self._refuse(candidate.manifest, reason)
                return
            policy = shadow.release()
            self._end_candidate()
            why = f'passed {figures.compared} decisions in the shadow'
            self._swap.offer(policy, candidate.manifest, 'trainer', why)

    def on_taken(self) -> None:
        """Take note that a policy was taken."""
        if self._swap.history and self._swap.history[-1].source != 'alarm':
            self.alarm = ''

    # Steps

    def _valid(self, path: str, sha256: str, source: str) -> Manifest | None:
        try:
            manifest = self._loader.validate(path, sha256)
        except UserError as error:
            self._say_no(f'{source}: {error}')
            return None
        self.refusal = ''
        return manifest

    def _wanted(self, manifest: Manifest) -> bool:
        """Tell whether this acts, or is on its way to."""
        return _same(manifest, self._swap.requested or self._agent().policy.manifest)

    def _rejection(self, manifest: Manifest) -> str:
        reason = self.rejected.reason(manifest.sha256)
        return reason and f'{label(manifest)} was rejected: {reason}; set checkpoint to have it act'

    def _connected(self, manifest: Manifest, source: str) -> bool:
        """Listen to the streams of a policy too; False, and said why, when that cannot be."""
        try:
            self._listen((*manifest.spec.streams, *self._heard()))
        except UserError as error:
            self._say_no(f'{source}: {label(manifest)}: {error}')
            return False
        return True

    def _heard(self) -> list[Stream]:
        """Return what those look at that act or may: by a rollback, from the shadow, on their way.

        What is on its way comes first: it may be taken in between.
        """
        manifests = [self._swap.requested, self._shadow.wanted, self._watched]
        if self.candidate is not None:
            manifests.append(self.candidate.manifest)
        agent = self._agent()
        for policy in (agent.policy, agent.previous):
            manifests.append(None if policy is None else policy.manifest)
        return [stream for m in manifests if m is not None for stream in m.spec.streams]

    def _swap_to(self, manifest: Manifest, source: str) -> bool:
        if not self._connected(manifest, source):
            return False
        self.refusal = ''
        self._drop_candidate()
        self._swap.request(manifest, source)
        return True

    def _give_up_candidate(self) -> None:
        if self.candidate is not None:
            manifest = self.candidate.manifest
            self._swap.note(manifest, 'trainer', 'superseded', 'a newer request came')

    def _drop_candidate(self) -> None:
        if self.candidate is not None:
            self._give_up_candidate()
            self._end_candidate()

    def _refuse(self, manifest: Manifest, reason: str) -> None:
        self.rejected.add(manifest.sha256, reason)
        self._swap.note(manifest, 'trainer', 'refused', reason)
        self._end_candidate()
        self._say_no(f'{label(manifest)} is refused: {reason}')

    def _end_candidate(self) -> None:
        self.candidate = None
        self._shadow.want(self._watched)

    def _say_no(self, text: str) -> None:
        self.refusal = text
        self._say(f'not swapped: {text}')
        self._on_change()

    def _held(self) -> str:
        return f'; {self.hold}' if self.hold else ''


def label(manifest: Manifest) -> str:
    """Return what a person calls a checkpoint by, and the beginning of its sha256."""
    return f'{manifest.path.name} ({manifest.sha256[:12]})'


def _same(one: Manifest, other: Manifest) -> bool:
    return (one.sha256, one.path) == (other.sha256, other.path)
