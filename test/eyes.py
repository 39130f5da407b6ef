# SPDX-License-Identifier: Apache-2.0
"""Small policies that look through a camera, with random, seeded weights."""

import torch
from checkpoints import TINY, make_limits, make_spec

from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.policy.image import ImageSettings
from dipod_ros.policy.spec import Stream
from dipod_ros.policy.vision import build_encoders, encoder_weights

TOPIC = 'front/image_raw'
FINE = ImageSettings(
    40,
    24,
    encoder={
        'kind': 'keypoints',
        'channels': (8, 8),
        'keypoints': 4,
        'strides': (2, 1),
        'hidden': 12,
    },
)
SMALL = ImageSettings(40, 24, encoder={'kind': 'keypoints', 'channels': (8, 16), 'keypoints': 4})


def camera_stream(image=SMALL, size=5, **changes):
    return Stream(**({'name': 'camera', 'source': 'image', 'size': size, 'topic': TOPIC} | changes
                     | {'image': image}))  # fmt: skip


def make_camera_spec(joints=('base', 'shoulder', 'elbow'), **changes):
    streams = (
        Stream('position', 'joint_position', len(joints), 'joint_states'),
        camera_stream(**changes),
        Stream('command', 'command', len(joints)),
    )
    return make_spec(joints=joints, limits=make_limits(joints), streams=streams, network=TINY)


def make_camera_policy(seed=0, step_rad=0.02, spec=None):
    torch.manual_seed(seed)
    policy = FlowPolicy(spec or make_camera_spec())
    policy.encoder_weights = encoder_weights(build_encoders(policy.spec))
    policy.normalizer.action_std.fill_(step_rad)
    return policy.requires_grad_(False)
