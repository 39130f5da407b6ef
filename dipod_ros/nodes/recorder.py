# SPDX-License-Identifier: Apache-2.0
"""The recorder node: demonstrations of somebody who moves the arm, to a file for `dipod pretrain`.

Wiring only, around dipod_ros.learning. It commands nothing.
"""

from __future__ import annotations

import json
import time

import numpy as np
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.demonstration_file import DemonstrationFile
from dipod_ros.learning.demonstrations.recording import (
    EpisodeRecording,
    RecordingConfig,
    sample_ns,
    usable_problems,
)
from dipod_ros.learning.demonstrations.windows import WindowConfig
from dipod_ros.nodes import _recorder_status as status
from dipod_ros.nodes._parameters import read_parameters
from dipod_ros.nodes._policy_server_io import SensorInput
from dipod_ros.nodes._policy_server_loop import JOINT_TOPIC
from dipod_ros.nodes._recorder_commands import CommandInput
from dipod_ros.nodes._recorder_params import RecorderParams, recorded_spec
from dipod_ros.policy.spec import Stream
from dipod_ros.ros import qos
from dipod_ros.ros.diagnostics import Diagnostics
from dipod_ros.ros.messages import NS_PER_S
from dipod_ros.ros.runtime import run_node, steady_clock
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.observation import ObservationBuffer, ObservationLayout, Sample
from dipod_ros.serving.stamp_clock import StampClock
from dipod_ros.serving.stamp_guard import StampGuard

STATUS_PERIOD_S = 0.5
# Joint states that are silent for this long end a recording; a gap is judged by their stamps.
SILENT_S = 1.0


