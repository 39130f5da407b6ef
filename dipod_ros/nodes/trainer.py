# SPDX-License-Identifier: Apache-2.0
"""The trainer node: decisions from `replay` in, announced checkpoints out.

Thin wiring: the callback stores payloads, one worker thread assembles, learns, writes and
announces. The learning itself is dipod_ros.learning; a node of its own process, because an update
must never hold up a command.
"""

from __future__ import annotations

import json
import threading
import time
import traceback

from rclpy.node import Node
from std_msgs.msg import Float64MultiArray, MultiArrayDimension, String, UInt8MultiArray
from std_srvs.srv import Trigger

from dipod_ros.errors import UserError
from dipod_ros.nodes import _trainer_status as status
from dipod_ros.nodes._parameters import read_parameters
from dipod_ros.nodes._trainer_inbox import Inbox
from dipod_ros.nodes._trainer_params import TrainerParams, open_run
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.decision import Decision, DecisionError, decode
from dipod_ros.ros import qos
from dipod_ros.ros.diagnostics import Diagnostics, Report
from dipod_ros.ros.messages import doubles, read_payload
from dipod_ros.ros.runtime import EXIT_BUG, EXIT_USER_ERROR, request_exit, run_node

# A clamp smaller than this (rad) is round-off of float32, not an intervention.
CLAMP_RAD = 1e-6


