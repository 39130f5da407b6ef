# SPDX-License-Identifier: Apache-2.0
"""What a policy is made for: streams, joints, units, limits, rates, sampler. No torch, no ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.image import ImageSettings
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.ros_names import topic_problem

SOURCES = ('joint_position', 'joint_velocity', 'command', 'point', 'vector', 'image')
SOLVERS = ('euler', 'midpoint', 'sde', 'chain')
# joint_delta: rad per control step, from the last commanded control point.
# raw: actions in the env's own units; benchmark environments only.
ACTIONS = ('joint_delta', 'raw')
# Bounds on what a file may ask for; weight_shapes.py compares the whole with the weights.
MAX_STREAM_SIZE = 1 << 16
MAX_HORIZON = 1024
MAX_PERIOD_S = 10.0
# Nobody notices a sensor that died before its maximum age is over. Where the arm is and what its
# cameras see may not be older than this; what a person sets, a goal, may be said less often.
MAX_AGE_S = {'point': 60.0, 'vector': 60.0}
MAX_SENSOR_AGE_S = 10.0
MAX_SIZES = {'width': 1 << 14, 'depth': 64, 'heads': 64}
# Kinds of network, with the sizes that each needs.
NETWORKS = {
    'residual_mlp': ('width', 'depth'),
    'dit': ('width', 'depth', 'heads'),
    'unet': ('width', 'depth'),
}


class SpecError(UserError):
    """A policy specification that cannot be used; one line that says why."""


@dataclass(frozen=True)
class Stream:
    """One part of the observation vector, in the order in which the policy was trained.

    source: `joint_position` (rad) and `joint_velocity` (rad/s) come from a JointState, by joint
    name; `command` is the last commanded control point (rad), which the server knows itself;
    `point` is a geometry_msgs/PointStamped (m); `vector` is a std_msgs/Float64MultiArray; `image`
    is what an encoder makes of a sensor_msgs/Image or CompressedImage, `size` features.
    """

    name: str
    source: str
    size: int
    topic: str = ''
    # Older than this counts as stale: the arm brakes and holds. 0.2 s is five control periods.
    max_age_s: float = 0.2
    # What the encoder looks at; for source `image` only.
    image: ImageSettings | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise SpecError(
                f'stream {self.name}: source {self.source!r} is not one of {list(SOURCES)}'
            )
        if not self.size > 0 or not self.max_age_s > 0:
            raise SpecError(f'stream {self.name}: size and max_age_s must be above 0')
        most_s = MAX_AGE_S.get(self.source, MAX_SENSOR_AGE_S)
        if self.max_age_s > most_s:
            raise SpecError(
                f'stream {self.name}: max_age_s must be at most {most_s:g} for source '
                f'{self.source}, got {self.max_age_s:g}'
            )
        if self.size > MAX_STREAM_SIZE:
            raise SpecError(
                f'stream {self.name}: size must be within 1..{MAX_STREAM_SIZE}, got {self.size}'
            )
        if self.source == 'point' and self.size != 3:
            raise SpecError(f'stream {self.name}: a point has size 3, not {self.size}')
        if self.source != 'command' and not self.topic:
            raise SpecError(f'stream {self.name}: source {self.source} needs a topic')
        problem = '' if self.source == 'command' else topic_problem(self.topic)
        if problem:
            raise SpecError(f'stream {self.name}: topic {problem}')
        if (self.source == 'image') != (self.image is not None):
            raise SpecError(
                f'stream {self.name}: source image, and no other, needs the settings of its image'
            )
        if self.image is not None and (not self.name or '.' in self.name):
            # Names of weights are made of it.
            raise SpecError(f'image stream {self.name!r}: give it a name without a dot')

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a YAML manifest."""
        values: dict[str, Any] = {
            'name': self.name,
            'source': self.source,
            'size': self.size,
            'topic': self.topic,
            'max_age_s': self.max_age_s,
        }
        return values if self.image is None else {**values, 'image': self.image.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stream:
        """Read what `to_dict` wrote; raises UserError naming what is wrong."""
        image, name = data.get('image'), str(data['name'])
        try:
            settings = None if image is None else ImageSettings.from_dict(image)
        except UserError as error:
            raise SpecError(f'stream {name}: {error}') from error
        return cls(
            name=name,
            source=str(data['source']),
            size=int(data['size']),
            topic=str(data.get('topic', '')),
            max_age_s=float(data.get('max_age_s', 0.2)),
            image=settings,
        )


@dataclass(frozen=True)
class SamplerSpec:
    """The sampler is part of the policy: other steps or another solver is another policy.

    K-step Euler under-disperses (std x0.86 at K=10 for a Gaussian of std 0.5), midpoint with the
    same number of evaluations does not (x0.998), which is why midpoint is the default wherever
    the policy learns from its own samples.
    """

    solver: str = 'midpoint'
    steps: int = 5
    # Share of the ancestral noise that the `sde` solver injects: 0 is Euler, 1 is ancestral.
    sde_scale: float = 1.0
    # Standard deviation of the noise that the `chain` solver adds after each of its Euler steps, in
    # normalised action units: exploration whose likelihood is exact (arXiv 2409.00588).
    noise_std: float = 0.15

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise SpecError(f'sampler: solver {self.solver!r} is not one of {list(SOLVERS)}')
        if not 1 <= self.steps <= 1000:
            raise SpecError(f'sampler: steps must be within 1..1000, got {self.steps}')
        if not 0 <= self.sde_scale <= 1:
            raise SpecError(f'sampler: sde_scale must be within 0..1, got {self.sde_scale}')
        if not 0 < self.noise_std <= 1:
            raise SpecError(
                f'sampler: noise_std must be above 0 and at most 1, got {self.noise_std}'
            )

    @classmethod
    def parse(cls, text: str) -> SamplerSpec:
        """Read a sampler written as SOLVER-STEPS, such as midpoint-5; raises SpecError."""
        solver, _, steps = text.partition('-')
        if not (steps.isascii() and steps.isdigit()):
            raise SpecError(f'sampler {text!r}: write SOLVER-STEPS, such as midpoint-5 or euler-1')
        return cls(solver, int(steps))

    @property
    def deterministic(self) -> bool:
        """Whether the noise at the start alone decides the action."""
        return self.solver in ('euler', 'midpoint')

    @property
    def evaluations(self) -> int:
        """Network evaluations per action chunk."""
        return self.steps * (2 if self.solver == 'midpoint' else 1)

    def noise_size(self, action_size: int) -> int:
        """Numbers of Gaussian noise per chunk: the start, and what a solver adds after its steps.

        `sde` adds none after the last step, `chain` does.
        """
        added = {'sde': self.steps - 1, 'chain': self.steps}.get(self.solver, 0)
        return action_size * (1 + added)

    def __str__(self) -> str:
        return f'{self.solver}-{self.steps} ({self.evaluations} evaluations)'


@dataclass(frozen=True)
class PolicySpec:
    """Everything that the server, the trainer and the simulator must agree on."""

    task: str
    robot: str
    joints: tuple[str, ...]
    limits: JointLimits
    streams: tuple[Stream, ...]
    horizon: int  # control steps per chunk, H
    control_period_s: float
    action: str = 'joint_delta'  # rad per control step, from the last commanded control point
    network: Mapping[str, Any] = field(
        default_factory=lambda: {'kind': 'residual_mlp', 'width': 256, 'depth': 3}
    )
    sampler: SamplerSpec = SamplerSpec()

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise SpecError(f'action {self.action!r} is not one of {list(ACTIONS)}')
        if self.network.get('kind') not in NETWORKS:
            raise SpecError(
                f'network kind {self.network.get("kind")!r} is not one of {list(NETWORKS)}'
            )
        for name in NETWORKS[self.network['kind']]:
            size = self.network.get(name)
            if type(size) is not int or not 1 <= size <= MAX_SIZES[name]:
                raise SpecError(
                    f'network {name} must be a whole number within 1..{MAX_SIZES[name]}, '
                    f'got {size!r}'
                )
        if not self.joints or len(set(self.joints)) != len(self.joints):
            raise SpecError(f'joints must be distinct and at least one: {list(self.joints)}')
        if self.limits.joints != self.joints:
            raise SpecError('limits must name the joints of the policy in the same order')
        in_time = 0 < self.control_period_s <= MAX_PERIOD_S
        if not (1 <= self.horizon <= MAX_HORIZON and in_time):
            raise SpecError(
                f'horizon must be within 1..{MAX_HORIZON} and control_period_s above 0 and at '
                f'most {MAX_PERIOD_S:g}, got {self.horizon} and {self.control_period_s}'
            )
        for stream in self.streams:
            joint_wise = stream.source in ('joint_position', 'joint_velocity', 'command')
            if joint_wise and stream.size != len(self.joints):
                raise SpecError(
                    f'stream {stream.name} has size {stream.size} for {len(self.joints)} joints'
                )
        names = [s.name for s in self.streams]
        if not names or len(set(names)) != len(names):
            raise SpecError(f'a policy needs at least one stream, and no name twice: {names}')

    @property
    def observation_size(self) -> int:
        """Length O of the observation vector."""
        return sum(s.size for s in self.streams)

    @property
    def images(self) -> tuple[tuple[Stream, slice], ...]:
        """The image streams, each with its place in the observation vector."""
        ends = np.cumsum([s.size for s in self.streams]).tolist()
        return tuple(
            (s, slice(end - s.size, end))
            for s, end in zip(self.streams, ends, strict=True)
            if s.image is not None
        )

    @property
    def action_size(self) -> int:
        """Length H*A of a flattened chunk."""
        return self.horizon * len(self.joints)

    @property
    def noise_size(self) -> int:
        """Length N of the noise that makes one chunk."""
        return self.sampler.noise_size(self.action_size)

    def mismatch(self, limits: JointLimits, control_period_s: float) -> str | None:
        """Say why this policy must not drive a robot with these limits, or None when it may.

        Joint order may differ (streams and commands are mapped by name). The robot's own limits
        are the ones enforced; position ranges that do not overlap mean another robot.
        """
        if self.action == 'raw':
            return (
                f'the checkpoint is for the benchmark environment {self.robot}: its actions are '
                'in units of that environment, which no robot takes'
            )
        if set(limits.joints) != set(self.joints):
            missing = [j for j in limits.joints if j not in self.joints]
            unknown = [j for j in self.joints if j not in limits.joints]
            return (
                f'the checkpoint is for joints {list(self.joints)}; this robot lacks {unknown} '
                f'and has {missing} besides'
            )
        if not np.isclose(control_period_s, self.control_period_s, rtol=1e-3):
            return (
                f'the checkpoint runs at control_period_s {self.control_period_s}, '
                f'this robot at {control_period_s}'
            )
        order = [limits.joints.index(j) for j in self.joints]
        apart = (limits.lower[order] >= self.limits.upper) | (
            limits.upper[order] <= self.limits.lower
        )
        if np.any(apart):
            names = [j for j, a in zip(self.joints, apart, strict=True) if a]
            return f'position limits of {names} do not overlap those of the checkpoint'
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a YAML manifest."""
        return {
            'task': self.task,
            'robot': self.robot,
            'joints': list(self.joints),
            'limits': self.limits.to_params(),
            'units': {'position': 'rad', 'velocity': 'rad/s', 'acceleration': 'rad/s^2'},
            'streams': [s.to_dict() for s in self.streams],
            'horizon': self.horizon,
            'control_period_s': self.control_period_s,
            'action': self.action,
            'network': dict(self.network),
            'sampler': {
                'solver': self.sampler.solver,
                'steps': self.sampler.steps,
                'sde_scale': self.sampler.sde_scale,
                'noise_std': self.sampler.noise_std,
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicySpec:
        """Read what `to_dict` wrote; raises SpecError naming the field that is wrong."""
        try:
            joints = tuple(str(j) for j in data['joints'])
            sampler = data['sampler']
            return cls(
                task=str(data['task']),
                robot=str(data['robot']),
                joints=joints,
                limits=JointLimits.from_params(joints, data['limits']),
                streams=tuple(Stream.from_dict(s) for s in data['streams']),
                horizon=int(data['horizon']),
                control_period_s=float(data['control_period_s']),
                action=str(data['action']),
                network=dict(data['network']),
                sampler=SamplerSpec(
                    solver=str(sampler['solver']),
                    steps=int(sampler['steps']),
                    sde_scale=float(sampler.get('sde_scale', 1.0)),
                    noise_std=float(sampler.get('noise_std', 0.15)),
                ),
            )
        except UserError:
            raise
        except KeyError as error:
            raise SpecError(f'policy spec: field {error} is missing') from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise SpecError(f'policy spec: {error}') from error
