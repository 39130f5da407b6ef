# SPDX-License-Identifier: Apache-2.0
"""The parameters of the policy server; the robot's own come from its file in config/robots."""

from __future__ import annotations

from dataclasses import dataclass

from dipod_ros.nodes._policy_server_commanders import ON_OTHERS
from dipod_ros.ros.params import group, param
from dipod_ros.serving.engines.base import PRECISIONS
from dipod_ros.serving.engines.select import CHOICES as ENGINES
from dipod_ros.serving.loop import INTERFACES
from dipod_ros.serving.noise import KINDS as NOISES
from dipod_ros.serving.promotion import MODES as PROMOTIONS
from dipod_ros.serving.seam import SEAMS


@dataclass(frozen=True)
class LimitParams:
    """Limits per joint, in the order of `joints`."""

    position_lower: tuple[float, ...] = param((), 'lowest position per joint', unit='rad')
    position_upper: tuple[float, ...] = param((), 'highest position per joint', unit='rad')
    velocity: tuple[float, ...] = param((), 'largest speed per joint', unit='rad/s')
    acceleration: tuple[float, ...] = param((), 'largest acceleration per joint', unit='rad/s^2')
    effort: tuple[float, ...] = param(
        (), 'largest torque per joint; interface effort does not start without', unit='N m'
    )


@dataclass(frozen=True)
class EffortParams:
    """Of interface effort: torque = kp * position error + kd * velocity error (+ gravity)."""

    kp: tuple[float, ...] = param(
        (), 'stiffness, one per joint or one for all; required', unit='N m/rad'
    )
    kd: tuple[float, ...] = param(
        (), 'damping, one per joint or one for all; required', unit='N m s/rad'
    )
    gravity_compensation: bool = param(
        False,
        'add the torques that hold the arm, from `mjcf`; not for drives that do so themselves',
    )


@dataclass(frozen=True)
class WorkspaceParams:
    """A box that the tool must not leave; without one the workspace is not checked."""

    model: str = param(
        '',
        'MJCF or URDF that says where the tool is, relative to the share directory of dipod_ros '
        'or absolute',
    )
    tool: str = param('', 'site or body of the model that must stay in the box')
    lower: tuple[float, ...] = param(
        (), "lowest x, y, z in the frame of the model's world", unit='m'
    )
    upper: tuple[float, ...] = param((), 'highest x, y, z', unit='m')
    margin_m: float = param(
        0.02, 'how far inside the box the commanded tool stays', unit='m', low=0.0, high=10.0
    )


@dataclass(frozen=True)
class KinematicsParams:
    """The screw axes of the arm with all joints at 0, three numbers per joint; see forecast."""

    axes: tuple[float, ...] = param((), "unit vectors along the joints' axes")
    origins: tuple[float, ...] = param((), "a point on each joint's axis", unit='m')
    tip: tuple[float, ...] = param((), 'where the tip is', unit='m')
    topic: str = param('tip', 'stream of the policy that is the tip, in the frame of the above')


