# SPDX-License-Identifier: Apache-2.0
"""Parameters of the mujoco_sim node, and the robot that they describe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.ros.params import group, param
from dipod_ros.serving.loop import INTERFACES
from dipod_ros.sim.faults import FaultConfig
from dipod_ros.sim.robot import RobotConfig


@dataclass(frozen=True)
class LimitParams:
    """Limits per joint, in the order of `joints`; commands are judged by them."""

    position_lower: tuple[float, ...] = param((), 'lowest position per joint', unit='rad')
    position_upper: tuple[float, ...] = param((), 'highest position per joint', unit='rad')
    velocity: tuple[float, ...] = param((), 'largest speed per joint', unit='rad/s')
    acceleration: tuple[float, ...] = param((), 'largest acceleration per joint', unit='rad/s^2')
    effort: tuple[float, ...] = param((), 'largest torque per joint; empty is as in the MJCF')


@dataclass(frozen=True)
class FaultParams:
    """What goes wrong on purpose, for tests, in real time."""

    drop_joint_states: int = param(
        0, 'leave out every n-th joint_states (real time); 0 is none', low=0
    )
    delay_joint_states: int = param(
        0, 'joint_states arrive this many samples late (real time)', low=0
    )
    controller_inactive_s: tuple[float, ...] = param(
        (),
        'simulated times [from, to, from, to, ...] between which the controllers are inactive: '
        'they ignore commands, and go on from where the arm is (real time); empty is never',
        unit='s',
    )


@dataclass(frozen=True)
class MujocoSimParams:
    """Parameters of the mujoco_sim node; those of the robot come from its file."""

    task: str = param('pillar_reach', 'what the episodes are about; `none` is just the robot')
    worlds: int = param(1, 'worlds, each in its namespace world0/, world1/, ... if several', low=1)
    seed: int = param(0, 'episode e of world i depends on (seed, i, e) alone', low=0)
    threads: int = param(1, 'physics threads', low=1, high=64)
    lockstep: bool = param(False, 'wait for the answer to each observation')
    lockstep_steps: int = param(
        0,
        "control periods per answer; 0: the task's chunk for a trajectory, 1 for positions",
        low=0,
        high=1024,
    )
    lockstep_resend_s: float = param(
        1.0,
        'wait until an unanswered observation is published again',
        unit='s',
        low=0.01,
        high=3600.0,
    )
    real_time_factor: float = param(1.0, 'simulated seconds per second', low=0.001, high=1000.0)
    interface: str = param(
        'trajectory',
        'what the arm controller takes: trajectories and positions (trajectory, position), '
        'velocities, or torques (effort); the last two in real time alone',
        choices=INTERFACES,
    )
    command_rate_hz: float = param(
        0.0,
        'rate of the commands that are streamed in real time, by which they are judged; also of '
        'the controllers and joint_states. A multiple of the control rate; 0 is that rate',
        unit='Hz',
        low=0.0,
        high=1000.0,
    )
    command_timeout_s: float = param(
        0.1,
        'without a velocity or torque for this long the arm is braked; real controllers do that '
        'only where somebody sees to it',
        unit='s',
        low=0.001,
        high=60.0,
    )
    allow_nonzero_velocity_at_trajectory_end: bool = param(
        False, 'accept trajectories that end in motion, as joint_trajectory_controller does'
    )
    cameras: tuple[str, ...] = param((), 'cameras to publish as <camera>/image_raw; needs GL')
    camera_width: int = param(96, 'of the images', unit='pixel', low=8, high=4096)
    camera_height: int = param(96, 'of the images', unit='pixel', low=8, high=4096)
    camera_every: int = param(
        1,
        'control periods between two images, 1 in lockstep; an episode begins with one',
        low=1,
    )
    robot: str = param('', 'name of the robot')
    mjcf: str = param('', 'its MJCF: absolute, or relative to the share directory')
    joints: tuple[str, ...] = param((), 'joints in command order')
    actuators: tuple[str, ...] = param((), 'position actuators of the MJCF, in that order')
    home: tuple[float, ...] = param((), 'rest position', unit='rad')
    control_period_s: float = param(
        0.04, 'time between two commands', unit='s', low=0.001, high=10.0
    )
    controller: str = param('arm_controller', 'prefix of the command topics')
    tip_site: str = param('', 'site of the MJCF that is published as `tip`')
    limits: LimitParams = group(LimitParams)
    faults: FaultParams = group(FaultParams)

    def __post_init__(self) -> None:
        faulty = self.fault_config() != FaultConfig()
        if not self.lockstep:
            return
        # Whoever answers waits for all of an observation, and the world for the answer.
        if self.camera_every > 1:
            raise UserError(
                f'camera_every {self.camera_every} would leave observations without their '
                'pictures, for which lockstep waits: set it to 1, or lockstep to false'
            )
        if faulty:
            raise UserError(
                'faults.drop_joint_states, faults.delay_joint_states and '
                'faults.controller_inactive_s are for real time, where nobody waits for what they '
                'hold back: leave them out, or set lockstep to false'
            )

    @property
    def slices(self) -> int:
        """Updates of the controllers per control period; raises UserError for a wrong rate."""
        if not self.command_rate_hz:
            return 1
        exact = self.command_rate_hz * self.control_period_s
        count = round(exact)
        if self.lockstep:
            raise UserError('command_rate_hz has no meaning in lockstep: set it to 0')
        if count < 1 or abs(exact - count) > 1e-6:
            raise UserError(
                f'command_rate_hz {self.command_rate_hz:g} is not a multiple of the control rate '
                f'{1 / self.control_period_s:g} Hz'
            )
        return count

    def robot_config(self) -> RobotConfig:
        """Return the robot described; raises UserError when there is none or it is incomplete."""
        if not self.robot:
            raise UserError(
                'no robot: give its file with --params-file, for example config/robots/arm7.yaml'
            )
        limits = {k: v for k, v in vars(self.limits).items() if v}
        robot = RobotConfig.from_params({**vars(self), 'limits': limits}, beside=Path.cwd())
        timestep_s = robot.control_period_s / self.slices if self.command_rate_hz else None
        if self.interface in ('trajectory', 'position'):
            return replace(robot, max_timestep_s=timestep_s)
        if self.lockstep:
            raise UserError(f'interface {self.interface} is for real time: set lockstep to false')
        if self.interface == 'effort' and robot.effort is None:
            raise UserError('interface effort needs limits.effort in the robot file')
        return replace(robot, max_timestep_s=timestep_s, drive=self.interface)

    def fault_config(self) -> FaultConfig:
        """Return the faults asked for."""
        f = self.faults
        return FaultConfig(f.drop_joint_states, f.delay_joint_states, f.controller_inactive_s)
