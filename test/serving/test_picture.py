# SPDX-License-Identifier: Apache-2.0
"""Camera messages of every kind become the picture that an encoder was trained on, or a reason."""

import sys
from array import array

import cv2
import numpy as np
import pytest

from dipod_ros.policy.image import ImageSettings
from dipod_ros.serving.picture import PictureError, fit, read_compressed, read_raw

RGB = ImageSettings(40, 24)
MONO = ImageSettings(40, 24, 'mono8')


@pytest.fixture(scope='module')
def rgb():
    """A smooth picture: a JPEG keeps it."""
    y, x = np.mgrid[:24, :40]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], axis=-1).astype(np.uint8)


def as_encoding(rgb, encoding):
    alpha = np.full((*rgb.shape[:2], 1), 77, np.uint8)
    return {
        'rgb8': lambda: rgb,
        'bgr8': lambda: rgb[:, :, ::-1],
        'rgba8': lambda: np.concatenate([rgb, alpha], 2),
        'bgra8': lambda: np.concatenate([rgb[:, :, ::-1], alpha], 2),
        'mono8': lambda: cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None],
    }[encoding]()


def message(pixels, padding=0, last_padding=True):
    """Return height, width, step and data as a ROS message has them."""
    height, width, channels = pixels.shape
    step = width * channels + padding
    rows = np.full((height, step), 111, np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    data = rows.tobytes()
    return height, width, step, array('B', data if last_padding else data[: len(data) - padding])


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8'])
@pytest.mark.parametrize(('padding', 'last'), [(0, True), (5, True), (5, False)])
def test_every_colour_order_and_padding_gives_the_same_picture(rgb, encoding, padding, last):
    height, width, step, data = message(as_encoding(rgb, encoding), padding, last)
    picture = read_raw(height, width, encoding, step, data)
    np.testing.assert_array_equal(fit(picture, RGB), rgb)
    np.testing.assert_array_equal(fit(picture, MONO), as_encoding(rgb, 'mono8'))


def test_grey_pictures_serve_both_kinds(rgb):
    grey = as_encoding(rgb, 'mono8')
    height, width, step, data = message(grey, 3)
    picture = read_raw(height, width, 'mono8', step, data)
    np.testing.assert_array_equal(fit(picture, MONO), grey)
    np.testing.assert_array_equal(fit(picture, RGB), grey.repeat(3, axis=2))


def test_a_picture_that_fits_is_not_copied(rgb):
    height, width, step, data = message(rgb)
    picture = fit(read_raw(height, width, 'rgb8', step, data), RGB)
    assert np.shares_memory(picture, np.frombuffer(data, np.uint8))


def test_another_size_is_cropped_to_the_middle_and_averaged(rgb):
    large = rgb.repeat(3, axis=0).repeat(3, axis=1)
    wide = np.pad(large, ((0, 0), (30, 30), (0, 0)))
    tall = np.pad(large, ((21, 21), (0, 0), (0, 0)))
    for pixels in (large, wide, tall):
        height, width, step, data = message(pixels)
        np.testing.assert_array_equal(fit(read_raw(height, width, 'rgb8', step, data), RGB), rgb)
    small = rgb[::2, ::2]
    height, width, step, data = message(np.ascontiguousarray(small))
    again = fit(read_raw(height, width, 'rgb8', step, data), RGB)
    assert again.shape == rgb.shape
    assert np.abs(again.astype(int) - rgb).mean() < 8


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'encoding': '16UC1'}, "encoding '16UC1' is not one of"),
        ({'encoding': 'bayer_rggb8'}, 'is not one of'),
        ({'encoding': ''}, 'is not one of'),
        ({'height': 0}, '40x0 pixels'),
        ({'height': 100_000, 'width': 100_000}, '100000x100000 pixels'),
        ({'step': 100}, 'rows of 100 bytes cannot hold 40 pixels'),
        ({'height': 25}, 'truncated: 2880 bytes'),
        ({'data': array('B')}, 'truncated: 0 bytes'),
    ],
)
def test_raw_messages_that_cannot_be_used_say_why(rgb, changes, text):
    height, width, step, data = message(rgb)
    fields = {'height': height, 'width': width, 'encoding': 'rgb8', 'step': step, 'data': data}
    with pytest.raises(PictureError, match=text):
        read_raw(**(fields | changes))


def encoded(rgb, suffix):
    return array('B', cv2.imencode(suffix, rgb[:, :, ::-1])[1].tobytes())


@pytest.mark.parametrize(('suffix', 'off'), [('.png', 0), ('.jpg', 12)])
def test_compressed_pictures(rgb, suffix, off):
    picture = fit(read_compressed(encoded(rgb, suffix)), RGB)
    assert np.abs(picture.astype(int) - rgb).max() <= off


