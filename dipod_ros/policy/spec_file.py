# SPDX-License-Identifier: Apache-2.0
"""A small YAML file that says what a policy to be shall see and do. No torch, no ROS.

    task: pick_up
    horizon: 8
    streams:
    - {name: joint_position, source: joint_position, topic: joint_states}
    - {name: command, source: command}
    - {name: goal, source: point, topic: goal}

Joints, limits and the control period are the robot's; network and sampler are chosen when a policy
is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.plain_yaml import read_yaml
from dipod_ros.policy.spec import MAX_HORIZON, SOURCES, PolicySpec, SpecError, Stream

SUFFIXES = ('.yaml', '.yml')
KEYS = ('task', 'horizon', 'streams')
STREAM_KEYS = ('name', 'source', 'size', 'topic', 'max_age_s', 'image')
IMAGE_FEATURES = 32  # what the encoder of an image stream gives where no size is said


def read_spec_file(
    path: str | Path, robot: str, limits: JointLimits, control_period_s: float, task: str = ''
) -> PolicySpec:
    """Return the spec that a file describes for a robot; `task` wins over that of the file.

    Sizes need not be given but for source `vector`. Raises UserError with one line that names the
    file and what to change.
    """
    data = read_yaml(path)
    try:
        _check_keys(data, KEYS, 'the file')
        streams = data.get('streams')
        if not isinstance(streams, list) or not streams:
            raise SpecError('`streams` must be a list of what the policy sees')
        made = tuple(_stream(s, len(limits.joints)) for s in streams)
        names = [s.name for s in made]
        if len(set(names)) != len(names):
            raise SpecError(f'streams must have distinct names, got {names}')
        horizon = data.get('horizon')
        if type(horizon) is not int or not 1 <= horizon <= MAX_HORIZON:
            raise SpecError(
                f'`horizon` (control steps per chunk) must be within 1..{MAX_HORIZON}, '
                f'got {horizon!r}'
            )
        return PolicySpec(
            task=task or str(data.get('task') or Path(path).stem),
            robot=robot,
            joints=limits.joints,
            limits=limits,
            streams=made,
            horizon=horizon,
            control_period_s=control_period_s,
        )
    except (UserError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f'{path}: {error}') from error


def _stream(data: Any, joints: int) -> Stream:
    _check_keys(data, STREAM_KEYS, 'a stream')
    source = str(data.get('source', ''))
    if not data.get('name'):
        raise SpecError(f'a stream of source {source!r} has no name')
    name = str(data['name'])
    if source not in SOURCES:
        raise SpecError(f'stream {name}: source {source!r} is not one of {list(SOURCES)}')
    usual = {'point': 3, 'image': IMAGE_FEATURES, 'vector': None}.get(source, joints)
    size = data.get('size', usual)
    if size is None:
        raise SpecError(f'stream {name}: say how many numbers it has: `size`')
    if source in ('joint_position', 'joint_velocity', 'command') and size != joints:
        raise SpecError(f'stream {name}: size is {size}, the robot has {joints} joints')
    image = data.get('image', {}) if source == 'image' else data.get('image')
    if image is not None:
        defaults = {'width': 96, 'height': 96, 'encoding': 'rgb8', 'encoder': {'kind': 'keypoints'}}
        _check_keys(image, tuple(defaults), f'the image of stream {name}')
        image = {**defaults, **image}
    return Stream.from_dict({**data, 'size': size, 'image': image})


def _check_keys(data: Any, known: tuple[str, ...], what: str) -> None:
    if not isinstance(data, Mapping):
        raise SpecError(f'{what} must be a block of `key: value`, with {list(known)}')
    unknown = [str(k) for k in data if k not in known]
    if unknown:
        raise SpecError(f'{what} has no setting {unknown}; there are {list(known)}')
