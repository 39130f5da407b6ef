# SPDX-License-Identifier: Apache-2.0
"""A policy that runs beside the acting one and commands nothing. numpy, no ROS.

It gets the decisions that were made, once their commands are out, on a thread of its own: only the
newest, so that a slow one falls behind by itself. What it says is compared and thrown away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.alarm import was_clamped
from dipod_ros.serving.latency import LatencyWindow
from dipod_ros.serving.loader import LoadedPolicy
from dipod_ros.serving.loop import Decided
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.safety import SafetyFilter

OFF, BUILDING, RUNNING, FAILED = 'off', 'building', 'running', 'failed'


@dataclass(frozen=True)
class Comparison:
    """One decision, as the candidate would have made it."""

    number: int  # of the decision
    max_rad: float  # largest distance between the targets of the two, over steps and joints
    rms_rad: float
    clamp_rad: float  # by how much the limits would have moved the candidate's command
    latency_s: float  # of the inference


@dataclass(frozen=True)
class ShadowFigures:
    """A candidate's comparisons with one acting policy, summed up."""

    compared: int = 0
    dropped: int = 0  # decisions that came while it was busy
    skipped: int = 0  # decisions without the streams that it needs, or of a policy that failed
    faults: int = 0  # engine errors and chunks that are not finite
    fault: str = ''  # the last of them
    max_rad: float = 0.0  # the largest
    rms_rad: float = 0.0  # over all compared decisions, steps and joints
    clamp_share: float = 0.0  # of compared decisions with a clamp above the threshold
    active_clamp_share: float = 0.0  # the same of the acting policy, in the same decisions
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    last: Comparison | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain values, the last comparison under `last`."""
        return asdict(self)


class Shadow:
    """Builds a candidate, and compares it with what was decided.

    `want` and `show` may be called from anywhere; building and comparing happen on one thread.
    """

    def __init__(
        self,
        build: Callable[[Manifest], LoadedPolicy],
        limits: JointLimits,
        dt: float,
        noise: NoiseSource,
        clamp_rad: float,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
        wait: bool = False,
    ) -> None:
        """Take a builder (it raises UserError), the robot, and the noise of the acting policy.

        Args:
            build: loads a checkpoint and builds its engine.
            limits: of the robot.
            dt: control period, s.
            noise: where the decisions' noise comes from; the same numbers give the same noise.
            clamp_rad: a command that the limits move further counts as clamped.
            clock: steady seconds.
            on_change: called on the shadow's thread after a comparison or a change of state.
            wait: `show` returns when the decision has been compared: nothing is dropped, and what
                is compared does not depend on time (lockstep).

        """
        self._build = build
        self._safety = SafetyFilter(limits, dt)
        self._noise = noise
        self._clamp_rad = clamp_rad
        self._clock = clock
        self._on_change = on_change
        self._wait = wait
        self._wake = threading.Condition()
        self._request: Manifest | None = None  # to be built
        self._slot: Decided | None = None  # to be compared
        self._busy = self._closed = False
        self._policy: LoadedPolicy | None = None
        self._sums = _Sums()
        self.wanted: Manifest | None = None
        self.state = OFF
        self.error = ''
        self.figures = ShadowFigures()
        self._thread = threading.Thread(target=self._run, name='shadow', daemon=True)
        self._thread.start()

    def want(self, manifest: Manifest | None) -> None:
        """Run this candidate from now on, None for none; what was counted is forgotten."""
        with self._wake:
            if self._closed:
                return
            self.wanted = self._request = manifest
            self._policy = self._slot = None
            self._sums, self.figures = _Sums(), ShadowFigures()
            self.state, self.error = (OFF if manifest is None else BUILDING), ''
            self._wake.notify_all()

    def show(self, decided: Decided) -> None:
        """Hand over a decision whose command is out; an older one that still waits is dropped."""
        with self._wake:
            if self._policy is None or self._closed:
                return
            if self._slot is not None:
                self._sums.dropped += 1
            self._slot = decided
            self._wake.notify_all()
            if self._wait:
                self._wake.wait_for(lambda: self._slot is None and not self._busy or self._closed)

    def release(self) -> LoadedPolicy | None:
        """Give the candidate away and run none; call it from `on_change`, while it is not run."""
        with self._wake:
            policy = self._policy
        self.want(None)
        return policy

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; a build that is under way is waited for."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._request or self._slot or self._closed)
                if self._closed:
                    return
                self._busy = True
                request, self._request = self._request, None
                decided = None
                if request is None:
                    decided, self._slot = self._slot, None
                policy, sums = self._policy, self._sums
            if request is not None:
                self._make(request)
            elif policy is not None:
                self._look(policy, decided, sums)

    def _make(self, manifest: Manifest) -> None:
        policy, reason = None, ''
        try:
            policy = self._build(manifest)
        except UserError as error:
            reason = str(error)
        except Exception as error:  # a bug in a backend must not take the server down
            reason = f'{type(error).__name__}: {error}'
        with self._wake:
            if self.wanted is not manifest:
                return
            self._policy = policy
            self.state, self.error = (FAILED if policy is None else RUNNING), reason
        self._on_change()

    def _look(self, policy: LoadedPolicy, decided: Decided, sums: _Sums) -> None:
        try:
            done = self._compare(policy, decided, sums)
        except Exception as error:  # whatever is wrong with a candidate, the arm goes on
            sums.faults += 1
            sums.fault = _say(error)
            done = True
        with self._wake:
            if self._sums is not sums:
                return  # another candidate is wanted by now
            self.figures = sums.figures()
        if done:
            self._on_change()

    def _compare(self, policy: LoadedPolicy, decided: Decided, sums: _Sums) -> bool:
        """Add one decision; return False when it says nothing about the candidate."""
        sampled, plan = decided.sampled, decided.plan
        if sums.beside is not sampled.policy:
            sums.begin(sampled.policy)
        if plan is None or plan.chunk_start is None or not sampled.usable:
            sums.skipped += 1  # nothing was acted out, so there is nothing to be compared with
            return False
        base = plan.point(plan.chunk_start)
        observation, pictures = sampled.observation, sampled.pictures
        if not policy.layout.same_vector(sampled.policy.layout):
            try:
                observation = policy.layout.assemble(decided.seen, base)
                pictures = policy.layout.pictures(decided.seen)
            except (KeyError, ValueError):  # a stream that is not there, or of another size
                sums.skipped += 1
                return False
        spec = policy.manifest.spec
        noise = self._noise.sample(sampled.number, spec.noise_size)
        start = self._clock()
        if policy.eyes is not None:
            # Its own encoder: the same places hold the features of another one, or none at all.
            observation = observation.copy()
            policy.eyes.look(pictures, observation)
        chunk = policy.engine.run(observation, noise)
        latency_s = self._clock() - start
        if not np.isfinite(chunk).all():
            raise UserError('the policy gave numbers that are not finite')
        targets = np.cumsum(policy.layout.to_robot(chunk), axis=0, dtype=np.float64)
        own = sampled.policy.layout.to_robot(sampled.chunk)
        steps = min(len(targets), len(own))
        apart = targets[:steps] - np.cumsum(own[:steps], axis=0, dtype=np.float64)
        begin = max(plan.start, plan.chunk_start)  # a chunk may be there before its time
        late = begin - plan.chunk_start
        motion = self._safety.follow(
            plan.point(begin), plan.velocity(begin, self._safety.dt), base + targets[late:]
        )
        comparison = Comparison(
            sampled.number,
            float(np.max(np.abs(apart))),
            float(np.sqrt(np.mean(apart**2))),
            motion.clamp_rad,
            latency_s,
        )
        sums.add(
            comparison,
            motion.clamp_rad > self._clamp_rad,
            was_clamped(decided, self._clamp_rad),
        )
        return True


class _Sums:
    """What is counted about one candidate beside one acting policy."""

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, beside: LoadedPolicy | None) -> None:
        """Count anew: another policy acts."""
        self.beside = beside
        self.compared = self.skipped = self.faults = self.dropped = 0
        self.clamped = self.active_clamped = 0
        self.fault = ''
        self.max_rad = self.square = 0.0
        self.latency = LatencyWindow()
        self.last: Comparison | None = None

    def add(self, comparison: Comparison, clamped: bool, active_clamped: bool) -> None:
        self.compared += 1
        self.max_rad = max(self.max_rad, comparison.max_rad)
        self.square += comparison.rms_rad**2
        self.clamped += clamped
        self.active_clamped += active_clamped
        self.latency.add(comparison.latency_s)
        self.last = comparison

    def figures(self) -> ShadowFigures:
        n = max(1, self.compared)
        return ShadowFigures(
            self.compared,
            self.dropped,
            self.skipped,
            self.faults,
            self.fault,
            self.max_rad,
            float(np.sqrt(self.square / n)),
            self.clamped / n,
            self.active_clamped / n,
            self.latency.percentile(50),
            self.latency.percentile(99),
            self.last,
        )


def _say(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
