# SPDX-License-Identifier: Apache-2.0
"""Camera messages to the small pictures that encoders look at. numpy and OpenCV, no ROS.

Reading is quick and checks everything; a raw image is not copied but viewed where the middleware
put it. Fitting crops, resizes and orders colours, and is left to whoever needs the picture.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import cv2
import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.image import ImageSettings

# Encodings of sensor_msgs/Image, with their colour order and channels.
ENCODINGS = {
    'rgb8': ('rgb', 3),
    'bgr8': ('bgr', 3),
    'rgba8': ('rgba', 4),
    'bgra8': ('bgra', 4),
    'mono8': ('mono', 1),
}
# 33 megapixels: larger than any camera on a robot, small enough to be decoded.
MAX_PIXELS = 1 << 25
_TO_RGB = {
    'bgr': cv2.COLOR_BGR2RGB,
    'rgba': cv2.COLOR_RGBA2RGB,
    'bgra': cv2.COLOR_BGRA2RGB,
    'mono': cv2.COLOR_GRAY2RGB,
}
_TO_MONO = {
    'rgb': cv2.COLOR_RGB2GRAY,
    'bgr': cv2.COLOR_BGR2GRAY,
    'rgba': cv2.COLOR_RGBA2GRAY,
    'bgra': cv2.COLOR_BGRA2GRAY,
}
_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG, _JPEG_END = b'\xff\xd8\xff', b'\xff\xd9'
# Markers of a JPEG that begin a frame and so tell its size; and those without a length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))
# A camera's JPEG has some ten markers before its frame. Any number of fill bytes may precede each.
_MAX_MARKERS = 1000
_FILL = re.compile(b'\xff+')
# Each scan of a progressive JPEG is another pass over all pixels, for a few bytes; encoders make
# ten. Inside of a scan 0xFF is followed by 0, so the two bytes are found where one begins, and now
# and then in what a camera adds to a picture.
_SCAN, _MAX_SCANS = b'\xff\xda', 100

# Pictures are small: OpenCV's threads cost more than they save, and the arm needs the cores.
cv2.setNumThreads(1)


class PictureError(UserError):
    """A camera message that cannot be used; one line that says why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels as they came: uint8 [H, W, C], or [H, W] for order `mono`; rows may be padded."""

    pixels: np.ndarray
    order: str  # rgb | bgr | rgba | bgra | mono


def read_raw(height: int, width: int, encoding: str, step: int, data) -> Picture:
    """View the fields of a sensor_msgs/Image; raises PictureError when they do not fit.

    `data` is any buffer of bytes, `step` the bytes from row to row.
    """
    if encoding not in ENCODINGS:
        raise PictureError(f'encoding {encoding!r} is not one of {list(ENCODINGS)}')
    order, channels = ENCODINGS[encoding]
    _check_size(width, height)
    row = width * channels
    if step < row:
        raise PictureError(f'rows of {step} bytes cannot hold {width} pixels of {encoding}')
    # Whoever pads rows may leave the last one short.
    needed = step * (height - 1) + row
    if len(data) < needed:
        raise PictureError(
            f'truncated: {len(data)} bytes, {width}x{height} {encoding} needs {needed}'
        )
    shape, strides = (height, width, channels), (step, channels, 1)
    pixels = np.ndarray(shape, np.uint8, buffer=data, strides=strides)
    return Picture(pixels[:, :, 0] if order == 'mono' else pixels, order)


def read_compressed(data) -> Picture:
    """Decode the bytes of a sensor_msgs/CompressedImage (JPEG or PNG); raises PictureError."""
    encoded = np.frombuffer(data, np.uint8)
    width, height = _encoded_size(encoded)
    _check_size(width, height)
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise PictureError(f'cannot be decoded: {str(error).splitlines()[0]}') from error
    if pixels is None:
        raise PictureError('cannot be decoded: damaged')
    return Picture(pixels, 'bgr')


def fit(picture: Picture, settings: ImageSettings) -> np.ndarray:
    """Return uint8 [H, W, C] as an encoder wants it: the middle of the picture, resized.

    The middle, because a stretched picture is of another world. A picture that fits is not copied.
    """
    height, width, channels = settings.shape
    pixels = picture.pixels
    rows, columns = pixels.shape[:2]
    if rows * width > columns * height:  # taller than it should be
        keep = max(1, round(columns * height / width))
        pixels = pixels[(rows - keep) // 2 :][:keep]
    elif rows * width < columns * height:
        keep = max(1, round(rows * width / height))
        pixels = pixels[:, (columns - keep) // 2 :][:, :keep]
    if pixels.shape[:2] != (height, width):
        smaller = pixels.shape[0] >= height
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=method)
    code = (_TO_RGB if channels == 3 else _TO_MONO).get(picture.order)
    if code is not None:
        pixels = cv2.cvtColor(pixels, code)
    return np.ascontiguousarray(pixels).reshape(height, width, channels)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise PictureError(f'a picture of {width}x{height} pixels; at most {MAX_PIXELS} are read')


def _encoded_size(data: np.ndarray) -> tuple[int, int]:
    """Return width and height that a JPEG or PNG claims, before anybody allocates them.

    Also checks that its end is there: decoders fill what is missing with grey.
    """
    head = data[:33].tobytes()
    if head.startswith(_PNG) and len(head) == 33 and head[12:16] == b'IHDR':
        if b'IEND' not in data[-16:].tobytes():
            raise PictureError('truncated: the PNG has no end')
        return struct.unpack('>II', head[16:24])
    if head.startswith(_JPEG):
        if data[-64:].tobytes().rstrip(b'\x00')[-2:] != _JPEG_END:
            raise PictureError('truncated: the JPEG has no end')
        scans = data.tobytes().count(_SCAN)
        if scans > _MAX_SCANS:
            raise PictureError(f'a JPEG of {scans} scans; at most {_MAX_SCANS} are read')
        return _jpeg_size(data)
    raise PictureError(f'neither JPEG nor PNG: begins with {head[:8]!r}')


def _jpeg_size(data: np.ndarray) -> tuple[int, int]:
    """Return width and height of the first frame header (ITU T.81, annex B)."""
    at = 2
    for _ in range(_MAX_MARKERS):
        fill = _FILL.match(data, at)
        if fill is None or fill.end() + 8 > len(data):
            break
        at = fill.end()  # of the marker's own byte
        marker = int(data[at])
        if marker == 0:  # no marker to decoders, which would find another frame than is found here
            break
        if marker in _FRAMES:
            height, width = struct.unpack('>HH', data[at + 4 : at + 8].tobytes())
            return width, height
        at += 1
        if marker not in _BARE:
            at += int(data[at]) << 8 | int(data[at + 1])
    raise PictureError('a JPEG without a frame')