class Recorder(Node):
    """Records episodes between ~/start and ~/stop; see docs/recording.md."""

    def __init__(self) -> None:
        """Read the parameters and the file that is there, and listen.

        Raises UserError when parameters are wrong, or the file is of something else.
        """
        super().__init__('recorder')
        self.params = p = read_parameters(self, RecorderParams)
        self.spec = spec = recorded_spec(p)
        self._config = RecordingConfig(
            WindowConfig(p.stride, p.idle_rad_s, p.clip_rad),
            JOINT_TOPIC,
            p.joint_max_age_s,
            p.max_episode_s,
            p.tracking_lag_s,
        )
        self._file = DemonstrationFile(p.output, spec)
        self._layout = ObservationLayout(spec, p.joints)
        self._buffer = ObservationBuffer(time.monotonic)
        self._stamps = StampClock()
        self._jumps = 0
        guard = StampGuard(p.stamp_tolerance_s, JOINT_TOPIC, self._robot_ns)
        self._buffer.judge = guard.judge
        self._joints: Sample | None = None
        self._recording: EpisodeRecording | None = None
        self._last: dict | None = None
        self._said = ''
        self._input = SensorInput(
            self, self._buffer, p.joints, False, self._on_sample, self._on_outcome
        )
        own = Stream('joints', 'joint_position', len(p.joints), JOINT_TOPIC)
        self._input.listen((*spec.streams, own))
        topic = p.topic_of_commands
        self._commands = (
            CommandInput(
                self,
                p.command_source,
                topic,
                spec,
                self._now_ns,
                lambda: self._joints,
                lambda: self._takes,
                p.stamp_tolerance_s,
            )
            if topic
            else None
        )
        self._status = self.create_publisher(String, '~/status', qos.LATCHED)
        self.create_service(Trigger, '~/start', self._on_start)
        self.create_service(SetBool, '~/stop', self._on_stop)
        self.create_service(Trigger, '~/discard', self._on_discard)
        self._diagnostics = Diagnostics(self, hardware_id=p.robot)
        self._diagnostics.add('recording', lambda: status.report(self._status_now()))
        self.create_timer(STATUS_PERIOD_S, self._look, clock=steady_clock())
        self._publish_status()
        self.get_logger().info(
            f'task {spec.task}: {len(self._file.success)} episodes in {self._file.path}; '
            'call ~/start and ~/stop'
        )

    @property
    def _takes(self) -> bool:
        """Whether a recording is under way that is any good."""
        return self._recording is not None and not self._recording.fault

    def close(self) -> None:
        """Drop what is being recorded; what was finished is in the file.

        Raises UserError when it is not, and still cannot be written.
        """
        if self._recording is not None:
            self.get_logger().warning('the recording under way is dropped: it was not stopped')
            self._recording = None
        if not self._file.unsaved:
            return
        try:
            self._file.save()
        except UserError as error:
            raise UserError(f'{error}; what was recorded and not written is lost') from error

    # Samples

    def _on_sample(self) -> None:
        joints = self._buffer.sample('joint_position', JOINT_TOPIC)
        if joints is None or joints is self._joints:
            return
        self._joints = joints
        self._stamps.observe(joints.stamp_ns, joints.received_s)
        time_ns = sample_ns(joints)
        if self._commands is not None:
            if self._stamps.jumps != self._jumps:
                self._jumps = self._stamps.jumps
                self._commands.clear()
            self._commands.advance(time_ns)
        if self._takes:
            self._recording.take(joints)
            self._tell_of_fault()
        elif self._commands is not None:
            self._commands.curve.forget_before(time_ns)

    def _on_outcome(self, outcome: Outcome) -> None:
        """End the recording where the world says that it began anew."""
        recording = self._recording
        if not outcome.reset or recording is None or recording.fault:
            return
        if recording.begun_ns is not None and outcome.stamp_ns > recording.begun_ns:
            self._end(outcome.success, outcome.stamp_ns)

    def _robot_ns(self, steady_s: float) -> int | None:
        return self._stamps.about_ns(steady_s) if self._stamps.settled else None

    def _now_ns(self) -> int:
        now_s = time.monotonic()
        robot = self._stamps.stamp_ns(now_s)
        return round(now_s * NS_PER_S) if robot is None else robot

    # Services

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        problems = self._problems()
        if self._takes:
            response.message = 'recording already: ~/stop ends it'
        elif problems:
            response.message = '; '.join(problems)
        else:
            self._recording = EpisodeRecording(
                self._layout,
                self._buffer,
                self._config,
                None if self._commands is None else self._commands.curve,
                self._file.room,
            )
            response.success = True
            response.message = f'recording episode {len(self._file.success)}'
        self._publish_status()
        return response

    def _on_stop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._recording is None:
            response.message = 'nothing is being recorded: ~/start begins an episode'
            return response
        response.success, response.message = self._end(request.data)
        return response

    def _on_discard(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._recording is not None:
            self._recording = None
            response.success, response.message = True, 'dropped what was being recorded'
        else:
            try:
                self._file.discard()
                response.success = True
                response.message = f'dropped the last of {len(self._file.success) + 1} episodes'
            except UserError as error:
                response.message = str(error)
        self.get_logger().info(response.message)
        self._publish_status()
        return response

    def _end(self, success: bool, until_ns: int | None = None) -> tuple[bool, str]:
        """End the recording; return whether it was kept, and what came of it."""
        recording, self._recording = self._recording, None
        number, kept, figures = len(self._file.success), False, {}
        try:
            episode = recording.finish(until_ns)
            w = episode.windows
            figures = {
                'decisions': len(episode.observations),
                'seconds': round(episode.seconds, 3),
                'clip_rad': round(w.clip_rad, 6),
                'clipped_share': round(w.clipped_share, 4),
                'over': w.over,
                'lag_s': np.round(episode.lag_s, 4).tolist(),
            }
            self._file.add(episode, success)
            kept = True
            text = f'episode {number}: {figures["decisions"]} decisions, {episode.seconds:.2f} s'
            text += f', {"success" if success else "failure"}'
            if w.over:
                text += f'; {w.clipped_share:.0%} of it clipped, because {w.over}'
        except UserError as error:
            text = f'episode {number} is not in the file: {error}'
            if self._file.unsaved:
                text += '; it is kept, and written with the next ~/stop or when the recorder ends'
        self._last = {'kept': kept, 'success': success, 'text': text, **figures}
        if kept:  # rclpy ties a line of code to one severity
            self.get_logger().info(text)
        else:
            self.get_logger().error(text)
        self._publish_status()
        return kept, text

    # What it says about itself

    def _look(self) -> None:
        age = self._buffer.age_s('joint_position', JOINT_TOPIC)
        if self._takes and age is not None:
            silent_s = max(SILENT_S, 2 * self._config.joint_max_age_s)
            if age > silent_s:
                self._recording.spoil(f'no {JOINT_TOPIC} for {silent_s:g} s')
                self._tell_of_fault()
        self._publish_status()

    def _tell_of_fault(self) -> None:
        if self._recording.fault:
            self.get_logger().error(f'this recording is no good: {self._recording.fault}')
            self._publish_status()

    def _problems(self) -> list[str]:
        """Return what keeps a recording from beginning now."""
        silent_s = max(SILENT_S, self._config.joint_max_age_s)
        problem = self._buffer.problem('joint_position', JOINT_TOPIC, silent_s)
        if problem is not None:
            return [problem.text]
        found = [p.text for p in usable_problems(self._layout, self._buffer, self._joints)]
        if self._commands is not None and self._commands.problem:
            found.append(self._commands.problem)
        return found

    def _status_now(self) -> dict:
        return status.describe(self.spec, self._file, self._recording, self._problems(), self._last)

    def _publish_status(self) -> None:
        text = json.dumps(self._status_now())
        if text != self._said:
            self._said = text
            self._status.publish(String(data=text))


def main(args: list[str] | None = None) -> int:
    """Run the recorder; the exit code is that of `run_node`."""
    return run_node(Recorder, args)


if __name__ == '__main__':
    raise SystemExit(main())
