# SPDX-License-Identifier: Apache-2.0
"""What the policy server says about itself: ~/status when it changes, /diagnostics at 1 Hz."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dipod_ros.nodes._policy_server_output import StreamOutput
from dipod_ros.policy.checkpoint import Manifest
from dipod_ros.ros.diagnostics import Level, Report
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.loop import Loop
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.succession import Succession
from dipod_ros.serving.swap import HotSwap

RECENT_SWAPS = 5
RECENT_REJECTED = 5


def describe(manifest: Manifest | None) -> dict[str, Any] | None:
    """Return what identifies a checkpoint."""
    if manifest is None:
        return None
    return {
        'name': manifest.path.name,
        'path': str(manifest.path),
        'sha256': manifest.sha256,
        'version': manifest.version,
        'kind': manifest.kind,
        'task': manifest.spec.task,
        'sampler': str(manifest.spec.sampler),
    }


def previous(agent: Agent | None) -> dict[str, Any] | None:
    """Return what ~/rollback goes back to, None when nothing has acted before."""
    before = None if agent is None else agent.previous
    return describe(None if before is None else before.manifest)


def swap_status(swap: HotSwap | None) -> dict[str, Any]:
    """Return where the swap stands, for ~/status."""
    if swap is None:
        return {'requested': None, 'swap': 'idle', 'swaps': 0, 'history': []}
    return {
        'requested': describe(swap.requested),
        'swap': swap.state,
        'swaps': swap.count,
        'history': [asdict(r) for r in list(swap.history)[-RECENT_SWAPS:]],
    }


def succession_status(succession: Succession | None) -> dict[str, Any]:
    """Return what may act next and what may not, for ~/status."""
    candidate = None if succession is None else succession.candidate
    about = describe(None if candidate is None else candidate.manifest)
    return {
        'candidate': about and {**about, 'promotion': candidate.mode},
        'hold': '' if succession is None else succession.hold,
        'alarm': '' if succession is None else succession.alarm,
        'rejected': [] if succession is None else succession.rejected.newest(RECENT_REJECTED),
    }


def policy_report(now: dict[str, Any]) -> Report:
    """Report what acts, from what ~/status says."""
    active = now['active'] or {}
    values = {
        'state': now['state'],
        'active': active.get('name', 'none'),
        'active sha256': active.get('sha256', ''),
        'version': active.get('version', ''),
        'swap': now['swap'],
        'swaps': now['swaps'],
        'previous': (now['previous'] or {}).get('name', 'none'),
        'candidate': (now['candidate'] or {}).get('name', 'none'),
        'hold': now['hold'],
        'rejected': len(now['rejected']),
        'engine': f'{now["engine"]} ({now["engine_reason"]})',
    }
    if now['alarm'] or now['error']:
        return Report(Level.WARN, now['alarm'] or now['error'], values)
    return Report(Level.OK, now['state'], values)


def ages(layout: ObservationLayout, buffer: ObservationBuffer) -> dict[str, Any]:
    """Return the age of every stream."""
    values: dict[str, Any] = {}
    for stream in layout.sensed:
        age = buffer.age_s(stream.source, stream.topic)
        values[f'{stream.name} age_s'] = 'nothing received' if age is None else age
    values['rejected samples'] = buffer.rejected
    return values


def stream_report(loop: Loop, notices: Notices, more: dict[str, Any]) -> Report:
    """Report the age of every stream and what is wrong with it."""
    values = ages(loop.agent.policy.layout, loop.buffer) | more
    if isinstance(loop, LockstepLoop):
        values['waiting for'] = loop.look_around()
    problems = notices.active
    if problems:
        return Report(Level.WARN, '; '.join(problems), values)
    return Report(Level.OK, 'ok', values)


def waiting_for(loop: Loop | None) -> str:
    """Return what the next episode waits for, '' where it does not, or nobody acts."""
    return '' if loop is None else loop.waiting_for


def decision_report(loop: Loop | None, alive: bool, scheduling: str) -> Report:
    """Report latencies and counts of decisions, and how urgently their thread is run."""
    if loop is None:
        return Report(Level.OK, 'not active')
    decision, engine = loop.decision_latency, loop.engine_latency
    values = {
        'decisions': loop.agent.number,
        'decision p50 ms': decision.percentile(50) * 1e3,
        'decision p99 ms': decision.percentile(99) * 1e3,
        'engine p50 ms': engine.percentile(50) * 1e3,
        'engine p99 ms': engine.percentile(99) * 1e3,
        'records': loop.log.completed,
        'records without outcome': loop.log.unjudged,
        'scheduling': scheduling,
        'episode': loop.episode,
        'next episode waits for': loop.waiting_for,
    }
    if isinstance(loop, RealTimeLoop):
        values['late control periods'] = loop.grid.late_periods
        values['outcomes out of order'] = loop.outcomes_out_of_order
    if not alive:
        return Report(Level.ERROR, 'a thread of the server died', values)
    waiting = loop.waiting_for
    return Report(Level.OK, f'waiting for {waiting}' if waiting else 'ok', values)


def output_report(loop: Loop | None, output: StreamOutput | None) -> Report:
    """Report the command stream: its rate, what was missed, how late the rest was."""
    if loop is None or output is None:
        return Report(Level.OK, 'not active')
    return Report(Level.OK, 'ok', output.figures())


def safety_report(safety: SafetyFilter, loop: Loop | None) -> Report:
    """Report interventions, how fast the arm may go, and the e-stop."""
    values = {**safety.counts, 'estop latched': safety.estop.latched}
    if loop is not None:
        values['speed scale'] = safety.speed.at(loop.tick)
    if isinstance(loop, RealTimeLoop):
        values['late stream'] = loop.late_stream
    if safety.estop.latched:
        return Report(Level.ERROR, f'stopped: {safety.estop.reason}', values)
    return Report(Level.OK, 'ok', values)
