# SPDX-License-Identifier: Apache-2.0
"""The parameters of the recorder, and what they say is to be recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import MANIFEST_FILE, read_manifest, resolve
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.ros_names import require_topic
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.policy.spec_file import SUFFIXES, read_spec_file
from dipod_ros.resources import share_dir
from dipod_ros.ros.params import group, param

COMMAND_SOURCES = ('measured', 'joint_state', 'commands', 'trajectory')


@dataclass(frozen=True)
class LimitParams:
    """Limits per joint, in the order of `joints`; what is recorded keeps them."""

    position_lower: tuple[float, ...] = param((), 'lowest position per joint', unit='rad')
    position_upper: tuple[float, ...] = param((), 'highest position per joint', unit='rad')
    velocity: tuple[float, ...] = param((), 'largest speed per joint', unit='rad/s')
    acceleration: tuple[float, ...] = param((), 'largest acceleration per joint', unit='rad/s^2')


@dataclass(frozen=True)
class RecorderParams:
    """Parameters of the recorder node; those of the robot come from its file."""

    policy: str = param(
        '',
        'what the policy to be sees and how long its chunks are: a YAML file (docs/recording.md), '
        'a shipped model, or the folder of a checkpoint',
    )
    task: str = param('', 'name of the task; empty is that of `policy`')
    output: str = param(
        'runs/demos/recorded.safetensors', 'file of the demonstrations; episodes are added to it'
    )
    command_source: str = param(
        'measured',
        'what the commands were: where the joints went (kinesthetic teaching), a JointState of a '
        'leader arm, or what a controller is sent: positions or trajectories',
        choices=COMMAND_SOURCES,
    )
    command_topic: str = param(
        '',
        'topic of the commands; empty is <controller>/commands or <controller>/joint_trajectory; '
        'joint_state needs one',
    )
    tracking_lag_s: float = param(
        0.0,
        'command_source measured: how far the arm will follow behind its commands',
        unit='s', low=0.0, high=1.0,
    )  # fmt: skip
    stride: int = param(1, 'control steps from one recorded decision to the next', low=1, high=1024)
    idle_rad_s: float = param(
        0.02,
        'standing still at both ends is cut: every joint slower than this; 0 cuts nothing',
        unit='rad/s', low=0.0, high=1.0,
    )  # fmt: skip
    clip_rad: float = param(
        0.02,
        'an episode is refused when keeping the limits moves its commands by more than this; less '
        'is clipped',
        unit='rad', low=0.0, high=1.0,
    )  # fmt: skip
    max_episode_s: float = param(
        120.0,
        'a longer episode is refused: somebody forgot to stop',
        unit='s',
        low=0.1,
        high=3600.0,
    )
    joint_max_age_s: float = param(
        0.2,
        'a longer gap between two joint states spoils an episode',
        unit='s',
        low=0.001,
        high=10.0,
    )
    stamp_tolerance_s: float = param(
        0.5,
        "a message stamped further than this from the robot's clock, that of the joint states, is "
        'refused; 0 accepts all',
        unit='s', low=0.0, high=60.0,
    )  # fmt: skip
    robot: str = param('', 'name of the robot, from its file')
    joints: tuple[str, ...] = param((), 'joints that are recorded, in the order of the limits')
    limits: LimitParams = group(LimitParams)
    control_period_s: float = param(0.04, 'control period', unit='s', low=0.0001, high=10.0)
    controller: str = param('arm_controller', 'prefix of the command topics')

    @property
    def topic_of_commands(self) -> str:
        """Where commands are heard, '' for command_source measured; raises UserError."""
        if self.command_source == 'measured':
            return ''
        if self.command_topic:
            require_topic(self.command_topic, 'command_topic')
            return self.command_topic
        if self.command_source == 'joint_state':
            raise UserError('command_source joint_state: say where it is heard, command_topic')
        require_topic(self.controller, 'controller')
        topic = {'commands': 'commands', 'trajectory': 'joint_trajectory'}[self.command_source]
        return f'{self.controller}/{topic}'


def recorded_spec(p: RecorderParams) -> PolicySpec:
    """Return the spec that is recorded for, in the robot's joint order; raises UserError."""
    limits = JointLimits.from_params(p.joints, vars(p.limits))
    if not p.policy:
        raise UserError(
            'parameter policy is empty: name a YAML file that lists the streams, or a checkpoint'
        )
    if p.policy.endswith(SUFFIXES):
        spec = read_spec_file(p.policy, p.robot, limits, p.control_period_s, p.task)
    else:
        folder = Path(p.policy).expanduser()
        if not (folder / MANIFEST_FILE).is_file():
            folder = resolve(p.policy, [share_dir() / 'models'])
        of_checkpoint = read_manifest(folder).spec
        reason = of_checkpoint.mismatch(limits, p.control_period_s)
        if reason:
            raise UserError(f'policy {p.policy}: {reason}')
        spec = replace(
            of_checkpoint,
            task=p.task or of_checkpoint.task,
            robot=p.robot,
            joints=limits.joints,
            limits=limits,
            control_period_s=p.control_period_s,
        )
    if p.stride > spec.horizon:
        raise UserError(
            f'stride {p.stride} is longer than a chunk of {spec.horizon} control steps: what the '
            f'arm did in between would be lost; set stride to at most {spec.horizon}'
        )
    return spec
