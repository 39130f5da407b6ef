# SPDX-License-Identifier: Apache-2.0
"""The simulator node: MuJoCo worlds that speak what ros2_control speaks.

Wiring only: parameters, clocks, services and topics around dipod_ros.sim. In lockstep the worlds
wait for the commands that answer their observation; in real time a steady timer moves them on.
"""

from __future__ import annotations

import json
import time

import numpy as np
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from dipod_ros.nodes._mujoco_sim_cameras import Cameras
from dipod_ros.nodes._mujoco_sim_params import MujocoSimParams
from dipod_ros.nodes._mujoco_sim_world import WorldTopics
from dipod_ros.nodes._parameters import read_parameters
from dipod_ros.ros import qos
from dipod_ros.ros.diagnostics import Diagnostics, Level, Report
from dipod_ros.ros.messages import NS_PER_S, Outcome, time_msg
from dipod_ros.ros.runtime import run_node, steady_clock
from dipod_ros.sim.episodes import Episodes
from dipod_ros.sim.tasks.registry import make_task

STATUS_PERIOD_S = 0.5
# A real-time world that fell behind by more than this starts its schedule anew instead of racing.
MAX_BEHIND_S = 0.5


class MujocoSim(Node):
    """N worlds of one task on one robot; see docs/simulation.md.

    Simulated time, `stamp_ns`, never goes back, not even when a world is reset.
    """

    def __init__(self) -> None:
        """Compile the worlds and publish the first observation."""
        super().__init__('mujoco_sim')
        self.params = p = read_parameters(self, MujocoSimParams)
        robot = p.robot_config()
        task = make_task(p.task, robot)
        self._period_ns = round(robot.control_period_s * NS_PER_S)
        self._substeps = task.world.substeps // p.slices
        self._step_s = robot.control_period_s / task.world.substeps
        self._slice = 0  # updates of the controllers within this control period
        self.episodes = Episodes(task, p.worlds, p.seed, p.threads)
        self._chunk_steps = task.horizon
        self._ticks = 0  # control periods executed
        # Simulated time begins after 0: a stamp of 0 in a trajectory means "from now on".
        self.stamp_ns = self._period_ns
        self._paused = False
        self._published_s = 0.0  # steady time of the newest observation
        self._resends = 0
        self._finished = self._successes = 0
        self.worlds = [
            WorldTopics(
                self,
                p,
                robot,
                f'world{i}/' if p.worlds > 1 else '',
                task.horizon,
                self._on_answer,
            )
            for i in range(p.worlds)
        ]
        for world, position in zip(self.worlds, self.episodes.worlds.joint_position, strict=True):
            world.restart(position)
        self._cameras = Cameras(p, task)
        self._clock_pub = self.create_publisher(Clock, '/clock', 10)
        self._status = self.create_publisher(String, '~/status', qos.LATCHED)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/set_pause', self._on_pause)
        self.create_service(Trigger, '~/step', self._on_step)
        self._diagnostics = Diagnostics(self, hardware_id=robot.name)
        self._diagnostics.add('simulation', self._report)
        steady = steady_clock()
        self.create_timer(STATUS_PERIOD_S, self._publish_status, clock=steady)
        if p.lockstep:
            self.create_timer(p.lockstep_resend_s / 4, self._resend, clock=steady)
        else:
            self._due = time.monotonic()
            # Asked twice per update: the schedule, not the timer, decides when one is due.
            tick = robot.control_period_s / p.slices / p.real_time_factor / 2
            self.create_timer(tick, self._keep_pace, clock=steady)
        first = [Outcome(self.stamp_ns, int(e) - 1, reset=True) for e in self.episodes.episode]
        self._publish(first)
        self._publish_status()
        self.get_logger().info(
            f'{p.worlds} world(s) of {p.task} on {robot.name}, '
            + ('in lockstep' if p.lockstep else f'at {p.real_time_factor:g} x real time')
        )
        if p.worlds > 1:
            self.get_logger().info(
                'each world is a robot of its own: give server:=false here, and start a server for '
                'each, `dipod up robot ns:=world0 ...` (docs/launch.md, Several robots)'
            )

    def close(self) -> None:
        """Say goodbye with the last figures."""
        self._publish_status()
        self._cameras.close()

    # Commands

    def _on_answer(self) -> None:
        """Move on when every world has been answered (lockstep only)."""
        if self.params.lockstep and not self._paused and all(w.answered for w in self.worlds):
            self._advance(self._answer_steps())

    def _answer_steps(self) -> int:
        """Return how many control periods the worlds go on together."""
        return self.params.lockstep_steps or min(w.answer_steps for w in self.worlds)

    def _keep_pace(self) -> None:
        now = time.monotonic()
        if self._paused:
            self._due = now
            return
        if now - self._due > MAX_BEHIND_S:
            self._due = now
        if now >= self._due:
            p = self.params
            self._due += self._period_ns / NS_PER_S / p.slices / p.real_time_factor
            if p.slices == 1:
                self._advance(1)
            else:
                self._advance_slice()

    def _advance(self, steps: int) -> None:
        """Execute control periods, then publish what came of them."""
        for _ in range(steps):
            self._execute(period_ends=True)
            self.stamp_ns += self._period_ns
        self._end_period()

    def _advance_slice(self) -> None:
        """Execute the part of a control period until the controllers' next update."""
        slices = self.params.slices
        part = self._slice + 1
        self._execute(period_ends=part == slices)
        began_ns = self.stamp_ns - self._slice * self._period_ns // slices
        self.stamp_ns = began_ns + part * self._period_ns // slices
        self._slice = part % slices
        if self._slice == 0:
            self._end_period()
            return
        physics = self.episodes.worlds
        for i, world in enumerate(self.worlds):
            world.now_ns = self.stamp_ns
            world.publish_joints(
                self.stamp_ns, physics.joint_position[i], physics.joint_velocity[i]
            )

    def _execute(self, period_ends: bool) -> None:
        now_s = self.stamp_ns / NS_PER_S
        setpoints = np.stack(
            [w.controller.setpoints(now_s, self._step_s, self._substeps) for w in self.worlds]
        )
        effort = self.episodes.advance(setpoints, period_ends=period_ends)
        self._ticks += period_ends
        for world, torque in zip(self.worlds, effort, strict=True):
            world.effort = torque

    def _end_period(self) -> None:
        for world in self.worlds:
            world.answered = False
        self._publish(self._outcomes())

    def _outcomes(self) -> list[Outcome | None]:
        """Return what each world has to tell; None between two judgements in real time."""
        due = self.episodes.step % self._chunk_steps == 0
        if not (self.params.lockstep or due.any()):
            return [None] * len(self.worlds)
        result = self.episodes.outcome()
        ended = result.terminated
        outcomes: list[Outcome | None] = [
            Outcome(
                self.stamp_ns,
                int(self.episodes.episode[i]),
                reward=float(result.reward[i]),
                success=bool(result.success[i]),
                terminated=bool(ended[i]),
                reset=bool(ended[i]),
            )
            if self.params.lockstep or due[i] or ended[i]
            else None
            for i in range(len(self.worlds))
        ]
        self._finished += int(ended.sum())
        self._successes += int((ended & result.success).sum())
        self._begin(ended)
        return outcomes

    def _begin(self, mask: np.ndarray) -> None:
        self.episodes.begin(mask)
        positions = self.episodes.worlds.joint_position
        for world, position, begins in zip(self.worlds, positions, mask, strict=True):
            if begins:
                world.restart(position, self.stamp_ns)

    # Observations

    def _publish(self, outcomes: list[Outcome | None]) -> None:
        """Publish clock, outcomes and observations, joint_states last: it completes them."""
        ns = self.stamp_ns
        self._clock_pub.publish(Clock(clock=time_msg(ns)))
        points = self.episodes.points()
        physics = self.episodes.worlds
        for i, world in enumerate(self.worlds):
            world.now_ns = ns
            outcome = outcomes[i]
            if outcome is not None:
                world.publish_outcome(outcome)
            begins = outcome is not None and outcome.reset
            for picture in self._cameras.pictures(
                self._ticks, physics.state[i], self.episodes.goal[i], begins
            ):
                world.publish_image(ns, *picture)
            for name, values in points.items():
                world.publish_point(ns, name, values[i])
        for i, world in enumerate(self.worlds):
            world.publish_joints(ns, physics.joint_position[i], physics.joint_velocity[i])
        self._published_s = time.monotonic()

    def _resend(self) -> None:
        """Publish the observation again to whoever has not answered: it may have come late."""
        if self._paused or time.monotonic() - self._published_s < self.params.lockstep_resend_s:
            return
        self._resends += 1
        self._published_s = time.monotonic()
        self._clock_pub.publish(Clock(clock=time_msg(self.stamp_ns)))
        for world in self.worlds:
            if not world.answered:
                world.resend()

    # Services

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Cut every episode off and begin the next; time goes on by one control period."""
        everywhere = np.ones(len(self.worlds), dtype=bool)
        self.stamp_ns += self._period_ns
        self._slice = 0
        rewards = self.episodes.outcome().reward
        outcomes: list[Outcome | None] = [
            Outcome(self.stamp_ns, int(e), reward=float(r), truncated=True, reset=True)
            for e, r in zip(self.episodes.episode, rewards, strict=True)
        ]
        self._begin(everywhere)
        for world in self.worlds:
            world.answered = False
        self._publish(outcomes)
        response.success = True
        response.message = f'episodes {self.episodes.episode.tolist()} began'
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        response.success = True
        response.message = 'paused' if self._paused else 'running'
        if not self._paused:
            self._on_answer()
        return response

    def _on_step(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Advance a paused world by one answer (lockstep) or one control period."""
        if not self._paused:
            response.success, response.message = False, 'not paused: call ~/set_pause first'
            return response
        if self.params.slices == 1:
            self._advance(self._answer_steps() if self.params.lockstep else 1)
        else:
            for _ in range(self._slice, self.params.slices):
                self._advance_slice()
        response.success, response.message = True, f'time is {self.stamp_ns / NS_PER_S:.3f} s'
        return response

    # Status

    def _figures(self) -> dict:
        worlds = self.worlds
        return {
            'task': self.params.task,
            'worlds': len(worlds),
            'lockstep': self.params.lockstep,
            'paused': self._paused,
            'time_s': self.stamp_ns / NS_PER_S,
            'ticks': self._ticks,
            'episodes': self._finished,
            'successes': self._successes,
            'commands': sum(w.commands for w in worlds),
            'limit_violations': sum(w.violations for w in worlds),
            'last_violation': next((w.last_violation for w in worlds if w.last_violation), ''),
            'last_rejection': next((w.last_rejection for w in worlds if w.last_rejection), ''),
            'rejected_commands': sum(w.rejected for w in worlds),
            'ignored_commands': sum(w.ignored for w in worlds),
            'inactive_controllers': [i for i, w in enumerate(worlds) if w.activity.inactive],
            'command_timeouts': sum(getattr(w.controller, 'timeouts', 0) for w in worlds),
            'resends': self._resends,
            'waiting_worlds': [i for i, w in enumerate(worlds) if not w.answered]
            if self.params.lockstep
            else [],
        }

    def _publish_status(self) -> None:
        self._status.publish(String(data=json.dumps(self._figures())))

    def _report(self) -> Report:
        figures = self._figures()
        level, message = Level.OK, 'paused' if self._paused else 'running'
        if figures['limit_violations']:
            level, message = Level.ERROR, f'command violated limits: {figures["last_violation"]}'
        elif self.params.lockstep and not self._paused:
            waited = time.monotonic() - self._published_s
            if waited > self.params.lockstep_resend_s / 2:
                level = Level.WARN
                message = f'waiting for a command in worlds {figures["waiting_worlds"]}'
        return Report(level, message, figures)


def main(args: list[str] | None = None) -> int:
    """Run the simulator node; the exit code is that of `run_node`."""
    return run_node(MujocoSim, args)


if __name__ == '__main__':
    raise SystemExit(main())