class Trainer(Node):
    """Learns from the replay topic and announces what it learned; see docs/learning.md."""

    def __init__(self) -> None:
        """Open the run, announce where it stands, and start to learn."""
        super().__init__('trainer')
        self.params = read_parameters(self, TrainerParams)
        self._run = open_run(self.params)
        # torch takes a second to import: not before the parameters are known to be right.
        from dipod_ros.learning.replay import ReplayAssembler

        self._least = self.params.episodes_per_update
        self._most = max(self._least, self.params.max_episodes_per_update)
        self._assembler = ReplayAssembler(self._run.learner.policy.spec, self._most)
        self._inbox = Inbox()
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._finish = threading.Event()
        self._state, self._error = 'waiting', ''
        self._metrics: dict[str, float] = {}
        self._student: ckpt.Manifest | None = None
        self._update_s = 0.0
        self._decisions = self._clamped = self._undecodable = 0
        self._looked_at = 0  # finished episodes
        self._checkpoint_pub = self.create_publisher(String, '~/checkpoint', qos.LATCHED)
        self._student_pub = self.create_publisher(String, '~/student', qos.LATCHED)
        self._status_pub = self.create_publisher(String, '~/status', qos.LATCHED)
        self._metrics_pub = self.create_publisher(Float64MultiArray, '~/metrics', qos.STATE)
        self.create_subscription(UInt8MultiArray, 'replay', self._on_replay, qos.REPLAY)
        self.create_service(Trigger, '~/finish', self._on_finish)
        self._diagnostics = Diagnostics(self, hardware_id=self._run.initial.spec.robot)
        self._diagnostics.add('learning', self._report)
        if self.params.seed < 0:
            of = 'of the resumed run' if self._run.resumed else 'drawn'
            self.get_logger().info(f'seed {self._run.config.learner.seed} ({of})')
        if self._run.latest is not self._run.initial:
            self._announce(self._checkpoint_pub, self._run.latest)
        self._announce_student()
        self._publish_status()
        self.get_logger().info(
            f'{self._run.run_dir}: version {self._run.learner.version}; learns from every '
            f'{self._least} episodes on {self.resolve_topic_name("replay")}'
        )
        self._worker = threading.Thread(target=self._work, name='learning', daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Let the worker end its present step, then flush the logs."""
        self._stop.set()
        with self._wake:
            self._wake.notify()
        self._worker.join(timeout=30.0)
        if not self._worker.is_alive():  # it may still write: the folder is its own until the end
            self._run.close()

    # The executor's thread: store and return.

    def _on_replay(self, msg: UInt8MultiArray) -> None:
        if not self._inbox.admits(len(msg.data)):
            self._warn(f'a message of {len(msg.data)} bytes is no decision')
            return
        self._inbox.put(read_payload(msg))
        with self._wake:
            self._wake.notify()

    def _warn(self, reason: str) -> None:
        self.get_logger().warning(
            f'replay: {reason}; is another program publishing there?', throttle_duration_sec=10.0
        )

    def _on_finish(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._state not in ('finished', 'error')
        self._finish.set()
        with self._wake:
            self._wake.notify()
        what = 'no student' if self.params.student == 'off' else 'a student follows'
        response.message = f'learning ends after the present update; {what}; see ~/status'
        if not response.success:
            response.message = f'nothing to finish: the trainer is {self._state}'
        return response

    # The worker's thread.

    def _work(self) -> None:
        try:
            self._learn_until_finished()
        except UserError as error:
            self._fail(str(error))
            request_exit(EXIT_USER_ERROR, str(error))
        except Exception as error:
            traceback.print_exc()
            self._fail(f'{type(error).__name__}: {error}')
            request_exit(EXIT_BUG, f'learning failed: {type(error).__name__}: {error}')

    def _learn_until_finished(self) -> None:
        # A run that was ended during its last distillation has but that to do.
        self._finish_at_max_updates()
        while not self._stop.is_set():
            self._drain()
            if self._finish.is_set():
                self._finish_run()
                return
            rollout = self._assembler.take(self._least, self._most, self._run.version_of)
            if rollout is None:
                self._set_state('waiting')
                with self._wake:
                    self._wake.wait(timeout=0.05)
                continue
            self._set_state('learning')
            self._learn(rollout)

    def _drain(self) -> None:
        while (payload := self._inbox.take()) is not None:
            try:
                decision = decode(payload)
            except DecisionError as error:
                self._undecodable += 1
                self._warn(str(error))
                continue
            self._count(decision)
            self._assembler.add(decision)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Say as soon as an episode shows it what the next update will end with: wrong rewards."""
        new = self._assembler.counts['episodes'] - self._looked_at
        if not new:
            return
        self._looked_at += new
        rollout = self._assembler.newest(new, self._run.version_of)
        try:
            if rollout is not None:
                self._run.learner.require_fits(rollout)
        except UserError as error:
            if not self._error:
                self._error = str(error)
                self.get_logger().error(f'the next update will refuse its episodes: {error}')
                self._publish_status()
                self._diagnostics.publish()

    def _count(self, decision: Decision) -> None:
        self._decisions += 1
        self._clamped += decision.clamp_rad > CLAMP_RAD

    def _learn(self, rollout) -> None:
        from dipod_ros.learning.algorithms.base import UpdateStopped

        start = time.monotonic()
        try:
            metrics, manifest = self._run.update(rollout, self._stop.is_set)
        except UpdateStopped:
            return  # on Ctrl-C; what is on disk is the end of the update before
        self._update_s, self._error = time.monotonic() - start, ''
        counts = self._assembler.counts
        metrics |= {
            'update_s': self._update_s,
            'clamped_fraction': self._clamped / max(1, self._decisions),
            'waiting_episodes': self._assembler.ready_episodes,
        }
        metrics |= {f'replay_{name}': counts[name] for name in status.COUNTERS}
        self._metrics = metrics
        self._publish_metrics(metrics)
        if manifest is not None:
            self._announce(self._checkpoint_pub, manifest)
            self._announce_student()
        if metrics['collapsed']:
            self.get_logger().error(
                f'update {metrics["updates"]:.0f} collapsed the policy (CFM loss of own actions '
                f'x{metrics["cfm_ratio"]:.2f}, action std x{metrics["action_std_ratio"]:.2f}): '
                f'back to version {metrics["version"]:.0f}, gentler from here'
            )
        self.get_logger().info(
            f'update {metrics["updates"]:.0f}: version {metrics["version"]:.0f}, '
            f'success {metrics["success_rate"]:.2f} of {metrics["episodes"]:.0f} episodes, '
            f'{self._update_s:.1f} s'
        )
        updates = self._run.learner.updates
        if self.params.student == 'every_n' and updates % self.params.student_every == 0:
            self._distil()
        self._finish_at_max_updates()
        self._publish_status()

    def _finish_at_max_updates(self) -> None:
        if self.params.max_updates and self._run.learner.updates >= self.params.max_updates:
            self._finish.set()

    def _distil(self) -> None:
        self._set_state('distilling')
        self._run.make_student(stop=self._stop.is_set)
        self._announce_student()

    def _announce_student(self) -> None:
        """Announce the run's newest student, unless there is none or it has been announced."""
        if self._run.student is not self._student:
            self._student = self._run.student
            self._announce(self._student_pub, self._student)

    def _finish_run(self) -> None:
        if self.params.student != 'off':
            # Also after a fresh one: from scratch it is a little nearer to its teacher.
            if self._run.has_observations:
                self._distil()
            if self._stop.is_set():
                return  # what there is now may be the student of an older version
            if self._student is not None:
                # From here on the robot acts with the student; what it records is not learned from.
                self._announce(self._checkpoint_pub, self._student)
        self._set_state('finished')

    # Publishing; rclpy publishers may be used from any thread.

    def _announce(self, publisher, manifest: ckpt.Manifest) -> None:
        text = json.dumps(
            {
                'path': str(manifest.path.resolve()),
                'sha256': manifest.sha256,
                'version': manifest.version,
                'kind': manifest.kind,
            }
        )
        publisher.publish(String(data=text))

    def _publish_metrics(self, metrics: dict[str, float]) -> None:
        msg = Float64MultiArray()
        msg.layout.dim = [
            MultiArrayDimension(label=','.join(metrics), size=len(metrics), stride=len(metrics))
        ]
        msg.data = doubles([float(v) for v in metrics.values()])
        self._metrics_pub.publish(msg)

    def _publish_status(self) -> None:
        now = status.describe(self._run, self._state, self._error, self._metrics, self._update_s)
        self._status_pub.publish(String(data=json.dumps(now)))

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._publish_status()

    def _fail(self, reason: str) -> None:
        self._error = reason
        self._set_state('error')
        # The process ends before the next round of diagnostics.
        self._diagnostics.publish()

    def _report(self) -> Report:
        return status.report(
            self._state,
            self._error,
            self._metrics,
            self._undecodable + self._inbox.oversized,
            self._assembler.counts,
            self._assembler.unusable,
        )


def main(args: list[str] | None = None) -> int:
    """Run the trainer node; the exit code is that of `run_node`."""
    return run_node(Trainer, args)


if __name__ == '__main__':
    raise SystemExit(main())
