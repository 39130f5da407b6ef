# SPDX-License-Identifier: Apache-2.0
"""Demonstrations on disk."""

import json
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save as dump

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.dataset import SCHEMA, Demonstrations


@pytest.fixture
def demonstrations(make_spec):
    rng = np.random.default_rng(0)
    spec = make_spec(size=2, horizon=3, observed=4)
    return Demonstrations(
        spec=spec,
        observations=rng.normal(size=(10, 4)).astype(np.float32),
        actions=rng.normal(size=(10, 3, 2)).astype(np.float32),
        episodes=np.repeat(np.arange(5), 2).astype(np.int32),
        success=np.array([True, False, True, True, False]),
        seed=7,
    )


def test_everything_comes_back_from_disk(demonstrations, tmp_path):
    path = tmp_path / 'deep' / 'demos.safetensors'
    demonstrations.save(path)
    again = Demonstrations.load(path)
    for name in ('observations', 'actions', 'episodes', 'success'):
        np.testing.assert_array_equal(getattr(again, name), getattr(demonstrations, name))
    assert again.success.dtype == bool and again.seed == 7
    assert again.spec.to_dict() == demonstrations.spec.to_dict()
    assert [p.name for p in path.parent.iterdir()] == ['demos.safetensors']


def test_a_dataset_replaces_the_one_before(demonstrations, tmp_path):
    path = tmp_path / 'demos'
    demonstrations.save(path)
    replace(demonstrations, seed=8).save(path)
    assert Demonstrations.load(path).seed == 8


def test_a_missing_file_says_how_to_make_one(tmp_path):
    for path in (tmp_path / 'absent', tmp_path):
        with pytest.raises(UserError, match='dipod demos'):
            Demonstrations.load(path)


@pytest.mark.parametrize('keep', [0, 8, 100, -1])
def test_a_truncated_file_is_an_error_of_one_line(demonstrations, tmp_path, keep):
    demonstrations.save(tmp_path / 'demos')
    payload = (tmp_path / 'demos').read_bytes()
    (tmp_path / 'demos').write_bytes(payload[:keep])
    with pytest.raises(UserError) as error:
        Demonstrations.load(tmp_path / 'demos')
    assert '\n' not in str(error.value)


def write(path, made_for, arrays=(), **metadata):
    tensors = {
        'observations': np.zeros((4, 4), np.float32),
        'actions': np.zeros((4, 3, 2), np.float32),
        'episodes': np.zeros(4, np.int32),
        'success': np.ones(1, np.uint8),
    } | dict(arrays)
    values = {'schema': SCHEMA, 'spec': yaml.safe_dump(made_for.to_dict()), 'seed': '0'} | metadata
    path.write_bytes(dump(tensors, metadata={k: v for k, v in values.items() if v is not None}))
    return path


def test_the_file_that_the_next_tests_spoil_is_whole(demonstrations, tmp_path):
    assert len(Demonstrations.load(write(tmp_path / 'd', demonstrations.spec)).actions) == 4


@pytest.mark.parametrize(
    'metadata',
    [
        {'schema': 'other/1'},
        {'schema': None},
        {'seed': 'x'},
        {'seed': None},
        {'seed': 'null'},
        {'seed': 'Infinity'},
        {'seed': '[' * 100_000},
        {'spec': None},
        {'spec': 'task: &a x\nrobot: *a'},
        {'spec': '[' * 100_000},
        {'spec': '[1, 2'},
        {'spec': '{}'},
        {'spec': '3'},
    ],
)
def test_wrong_metadata_is_an_error_of_one_line(demonstrations, tmp_path, metadata):
    path = write(tmp_path / 'd', demonstrations.spec, **metadata)
    with pytest.raises(UserError) as error:
        Demonstrations.load(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'arrays',
    [
        {'observations': np.zeros((3, 4), np.float32)},
        {'observations': np.zeros((4, 5), np.float32)},
        {'actions': np.zeros((4, 2, 2), np.float32)},
        {'actions': np.zeros((4, 6), np.float32)},
        {'episodes': np.zeros(3, np.int32)},
        {'episodes': np.zeros(4, np.float32)},
        {'episodes': np.zeros(4, bool)},
        {'observations': np.zeros((4, 4), bool)},
        {'success': np.ones((1, 1), np.uint8)},
        {'images.camera': np.zeros((4, 2, 2, 3), np.uint8)},
        {'privileged.x': np.zeros((4, 2), np.uint8)},
        {'actions': np.full((4, 3, 2), np.nan, np.float32)},
        {'observations': np.full((4, 4), np.inf, np.float32)},
        {
            'observations': np.zeros((0, 4), np.float32),
            'actions': np.zeros((0, 3, 2), np.float32),
            'episodes': np.zeros(0, np.int32),
        },
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(demonstrations, tmp_path, arrays):
    path = write(tmp_path / 'd', demonstrations.spec, arrays.items())
    with pytest.raises(UserError, match=str(path)):
        Demonstrations.load(path)


def test_a_file_of_something_else_is_refused(demonstrations, tmp_path):
    (tmp_path / 'd').write_bytes(dump({'x': np.zeros(3)}))
    with pytest.raises(UserError, match='schema'):
        Demonstrations.load(tmp_path / 'd')


def test_a_path_that_cannot_be_written_is_an_error_of_one_line(demonstrations, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    for path in (tmp_path / 'file' / 'demos', tmp_path / 'folder'):
        with pytest.raises(UserError, match='cannot write') as error:
            demonstrations.save(path)
        assert '\n' not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'folder']


def test_pictures_larger_than_the_memory_are_refused_before_they_are_read(tmp_path):
    from eyes import make_camera_spec

    spec = make_camera_spec()
    ((stream, _),) = spec.images
    rows = (3 << 30) // int(np.prod(stream.image.shape))
    arrays = {
        'observations': np.zeros((rows, spec.observation_size), np.float32),
        'actions': np.zeros((rows, spec.horizon, 3), np.float32),
        'episodes': np.zeros(rows, np.int32),
        'success': np.ones(1, np.uint8),
    }
    kinds = {np.float32: 'F32', np.int32: 'I32', np.uint8: 'U8'}
    at, header = 0, {'__metadata__': {'schema': SCHEMA, 'spec': yaml.safe_dump(spec.to_dict()),
                                      'seed': '0'}}  # fmt: skip
    shapes = {k: (v.dtype.type, v.shape) for k, v in arrays.items()}
    shapes[f'images.{stream.name}'] = (np.uint8, (rows, *stream.image.shape))
    for name, (kind, shape) in shapes.items():
        end = at + np.dtype(kind).itemsize * int(np.prod(shape))
        header[name] = {'dtype': kinds[kind], 'shape': list(shape), 'data_offsets': [at, end]}
        at = end
    head = json.dumps(header).encode()
    with open(tmp_path / 'd', 'wb') as handle:
        handle.write(struct.pack('<Q', len(head)) + head)
        handle.truncate(8 + len(head) + at)  # sparse: takes no space
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match='MB of pictures, at most'):
            Demonstrations.load(tmp_path / 'd')
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_success_may_be_stored_as_booleans(demonstrations, tmp_path):
    path = write(tmp_path / 'd', demonstrations.spec, {'success': np.ones(1, bool)}.items())
    assert Demonstrations.load(path).success.tolist() == [True]


def test_other_arrays_in_a_file_are_not_read(demonstrations, tmp_path):
    path = write(tmp_path / 'd', demonstrations.spec, {'more': np.zeros(3, np.float16)}.items())
    assert len(Demonstrations.load(path).actions) == 4
