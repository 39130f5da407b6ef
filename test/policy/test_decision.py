# SPDX-License-Identifier: Apache-2.0
"""The decision codec: exact there and back, and DecisionError for everything else."""

import json
import struct
from array import array
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dipod_ros.policy.decision import MAX_BYTES, SCHEMA, Decision, DecisionError, decode, encode

ARRAYS = ('observation', 'noise', 'chunk', 'executed')
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def decisions(draw):
    horizon, joints = draw(st.integers(1, 5)), draw(st.integers(1, 7))

    def array(shape, elements):
        return draw(hnp.arrays(np.float32, shape, elements=elements))

    return Decision(
        actor=draw(st.text(st.characters(exclude_categories=['Cs']))),
        seq=draw(st.integers(-(2**63), 2**63)),
        episode=draw(st.integers(0, 2**40)),
        step=draw(st.integers(0, 10_000)),
        policy_sha=draw(st.text('0123456789abcdef', max_size=64)),
        stamp_s=draw(st.floats(0, 2e9)),
        observation=array(draw(st.integers(1, 30)), finite),
        noise=array(draw(st.integers(1, 30)), finite),
        chunk=array((horizon, joints), finite),
        executed=array((horizon, joints), st.floats(width=32)),
        reward=draw(numbers),
        success=draw(st.booleans()),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        clamp_rad=draw(numbers),
        interrupted=draw(st.booleans()),
        latency_s=draw(numbers),
    )


@pytest.fixture(scope='module')
def decision():
    return Decision(
        actor='arm_0/5c1d', seq=41, episode=3, step=2, policy_sha='ab' * 32, stamp_s=12.25,
        observation=np.arange(4, dtype=np.float32), noise=np.ones(6, dtype=np.float32),
        chunk=np.full((3, 2), 0.01, dtype=np.float32),
        executed=np.array([[0.1, 0.2], [0.1, 0.2], [np.nan, np.nan]], dtype=np.float32),
        reward=-0.5, success=False, terminated=True, truncated=False, clamp_rad=0.0,
        interrupted=False, latency_s=0.003,
    )  # fmt: skip


def assert_same(first, second):
    for field in fields(Decision):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if field.name in ARRAYS:
            assert b.dtype == np.float32
            np.testing.assert_array_equal(a, b)
        else:
            assert type(b) is type(a)
            assert a == b or (a != a and b != b)


@settings(max_examples=100)
@given(decisions())
def test_a_decision_survives_the_wire_exactly(decision):
    assert_same(decision, decode(encode(decision)))


def test_numpy_scalars_are_plain_numbers_afterwards(decision):
    sent = replace(decision, seq=np.int64(41), reward=np.float32(-0.5), terminated=np.bool_(True))
    assert_same(decision, decode(encode(sent)))


def test_arrays_of_other_types_travel_as_float32(decision):
    sent = replace(decision, observation=[0, 1, 2, 3], chunk=np.full((2, 3), 0.01).T)
    assert_same(decision, decode(encode(sent)))


def test_what_a_message_holds_is_a_payload_too(decision):
    payload = encode(decision)
    for view in (array('B', payload), bytearray(payload), memoryview(payload)):
        assert_same(decision, decode(view))


def test_every_truncation_is_refused(decision):
    payload = encode(decision)
    for length in range(len(payload)):
        with pytest.raises(DecisionError):
            decode(payload[:length])


def test_more_bytes_than_a_decision_are_refused(decision):
    with pytest.raises(DecisionError):
        decode(encode(decision) + b'\0')


def decode_or_refuse(payload):
    """Return a decision or None; anything but DecisionError fails the test."""
    try:
        return decode(payload)
    except DecisionError as error:
        assert '\n' not in str(error)
        return None


@settings(max_examples=400)
@given(st.data())
def test_garbled_bytes_are_a_decision_or_a_decision_error(decision, data):
    payload = bytearray(encode(decision))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    got = decode_or_refuse(bytes(payload))
    assert got is None or isinstance(got, Decision)


