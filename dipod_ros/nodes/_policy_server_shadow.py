# SPDX-License-Identifier: Apache-2.0
"""What the policy server says about its shadow: ~/shadow after every comparison, /diagnostics."""

from __future__ import annotations

import json
from typing import Any

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import String

from dipod_ros.nodes import _policy_server_status as status
from dipod_ros.ros import qos
from dipod_ros.ros.diagnostics import Level, Report
from dipod_ros.serving.promotion import Candidate
from dipod_ros.serving.shadow import FAILED, OFF, Shadow


class ShadowOutput:
    """Publishes the figures of the shadow."""

    def __init__(self, node: LifecycleNode) -> None:
        """Create the publisher."""
        self._publisher = node.create_publisher(String, '~/shadow', qos.STATE)

    def send(self, shadow: Shadow, candidate: Candidate | None) -> None:
        """Publish how the shadow stands, if there is one."""
        now = figures(shadow, candidate)
        if now is not None:
            self._publisher.publish(String(data=json.dumps(now)))


def identity(shadow: Shadow | None, candidate: Candidate | None) -> dict[str, Any] | None:
    """Return what runs in the shadow and for whom, for ~/status; None when nothing does."""
    wanted = None if shadow is None else shadow.wanted
    if wanted is None:
        return None
    own = candidate is not None and candidate.manifest is wanted
    return {
        **status.describe(wanted),
        'role': 'candidate' if own else 'shadow_checkpoint',
        'state': shadow.state,
        'error': shadow.error,
    }


def figures(shadow: Shadow | None, candidate: Candidate | None) -> dict[str, Any] | None:
    """Return the same with its figures; times in ms."""
    about = identity(shadow, candidate)
    if about is None:
        return None
    values = shadow.figures.to_dict()
    for name in ('latency_p50', 'latency_p99'):
        values[f'{name}_ms'] = values.pop(f'{name}_s') * 1e3
    return {**about, **values}


def shadow_report(shadow: Shadow | None, candidate: Candidate | None) -> Report:
    """Report the comparisons, for /diagnostics."""
    now = figures(shadow, candidate)
    if now is None:
        return Report(Level.OK, OFF)
    now.pop('last')
    if now['state'] == FAILED:
        return Report(Level.WARN, now['error'], now)
    if now['faults']:
        return Report(Level.WARN, now['fault'], now)
    return Report(Level.OK, now['state'], now)
