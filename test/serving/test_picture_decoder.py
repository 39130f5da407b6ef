# SPDX-License-Identifier: Apache-2.0
"""Compressed pictures are decoded aside: whoever receives them is not kept."""

import threading
import time
from array import array

import cv2
import numpy as np
import pytest

from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.picture_decoder import PictureDecoder

IMDECODE = cv2.imdecode


@pytest.fixture
def buffer(clock):
    return ObservationBuffer(clock)


@pytest.fixture
def decoder(buffer):
    made = PictureDecoder(buffer)
    yield made
    made.close()


def picture(value):
    return array('B', cv2.imencode('.png', np.full((8, 8, 3), value, np.uint8))[1].tobytes())


def wait_for(condition):
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_a_slow_picture_keeps_nobody_and_the_newest_of_each_camera_follows(
    buffer, decoder, monkeypatch
):
    decoded, go_on = [], threading.Semaphore(0)

    def slowly(data, flags):
        assert go_on.acquire(timeout=30)
        decoded.append(threading.current_thread())
        return IMDECODE(data, flags)

    monkeypatch.setattr(cv2, 'imdecode', slowly)
    decoder.give('left', picture(1), 1)
    wait_for(lambda: not decoder._newest)  # it is being decoded
    for k in range(2, 10):  # in which time others come
        decoder.give('left', picture(k), k)
        decoder.give('right', picture(k), k)
    assert buffer.sample('image', 'left') is None and not decoded
    for _ in range(3):
        go_on.release()
    wait_for(lambda: len(decoded) == 3 and buffer.sample('image', 'right') is not None)
    wait_for(lambda: buffer.sample('image', 'left').stamp_ns == 9)
    for topic in ('left', 'right'):
        sample = buffer.sample('image', topic)
        assert sample.stamp_ns == 9 and (sample.values.pixels == 9).all()
    assert threading.current_thread() not in decoded


def test_what_cannot_be_decoded_is_rejected_with_its_reason(buffer, decoder, monkeypatch):
    decoder.give('left', picture(1)[:40], 1)
    wait_for(lambda: 'truncated: the PNG has no end' in buffer.rejection('image', 'left'))
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: 1 / 0)
    decoder.give('left', picture(1), 2)
    wait_for(lambda: 'ZeroDivisionError' in buffer.rejection('image', 'left'))
    monkeypatch.undo()
    decoder.give('left', picture(1), 3)
    wait_for(lambda: buffer.sample('image', 'left') is not None)
    assert buffer.rejected == 2 and not buffer.rejection('image', 'left')


def test_waiting_for_the_pictures_of_other_cameras_is_age(buffer, decoder, clock, monkeypatch):
    def slowly(data, flags):
        clock.advance(0.25)
        return IMDECODE(data, flags)

    monkeypatch.setattr(cv2, 'imdecode', slowly)
    with decoder._wake:  # all of them are there before the first is decoded
        for topic in ('left', 'right', 'wrist'):
            decoder.give(topic, picture(1), 1)
    wait_for(lambda: buffer.sample('image', 'wrist') is not None)
    assert {buffer.sample('image', t).received_s for t in ('left', 'right', 'wrist')} == {100.0}
    assert buffer.problem('image', 'wrist', 0.2).kind == 'stale'


def test_a_picture_that_cannot_be_kept_ends_no_thread(buffer, decoder):
    buffer.judge = lambda *_: 1 / 0
    decoder.give('left', picture(1), 1)
    wait_for(lambda: 'ZeroDivisionError' in buffer.rejection('image', 'left'))
    buffer.trust()
    decoder.give('left', picture(1), 2)
    wait_for(lambda: buffer.sample('image', 'left') is not None)


def test_its_thread_ends(buffer):
    decoder = PictureDecoder(buffer)
    decoder.close()
    decoder.give('left', picture(1), 1)
    assert decoder._thread is None
    decoder = PictureDecoder(buffer)
    decoder.give('left', picture(1), 1)
    decoder.close()
    assert not decoder._thread.is_alive()