@settings(max_examples=200)
@given(st.binary(max_size=300))
@example(b'')
@example(b'\0' * 8)
@example(b'\xff' * 64)
def test_random_bytes_are_refused(payload):
    assert decode_or_refuse(payload) is None


def framed(header, body=b''):
    return struct.pack('<Q', len(header)) + header + body


@pytest.mark.parametrize(
    'header',
    [
        b'[]',
        b'null',
        b'{}',
        b'"text"',
        b'{"__metadata__": null}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"schema": null}}',
        b'[' * 200_000,
        b'{"a":' * 200_000,
        b'{"__metadata__": {"schema": "dipod_ros.decision/1"}}',
        b'\xff\xfe',
        b'NaN',
        b'9' * 6000,
    ],
)
def test_odd_headers_are_refused(header):
    assert decode_or_refuse(framed(header)) is None


def test_a_header_longer_than_the_payload_is_refused():
    for size in (9, 2**31, 2**63, 2**64 - 1):
        assert decode_or_refuse(struct.pack('<Q', size) + b'{}') is None


def with_header(decision, change):
    """Return a payload whose JSON header went through `change`."""
    payload = encode(decision)
    (size,) = struct.unpack_from('<Q', payload)
    header = json.loads(payload[8 : 8 + size])
    change(header)
    return framed(json.dumps(header).encode(), payload[8 + size :])


def test_a_rewritten_header_alone_changes_nothing(decision):
    """What the next tests rest on."""
    assert_same(decision, decode(with_header(decision, lambda header: None)))


@pytest.mark.parametrize('name', [f.name for f in fields(Decision) if f.name not in ARRAYS])
def test_every_scalar_is_needed(decision, name):
    with pytest.raises(DecisionError, match=name):
        decode(with_header(decision, lambda header: header['__metadata__'].pop(name)))


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('seq', '1.5'), ('seq', ''), ('episode', 'three'), ('step', 'nan'), ('seq', '9' * 5000),
        ('reward', 'high'), ('stamp_s', ''), ('success', 'True'), ('terminated', '2'),
        ('truncated', ''),
    ],
)  # fmt: skip
def test_a_scalar_of_another_type_is_refused(decision, name, text):
    with pytest.raises(DecisionError):
        decode(with_header(decision, lambda header: header['__metadata__'].update({name: text})))


@pytest.mark.parametrize('schema', ['dipod_ros.decision/2', '', 'other'])
def test_another_schema_is_refused_and_named(decision, schema):
    change = lambda header: header['__metadata__'].update(schema=schema)  # noqa: E731
    with pytest.raises(DecisionError, match=SCHEMA):
        decode(with_header(decision, change))


def rename(header):
    header['other'] = header.pop('noise')


def to_float64(header):
    header['observation'] |= {'dtype': 'F64', 'shape': [2]}


def to_int32(header):
    header['observation']['dtype'] = 'I32'


def to_bfloat16(header):
    header['observation'] |= {'dtype': 'BF16', 'shape': [8]}


def flat_chunk(header):
    header['chunk']['shape'] = [6]


def tall_observation(header):
    header['observation']['shape'] = [4, 1]


@pytest.mark.parametrize(
    'change', [rename, to_float64, to_int32, to_bfloat16, flat_chunk, tall_observation]
)
def test_arrays_of_another_name_type_or_shape_are_refused(decision, change):
    with pytest.raises(DecisionError):
        decode(with_header(decision, change))


def test_chunk_and_executed_have_one_shape(decision):
    with pytest.raises(DecisionError, match='shape'):
        decode(encode(replace(decision, executed=np.zeros((2, 2), np.float32))))


@pytest.mark.parametrize('name', ['observation', 'noise', 'chunk'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_learned_from_must_be_finite(decision, name, value):
    values = getattr(decision, name).copy()
    values.flat[-1] = value
    with pytest.raises(DecisionError, match='finite'):
        decode(encode(replace(decision, **{name: values})))


def test_an_absurdly_large_payload_is_refused_unread():
    with pytest.raises(DecisionError, match=str(MAX_BYTES)):
        decode(b'\0' * (MAX_BYTES + 1))


def test_a_state_decision_is_small(decision):
    assert len(encode(decision)) < 2000