@dataclass(frozen=True)
class PolicyServerParams:
    """Parameters of the policy_server node."""

    checkpoint: str = param(
        '',
        'policy that acts: name of a shipped model, or a folder inside model_dirs; set it while '
        'running to swap',
        read_only=False,
    )
    model_dirs: tuple[str, ...] = param(
        ('runs',), 'folders besides the shipped models that checkpoints may come from'
    )
    follow_trainer: bool = param(
        False, 'swap to every checkpoint that the trainer announces', read_only=False
    )
    trainer_topic: str = param('trainer/checkpoint', 'where the trainer announces checkpoints')
    promotion: str = param(
        'at_once',
        'how a checkpoint of the trainer comes to act: at once, after it passed in the shadow of '
        'the acting policy, or when ~/approve is called',
        choices=PROMOTIONS,
        read_only=False,
    )
    promotion_decisions: int = param(50, 'decisions that a candidate is compared in', low=1)
    promotion_rms_rad: float = param(
        0.05,
        'a candidate is refused when its targets are further than this (root mean square) from '
        'those of the acting policy',
        unit='rad',
        low=0.0,
        high=10.0,
    )
    promotion_clamp_share: float = param(
        0.1,
        'a candidate is refused when the share of its decisions that the limits would move is this '
        'much larger than that of the acting policy',
        low=0.0,
        high=1.0,
    )
    promotion_latency_s: float = param(
        0.05,
        'a candidate is refused when its inference takes longer than this (99th percentile)',
        unit='s',
        low=0.0,
        high=1000.0,
    )
    shadow_checkpoint: str = param(
        '',
        'policy that runs beside the acting one and commands nothing: as in `checkpoint`; empty is '
        'none',
        read_only=False,
    )
    alarm_window: int = param(
        50,
        'decisions after a swap in which an alarm rolls it back; 0 never does',
        low=0,
    )
    alarm_clamp_rad: float = param(
        0.02, 'a decision whose command the limits moved by more than this counts as clamped',
        unit='rad', low=0.0, high=10.0,
    )  # fmt: skip
    alarm_clamp_share: float = param(
        0.3,
        'a swap is rolled back when the share of clamped decisions in the window is this much '
        'larger than before',
        low=0.0,
        high=1.0,
    )
    autostart: bool = param(True, 'go to active without a lifecycle manager')
    engine: str = param('auto', 'what runs the policy', choices=ENGINES)
    threads: int = param(1, 'threads of the engine', low=1, high=256)
    precision: str = param(
        'fp32',
        'what the network computes in; on CPUs fp32, openvino also bf16',
        choices=PRECISIONS,
    )
    cpu_affinity: tuple[int, ...] = param(
        (), 'cores that the process may use; empty leaves that to the operating system'
    )
    realtime_priority: int = param(
        0,
        'SCHED_FIFO priority of the two threads that decide and command (real time); 0 is none',
        low=0,
        high=99,
    )
    lockstep: bool = param(
        False, 'answer each observation of a world that waits, instead of acting in real time'
    )
    interface: str = param(
        'trajectory',
        'what the controller listens to: a JointTrajectory per plan on '
        '<controller>/joint_trajectory, or positions, velocities or torques on '
        '<controller>/commands',
        choices=INTERFACES,
    )
    sole_commander: bool = param(
        True,
        'not to become active while another node publishes on the command topic, and to look for '
        'one that comes; false is for one that never commands while this node acts',
    )
    on_other_commander: str = param(
        'stop',
        'what is done when another node comes to publish on the command topic while this one acts '
        'in real time: brake, hold until it is gone and begin where the arm is, or warn and go on',
        choices=ON_OTHERS,
    )
    command_rate_hz: float = param(
        0.0,
        'rate of position, velocity and effort commands in real time, 50 to 500; 0 is one command '
        'per control period',
        unit='Hz',
        low=0.0,
        high=500.0,
    )
    velocity_gain: float = param(
        1.0,
        'interface velocity: how fast a difference between setpoint and arm is made up for; 0 is '
        'feed-forward alone',
        unit='1/s',
        low=0.0,
        high=20.0,
    )
    effort: EffortParams = group(EffortParams)
    replan_steps: int = param(
        0,
        'control steps of a chunk after which the next one takes over; 0 is all',
        low=0,
        high=1024,
    )
    forecast: bool = param(
        True,
        'ask the policy about the time at which its chunk begins, by what is committed until then, '
        'instead of the time of the observation (real time)',
    )
    seam: str = param(
        'replace',
        'how a chunk continues the one before: replace takes over, ensemble averages what chunks '
        'say of the same time, rtc guides the sampler to continue what is committed; the records '
        'of the latter two are interrupted, nobody learns from them',
        choices=SEAMS,
    )
    ensemble_decay: float = param(
        0.01,
        'seam ensemble: the i-th oldest chunk weighs exp(-i ensemble_decay)',
        low=0.0,
        high=100.0,
    )
    noise: str = param('gaussian', "what the sampler's noise is drawn from", choices=NOISES)
    seed: int = param(
        -1,
        'noise of decision n depends on this and n alone; -1 draws a seed (it is in ~/status)',
        low=-1,
    )
    actor: str = param(
        '',
        "name in the replay records, with an id of each configure behind it; empty is the node's "
        'full name',
    )
    watchdog_s: float = param(
        0.5, 'a decision that takes longer is reported; the arm brakes when its chunk ends',
        unit='s', low=0.001, high=60.0,
    )  # fmt: skip
    resync_rad: float = param(
        0.1,
        'after standing still, start from where the arm is when it is further than this from '
        'where it was told to be; of a sliding joint in m',
        unit='rad',
        low=0.0,
        high=1.0,
    )
    still_rad: tuple[float, ...] = param(
        (0.005,),
        'the arm stands when its joint states over 0.1 s agree within this (above 0, up to 0.1), '
        'one per joint or one for all: more than two counts of its encoders, of a sliding joint in '
        'm (real time)',
        unit='rad',
    )
    following_rad: float = param(
        0.1,
        'a joint that is further than this from where it was told to be in the last '
        'following_lag_s stops the arm, which is tried again from where it stands (real time); '
        '0 never does; of a sliding joint in m',
        unit='rad', low=0.0, high=10.0,
    )  # fmt: skip
    following_lag_s: float = param(
        0.2, 'by how much the arm may trail its command', unit='s', low=0.0, high=5.0
    )
    reset_teleports: bool = param(
        False,
        'an outcome with reset finds the arm elsewhere at once, as in a simulated world, and the '
        'command begins there; an arm brakes instead, and goes on from where it stands (real time)',
    )
    hold_between_episodes: bool = param(
        False,
        'after an outcome with terminated or truncated the arm brakes and stands until one with '
        'reset: for whoever sets the scene (real time); taken over at activation',
        read_only=False,
    )
    joint_max_age_s: float = param(
        0.2,
        'joint states older than this stop the arm (real time)',
        unit='s',
        low=0.001,
        high=10.0,
    )
    stamp_tolerance_s: float = param(
        0.5,
        "a message stamped further than this from the robot's clock, that of the joint states, is "
        'refused (real time); an outcome may be later by outcome_timeout_s; 0 accepts all',
        unit='s', low=0.0, high=60.0,
    )  # fmt: skip
    ramp_in_s: float = param(
        1.0,
        'after activation, an e-stop reset, a resync and a wait between episodes the velocity '
        'limit rises to its full value in this time; 0 is at once',
        unit='s', low=0.0, high=60.0,
    )  # fmt: skip
    slow_age_share: float = param(
        0.5,
        'the arm goes slowly while a stream is older than this share of its maximum age '
        '(real time); 1 is never',
        low=0.05,
        high=1.0,
    )
    slow_speed_scale: float = param(
        0.3, 'share of the velocity limit that is used then', low=0.01, high=1.0
    )
    outcome_timeout_s: float = param(
        1.0,
        'a decision without an outcome for this long is recorded as interrupted',
        unit='s',
        low=0.0,
        high=3600.0,
    )
    robot: str = param('', 'name of the robot, from its file')
    joints: tuple[str, ...] = param((), 'joints that are commanded, in the order of the limits')
    limits: LimitParams = group(LimitParams)
    workspace: WorkspaceParams = group(WorkspaceParams)
    kinematics: KinematicsParams = group(KinematicsParams)
    control_period_s: float = param(0.04, 'control period', unit='s', low=0.0001, high=10.0)
    controller: str = param('arm_controller', 'prefix of the command topics')
    mjcf: str = param(
        '',
        'model of the robot, for effort.gravity_compensation alone: absolute, or relative to the '
        'share directory',
    )
