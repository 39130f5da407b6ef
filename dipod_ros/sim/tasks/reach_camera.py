# SPDX-License-Identifier: Apache-2.0
"""reach_camera: the episodes of reach, with the goal seen by a camera instead of told."""

from __future__ import annotations

from dipod_ros.policy.image import ImageSettings
from dipod_ros.policy.spec import Stream
from dipod_ros.sim.tasks.base import IMAGE_SUFFIX
from dipod_ros.sim.tasks.reach import Reach

CAMERA = 'front'
# Pixels: at 96 the workspace has 8 mm per pixel, and the encoder finds places between pixels.
SIDE = 96
FEATURES = 32
# Two layers see 9 pixels across, more than the ball is wide: enough to tell where it is. Places are
# found among 48x48, not 24x24: what is lost in precision there, nothing after it brings back.
ENCODER = {
    'kind': 'keypoints',
    'channels': (16, 8),
    'keypoints': 8,
    'strides': (2, 1),
    'hidden': 64,
}


class ReachCamera(Reach):
    """Reach with an image stream in the place of the point stream `goal`.

    The same seed gives the same starts and goals as in `reach`, so that a policy that sees can be
    compared with one that is told. The goal is still among the points, for the demonstrator and
    for whoever wants to look: policies of this task do not listen to it.
    """

    name = 'reach_camera'
    scene = 'reach_camera'

    def streams(self) -> tuple[Stream, ...]:
        """Return joints, command, tip and camera."""
        return (
            *(s for s in super().streams() if s.name != 'goal'),
            Stream(
                'camera',
                'image',
                FEATURES,
                f'{CAMERA}{IMAGE_SUFFIX}',
                image=ImageSettings(SIDE, SIDE, encoder=ENCODER),
            ),
        )
