# SPDX-License-Identifier: Apache-2.0
"""What the recorder says about itself: ~/status when it changes, /diagnostics at 1 Hz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dipod_ros.learning.demonstrations.demonstration_file import DemonstrationFile
from dipod_ros.learning.demonstrations.recording import EpisodeRecording
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.ros.diagnostics import Level, Report


def describe(
    spec: PolicySpec,
    file: DemonstrationFile,
    recording: EpisodeRecording | None,
    problems: Sequence[str],
    last: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return ~/status; `problems` keep a recording from beginning, `last` is the last episode."""
    state = 'waiting' if problems else 'ready'
    share, fastest, seconds = 0.0, '', 0.0
    if recording is not None:
        state = 'spoiled' if recording.fault else 'recording'
        share, fastest = recording.fastest
        seconds = recording.seconds
        problems = [recording.fault] if recording.fault else problems
    return {
        'state': state,
        'problems': list(problems),
        'too_fast': fastest if share > 1 else '',
        'seconds': round(seconds, 1),
        'task': spec.task,
        'output': str(file.path.resolve()),
        'episodes': len(file.success),
        'successes': sum(file.success),
        'decisions': file.decisions,
        'session_episodes': file.session_episodes,
        'room': file.room,
        'unsaved': file.unsaved,
        'last': last,
    }


def report(now: Mapping[str, Any]) -> Report:
    """Return what /diagnostics says, from what ~/status says."""
    values = {k: v for k, v in now.items() if k not in ('problems', 'last')}
    if now['state'] == 'spoiled':
        return Report(Level.ERROR, now['problems'][0], values)
    if now['unsaved']:
        return Report(Level.ERROR, 'the file could not be written', values)
    if now['problems'] or now['too_fast']:
        text = '; '.join(now['problems']) or f'{now["too_fast"]}: too fast to be repeated'
        return Report(Level.WARN, text, values)
    return Report(Level.OK, now['state'], values)
