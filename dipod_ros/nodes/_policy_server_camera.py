# SPDX-License-Identifier: Apache-2.0
"""The policy server's cameras: Image or CompressedImage messages into the observation buffer.

Loaded for policies with image streams only, because of OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from dipod_ros.ros import qos
from dipod_ros.ros.messages import stamp_ns
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.picture import PictureError, read_compressed, read_raw
from dipod_ros.serving.picture_decoder import PictureDecoder

COMPRESSED = '/compressed'


def subscribe(
    node: Node,
    topic: str,
    buffer: ObservationBuffer,
    decoder: PictureDecoder | None,
    on_sample: Callable[[], None],
) -> Subscription:
    """Listen to a camera: CompressedImage where the topic ends in /compressed, else Image.

    After remapping, so that a remap alone chooses another transport. A message that cannot be used
    is rejected with its reason. In lockstep, without a `decoder`, pictures are decoded at once and
    `on_sample` follows each; in real time no decision is made for a picture that came.
    """

    def store(msg: Image | CompressedImage) -> None:
        stamp = stamp_ns(msg.header.stamp)
        compressed = isinstance(msg, CompressedImage)
        if compressed and decoder is not None:
            decoder.give(topic, msg.data, stamp)
            return
        try:
            if compressed:
                picture = read_compressed(msg.data)
            else:
                picture = read_raw(msg.height, msg.width, msg.encoding, msg.step, msg.data)
        except PictureError as error:
            buffer.reject('image', topic, str(error))
            return
        buffer.put('image', topic, picture, stamp)
        on_sample()

    kind = CompressedImage if node.resolve_topic_name(topic).endswith(COMPRESSED) else Image
    profile = qos.COMMAND if decoder is None else qos.IMAGE
    return node.create_subscription(kind, topic, store, profile)