def test_a_grey_jpeg_is_a_picture_too(rgb):
    grey = as_encoding(rgb, 'mono8')
    data = array('B', cv2.imencode('.jpg', grey)[1].tobytes())
    assert np.abs(fit(read_compressed(data), MONO).astype(int) - grey).max() <= 6


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.3, 0.9])
def test_truncated_files_are_refused(rgb, suffix, share):
    large = rgb.repeat(4, axis=0).repeat(4, axis=1)
    data = encoded(large, suffix)
    with pytest.raises(PictureError, match='truncated|neither JPEG nor PNG'):
        read_compressed(data[: int(len(data) * share)])


def test_absurd_sizes_are_refused_before_they_are_decoded(rgb):
    png = bytearray(encoded(rgb, '.png'))
    png[16:24] = (1_000_000).to_bytes(4, 'big') * 2
    with pytest.raises(PictureError, match='1000000x1000000 pixels'):
        read_compressed(array('B', png))
    jpeg = bytearray(encoded(rgb, '.jpg'))
    at = jpeg.index(b'\xff\xc0')
    jpeg[at + 5 : at + 9] = b'\xff' * 4
    with pytest.raises(PictureError, match='65535x65535 pixels'):
        read_compressed(array('B', jpeg))


def test_noise_is_refused_or_read_but_never_crashes(rgb):
    rng = np.random.default_rng(0)
    for suffix in ('.jpg', '.png'):
        good = np.frombuffer(encoded(rgb, suffix), np.uint8)
        for _ in range(200):
            bad = good.copy()
            bad[rng.integers(len(bad), size=5)] = rng.integers(256, size=5)
            try:
                picture = read_compressed(array('B', bad.tobytes()))
            except PictureError:
                continue
            assert fit(picture, RGB).shape == (24, 40, 3)


def test_compressed_depth_is_refused():
    with pytest.raises(PictureError, match='neither JPEG nor PNG'):
        read_compressed(array('B', b'\x00' * 12 + b'\x89PNG\r\n\x1a\n'))


def lines_run(call, *arguments):
    """Return how many lines of picture.py a call runs."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == 'line'
        return trace if frame.f_code.co_filename.endswith('picture.py') else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(*arguments)
    finally:
        sys.settrace(before)
    return count


def refused(data):
    with pytest.raises(PictureError, match='a JPEG without a frame'):
        read_compressed(data)


@pytest.mark.parametrize(
    'filling',
    [
        b'\xff' * 1_000_000,  # fill bytes
        b'\xff\x01' * 500_000,  # markers without a length
        b'\xff\xe0\x00\x02' * 250_000,  # segments without content
        b'\xff' * 1000 + b'\xe0\x00\x02' + (b'\xff' * 500 + b'\xe0\x00\x02') * 2000,
    ],
)
def test_a_jpeg_of_nothing_but_a_head_is_given_up_soon(filling):
    data = b'\xff\xd8\xff\xe0\x00\x02' + filling + b'\xff\xd9'
    assert lines_run(refused, array('B', data)) < 20_000


def test_fill_bytes_before_a_marker_are_no_mistake(rgb):
    data = bytes(encoded(rgb, '.jpg'))
    filled = data.replace(b'\xff\xc0', b'\xff' * 500 + b'\xc0')
    assert filled != data
    assert fit(read_compressed(array('B', filled)), RGB).shape == (24, 40, 3)


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(rgb):
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    data = cv2.imencode('.jpg', rgb[:, :, ::-1], options)[1].tobytes()
    picture = fit(read_compressed(array('B', data)), RGB)
    assert np.abs(picture.astype(int) - rgb).max() <= 12
    last = data[data.rindex(b'\xff\xda') : -2]
    with pytest.raises(PictureError, match='scans; at most 100'):
        read_compressed(array('B', data[:-2] + last * 5000 + data[-2:]))


def test_a_frame_that_only_decoders_see_is_not_decoded(rgb):
    """What follows a marker 0 is a segment to who skips by lengths, and data to libjpeg."""
    data = cv2.imencode('.jpg', rgb.repeat(4, axis=0).repeat(4, axis=1))[1].tobytes()
    inside, end = data[2:-2], data[-2:]
    claim = b'\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03' + bytes(9)  # 1x1 pixels
    hidden = b'\xff\xd8\xff\x00' + (len(inside) + 2).to_bytes(2, 'big') + inside + claim + end
    decoded = cv2.imdecode(np.frombuffer(hidden, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (96, 160, 3)
    with pytest.raises(PictureError, match='without a frame'):
        read_compressed(array('B', hidden))


def test_a_png_that_does_not_begin_with_its_size_is_refused(rgb):
    png = bytes(encoded(rgb, '.png'))
    other = (13).to_bytes(4, 'big') + b'aaaa' + bytes(17)
    with pytest.raises(PictureError, match='neither JPEG nor PNG'):
        read_compressed(array('B', png[:8] + other + png[8:]))
