# SPDX-License-Identifier: Apache-2.0
"""/diagnostics once a second, from a steady clock (diagnostic_updater is not on PyPI)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node


class Level(Enum):
    """Severity, as diagnostic_msgs defines it."""

    OK = DiagnosticStatus.OK
    WARN = DiagnosticStatus.WARN
    ERROR = DiagnosticStatus.ERROR
    STALE = DiagnosticStatus.STALE


@dataclass(frozen=True)
class Report:
    """What one task says about itself; values are shown as text, floats with four digits."""

    level: Level = Level.OK
    message: str = 'ok'
    values: Mapping[str, Any] = field(default_factory=dict)


class Diagnostics:
    """Publishes the reports of a node's tasks; each task is a function that returns a Report."""

    def __init__(self, node: Node, hardware_id: str = '', period_s: float = 1.0) -> None:
        """Create the publisher and its timer on `node`."""
        self._node = node
        self._hardware_id = hardware_id
        self._tasks: dict[str, Callable[[], Report]] = {}
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A ROS timer never fires when use_sim_time is set and nobody publishes /clock: just when
        # somebody looks here for the reason.
        self._timer = node.create_timer(
            period_s, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def add(self, task: str, report: Callable[[], Report]) -> None:
        """Report `task` from now on."""
        self._tasks[task] = report

    def publish(self) -> None:
        """Publish every task's report now."""
        msg = DiagnosticArray()
        msg.header.stamp = self._node.get_clock().now().to_msg()
        msg.status = [self._status(task, report()) for task, report in self._tasks.items()]
        self._publisher.publish(msg)

    def _status(self, task: str, report: Report) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=report.level.value,
            name=f'{self._node.get_fully_qualified_name().lstrip("/")}: {task}',
            message=report.message,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=k, value=_text(v)) for k, v in report.values.items()],
        )


def _text(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
