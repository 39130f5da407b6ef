# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says of the streams and of the command topic, acting or about to act.

Before activation nothing watches the streams but this report: it says what would hold the arm.
"""

from __future__ import annotations

from typing import Any

from dipod_ros.nodes import _policy_server_status as status
from dipod_ros.nodes._policy_server_commanders import Commanders
from dipod_ros.nodes._policy_server_listener import ListenerCheck, nobody
from dipod_ros.nodes._policy_server_loop import JOINT_TOPIC
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._policy_server_topic import CommandTopic
from dipod_ros.policy.limits import JointLimits
from dipod_ros.ros.diagnostics import Level, Report
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.loop import Loop
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout
from dipod_ros.serving.stamp_clock import NS_PER_S
from dipod_ros.serving.start_place import StartPlace


class StreamReports:
    """Looks once a second, beside /diagnostics."""

    def __init__(
        self,
        p: PolicyServerParams,
        limits: JointLimits,
        notices: Notices,
        commanders: Commanders,
    ) -> None:
        """Take what the acting loop tells its problems to, and who looks for other commanders."""
        self._p, self._limits = p, limits
        self._notices = notices
        self._commanders = commanders
        self._listeners = ListenerCheck(notices)

    def report(
        self,
        loop: Loop | None,
        agent: Agent | None,
        buffer: ObservationBuffer | None,
        topic: CommandTopic | None,
    ) -> Report:
        """Report on a loop that acts, on an agent that could, or that nothing is configured."""
        if loop is not None:
            self._listeners.look(topic.name, topic.listeners)
            self._commanders.look(topic, loop)
            return status.stream_report(loop, self._notices, self._on_the_topic(topic))
        self._listeners.forget()
        self._commanders.forget()
        if agent is None or topic is None:
            return Report(Level.OK, 'not configured: nothing is listened to')
        layout = agent.policy.layout
        values = status.ages(layout, buffer) | self._on_the_topic(topic)
        problems = self._problems(layout, buffer, topic)
        if problems:
            return Report(Level.WARN, f'not active; {"; ".join(problems)}', values)
        return Report(Level.OK, 'not active; every stream is there', values)

    def _on_the_topic(self, topic: CommandTopic) -> dict[str, Any]:
        return {
            f'listeners on {topic.name}': topic.listeners(),
            f'other publishers on {topic.name}': ', '.join(topic.commanders()) or 'none',
        }

    def _problems(
        self, layout: ObservationLayout, buffer: ObservationBuffer, topic: CommandTopic
    ) -> list[str]:
        """Return what would keep the arm from moving, or be told, after activation."""
        p = self._p
        found = layout.problems(buffer)
        own = [buffer.problem('joint_position', JOINT_TOPIC, p.joint_max_age_s)]
        if p.interface == 'effort':
            own.append(
                buffer.problem('joint_velocity', JOINT_TOPIC, p.joint_max_age_s, 'joint velocities')
            )
        found += [o for o in own if o and not any(o.topic == f.topic for f in found)]
        if p.lockstep:  # a world that waits says nothing new
            found = [f for f in found if f.kind != 'stale']
        texts = [f.text for f in found]
        texts += [] if p.lockstep else self._other_times(layout, buffer)
        joints = buffer.sample('joint_position', JOINT_TOPIC)
        if joints is not None:
            place = Notices()
            StartPlace(self._limits, place).allows(joints.values)
            texts += place.active
        if not topic.listeners():
            texts.append(nobody(topic.name))
        return texts + self._commanders.refusals(topic)

    def _other_times(self, layout: ObservationLayout, buffer: ObservationBuffer) -> list[str]:
        """Return which stamps would be refused, going by the newest joint states."""
        p = self._p
        joints = buffer.sample('joint_position', JOINT_TOPIC)
        if joints is None or not joints.stamp_ns or not p.stamp_tolerance_s:
            return []
        texts = []
        for stream in layout.stamped:
            sample = buffer.sample(stream.source, stream.topic)
            if sample is None or not sample.stamp_ns:
                continue
            apart_s = (sample.stamp_ns - joints.stamp_ns) / NS_PER_S
            off_s = apart_s - (sample.received_s - joints.received_s)
            if abs(off_s) > p.stamp_tolerance_s:
                side = 'ahead of' if off_s > 0 else 'behind'
                texts.append(
                    f"stream {stream.name}: its stamps are {side} the robot's clock, that of "
                    f'{JOINT_TOPIC}, by more than {p.stamp_tolerance_s:g} s'
                )
        return texts
