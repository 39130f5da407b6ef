# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: whole, checked, inside the model folders, and free of pickle."""

import hashlib
import os
import pickletools
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save as dump

from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy import text_file
from dipod_ros.policy.checkpoint import CheckpointError, Golden


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        'net.w': rng.normal(size=(4, 3)).astype(np.float32),
        'net.b': np.zeros(4, dtype=np.float32),
    }


@pytest.fixture
def golden(make_spec):
    rng = np.random.default_rng(1)
    spec = make_spec()
    return Golden(
        rng.normal(size=spec.observation_size).astype(np.float32),
        rng.normal(size=spec.noise_size).astype(np.float32),
        rng.normal(size=(3, 2)).astype(np.float32),
    )


@pytest.fixture
def saved(tmp_path, make_spec, weights, golden):
    """Return the folder of a valid checkpoint."""
    ckpt.save(tmp_path / 'model', make_spec(), weights, kind='flow', golden=golden)
    return tmp_path / 'model'


def edit_manifest(folder, **changes):
    file = folder / ckpt.MANIFEST_FILE
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def replace_weights(folder, weights):
    """Put other weights into a checkpoint, with the sha256 that fits them."""
    payload = dump(weights)
    (folder / ckpt.WEIGHTS_FILE).write_bytes(payload)
    edit_manifest(folder, sha256=hashlib.sha256(payload).hexdigest())


def refusal(call, *arguments, **options):
    """Return the message of the CheckpointError that a call must raise: one line of it."""
    with pytest.raises(CheckpointError) as error:
        call(*arguments, **options)
    assert str(error.value) and '\n' not in str(error.value)
    return str(error.value)


def test_everything_comes_back_from_disk(tmp_path, make_spec, weights, golden):
    written = ckpt.save(
        tmp_path / 'deep' / 'model',
        make_spec(),
        weights,
        kind='student',
        golden=golden,
        version=12,
        lineage={'parent': 'ab' * 32, 'seed': np.int64(3), 'from': Path('/x')},
        metrics={'success': np.float32(0.25), 'gap': float('nan'), 'curve': np.arange(3)},
        extra_files={'README.md': 'Fits in one hand.\n'},
    )
    checkpoint = ckpt.load(tmp_path / 'deep' / 'model')
    manifest = checkpoint.manifest
    assert manifest.sha256 == written.sha256
    assert (manifest.kind, manifest.version) == ('student', 12)
    assert manifest.lineage == {'parent': 'ab' * 32, 'seed': 3, 'from': '/x'}
    assert manifest.metrics == {'success': 0.25, 'gap': None, 'curve': [0, 1, 2]}
    assert manifest.path == tmp_path / 'deep' / 'model'
    assert checkpoint.spec.to_dict() == make_spec().to_dict()
    assert checkpoint.weights.keys() == weights.keys()
    for name in weights:
        np.testing.assert_array_equal(checkpoint.weights[name], weights[name])
        assert checkpoint.weights[name].dtype == np.float32
    for name in ('observation', 'noise', 'chunk'):
        # Written as decimal text, and still the same float32.
        np.testing.assert_array_equal(getattr(manifest.golden, name), getattr(golden, name))
    assert (tmp_path / 'deep' / 'model' / 'README.md').read_text() == 'Fits in one hand.\n'


def test_the_same_weights_have_the_same_sha(tmp_path, make_spec, weights):
    first = ckpt.save(tmp_path / 'a', make_spec(), weights, kind='flow')
    turned = dict(reversed(weights.items()))
    assert ckpt.save(tmp_path / 'b', make_spec(), turned, kind='flow').sha256 == first.sha256
    changed = weights | {'net.b': weights['net.b'] + np.float32(1e-7)}
    assert ckpt.save(tmp_path / 'c', make_spec(), changed, kind='flow').sha256 != first.sha256


def test_weights_that_are_not_contiguous_are_written_right(tmp_path, make_spec, weights):
    turned = {'w': weights['net.w'].T}
    ckpt.save(tmp_path / 'm', make_spec(), turned, kind='flow')
    np.testing.assert_array_equal(ckpt.load(tmp_path / 'm').weights['w'], turned['w'])


def test_an_existing_checkpoint_is_overwritten_on_demand_only(saved, make_spec, weights):
    before = ckpt.read_manifest(saved).sha256
    assert 'exists' in refusal(ckpt.save, saved, make_spec(), weights, kind='flow')
    changed = {k: v + 1 for k, v in weights.items()}
    ckpt.save(saved, make_spec(), changed, kind='flow', overwrite=True)
    assert ckpt.load(saved).manifest.sha256 != before
    assert [p.name for p in saved.parent.iterdir()] == ['model']


def test_reading_the_manifest_needs_no_valid_weights(saved):
    (saved / ckpt.WEIGHTS_FILE).write_bytes(b'')
    assert ckpt.read_manifest(saved).kind == 'flow'


@pytest.mark.parametrize('position', [0, 100, -1])
def test_one_flipped_bit_is_found(saved, position):
    file = saved / ckpt.WEIGHTS_FILE
    payload = bytearray(file.read_bytes())
    payload[position] ^= 1
    file.write_bytes(payload)
    assert 'sha256' in refusal(ckpt.load, saved)


@pytest.mark.parametrize('keep', [0, 7, 50, -1])
def test_a_truncated_weights_file_is_found(saved, keep):
    file = saved / ckpt.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:keep])
    assert 'sha256' in refusal(ckpt.load, saved)


@pytest.mark.parametrize('payload', [b'', b'PK\x03\x04', b'\x80\x02}q\x00.', b'\xff' * 64])
def test_a_file_that_is_no_safetensors_is_refused_even_with_its_sha(saved, payload):
    (saved / ckpt.WEIGHTS_FILE).write_bytes(payload)
    edit_manifest(saved, sha256=hashlib.sha256(payload).hexdigest())
    assert 'safetensors' in refusal(ckpt.load, saved)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    saved, make_spec, weights, value, tmp_path
):
    bad = {k: v.copy() for k, v in weights.items()}
    bad['net.w'][2, 1] = value
    assert 'net.w' in refusal(ckpt.save, tmp_path / 'bad', make_spec(), bad, kind='flow')
    assert not (tmp_path / 'bad').exists()
    replace_weights(saved, bad)
    assert 'net.w' in refusal(ckpt.load, saved)


def test_weights_of_an_unexpected_type_are_refused(saved, weights):
    replace_weights(saved, weights | {'net.b': np.zeros(4, dtype=np.float64)})
    assert 'float32' in refusal(ckpt.load, saved)


@pytest.mark.parametrize('name', [ckpt.WEIGHTS_FILE, ckpt.MANIFEST_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert name in refusal(ckpt.load, saved)
    assert name in refusal(ckpt.read_manifest, saved)


def test_no_folder_is_an_error_of_one_line(tmp_path):
    assert 'absent' in refusal(ckpt.read_manifest, tmp_path / 'absent')
    (tmp_path / 'file').write_text('')
    refusal(ckpt.load, tmp_path / 'file')


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'format_version': 2}, 'format_version'),
        ({'format_version': None}, 'format_version'),
        ({'kind': 'diffusion'}, 'kind'),
        ({'kind': None}, 'kind'),
        ({'kind': ['flow']}, 'kind'),
        ({'sha256': 'abc'}, 'sha256'),
        ({'sha256': None}, 'sha256'),
        ({'sha256': 'Z' * 64}, 'sha256'),
        ({'version': 'new'}, 'new'),
        ({'version': [1]}, 'int'),
        ({'version': float('inf')}, 'infinity'),
        ({'version': 1 << 64}, '64 bits'),
        ({'spec': None}, 'missing'),
        ({'spec': []}, 'manifest'),
        ({'spec': {'task': 'x'}}, 'missing'),
        ({'golden': {'observation': [0.0]}}, 'golden'),
        ({'golden': [1, 2]}, 'golden'),
        ({'golden': {'observation': ['a'], 'noise': [], 'chunk': []}}, 'manifest'),
        ({'golden': {'observation': [10**400], 'noise': [], 'chunk': []}}, 'float'),
        ({'lineage': 3}, 'manifest'),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(saved, changes, word):
    edit_manifest(saved, **changes)
    message = refusal(ckpt.read_manifest, saved)
    assert word in message and str(saved) in message
    refusal(ckpt.load, saved)


def test_a_version_that_python_reads_and_cannot_write_is_refused(saved):
    edit_manifest(saved, version='HERE')
    file = saved / ckpt.MANIFEST_FILE
    file.write_text(file.read_text().replace('HERE', '0x' + 'f' * 5_000))
    assert '64 bits' in refusal(ckpt.read_manifest, saved)


@pytest.mark.parametrize('name', ['observation', 'noise', 'chunk'])
@pytest.mark.parametrize('value', [[0.0], [[0.0, 0.0]], [], None])
def test_golden_values_must_fit_the_spec(saved, name, value):
    golden = yaml.safe_load((saved / ckpt.MANIFEST_FILE).read_text())['golden']
    edit_manifest(saved, golden=golden | {name: value})
    assert name in refusal(ckpt.read_manifest, saved)


@pytest.mark.parametrize(
    'text',
    [
        b'',
        b'[]',
        b'just words',
        b'a: [1, 2',
        b'\xff\xfe\x00',
        b'!!python/object/apply:os.system ["true"]',
        b'a: &a [*a]\n- b',
        b'a: 1' + b':1' * 100_000,
        b'[' + b'1, ' * 200_000 + b']',
        b'[' * 20_000,
        b'[' * 100_000 + b']' * 100_000,
        b'- ' * 100_000,
        b'a: ' + b'{b: ' * 5_000,
        b'a: !!int ""',
        b'a: !!bool maybe',
        b'a: !!timestamp now',
    ],
)
def test_a_garbled_manifest_is_refused(saved, text):
    (saved / ckpt.MANIFEST_FILE).write_bytes(text)
    refusal(ckpt.read_manifest, saved)


def test_a_manifest_with_an_alias_is_refused_with_what_to_change(saved):
    file = saved / ckpt.MANIFEST_FILE
    text = (
        file.read_text()
        .replace('task: toy', 'task: &word toy')
        .replace('robot: ', 'robot: *word #')
    )
    file.write_text(text)
    assert 'write out what *word stands for' in refusal(ckpt.read_manifest, saved)


def test_what_is_saved_has_no_alias(tmp_path, make_spec, weights, golden):
    same = [1.0, 2.0]
    lineage = {'a': same, 'b': same, 'c': {'d': same}}
    ckpt.save(tmp_path / 'm', make_spec(), weights, kind='flow', golden=golden, lineage=lineage)
    assert ckpt.read_manifest(tmp_path / 'm').lineage == lineage


def test_a_manifest_that_would_not_be_read_is_not_written(tmp_path, make_spec, weights):
    for metrics in ({'note': 'x' * 20_000}, {'curve': np.arange(30_000)}):
        message = refusal(
            ckpt.save, tmp_path / 'm', make_spec(), weights, kind='flow', metrics=metrics
        )
        assert 'its manifest has' in message and not (tmp_path / 'm').exists()


def test_an_absurdly_large_manifest_is_not_read(saved):
    with open(saved / ckpt.MANIFEST_FILE, 'ab') as handle:
        handle.truncate(text_file.MAX_BYTES + 1)
    assert 'larger' in refusal(ckpt.read_manifest, saved)


def test_an_absurdly_large_weights_file_is_not_read(saved):
    with open(saved / ckpt.WEIGHTS_FILE, 'ab') as handle:
        handle.truncate(ckpt.MAX_WEIGHTS_BYTES + 1)  # sparse: takes no space
    assert 'larger' in refusal(ckpt.load, saved)


@pytest.mark.parametrize('name', [ckpt.WEIGHTS_FILE, ckpt.MANIFEST_FILE])
def test_a_read_error_is_an_error_of_one_line(saved, name):
    (saved / name).unlink()
    (saved / name).symlink_to('/proc/self/mem')  # a regular file whose first page cannot be read
    assert name in refusal(ckpt.load, saved)


def test_nothing_on_disk_is_pickle(saved):
    assert sorted(p.name for p in saved.iterdir()) == ['manifest.yaml', 'policy.safetensors']
    for file in saved.iterdir():
        with pytest.raises(Exception):  # noqa: B017 - whatever pickletools says to no pickle
            list(pickletools.genops(file.read_bytes()))


@pytest.mark.parametrize('kind', ['', 'Flow', 'teacher'])
def test_a_kind_that_does_not_exist_is_not_written(tmp_path, make_spec, weights, kind):
    assert 'flow' in refusal(ckpt.save, tmp_path / 'm', make_spec(), weights, kind=kind)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path, make_spec, weights):
    (tmp_path / 'file').write_text('in the way')
    message = refusal(ckpt.save, tmp_path / 'file' / 'm', make_spec(), weights, kind='flow')
    assert str(tmp_path / 'file') in message


def test_a_path_that_is_a_file_is_not_overwritten(tmp_path, make_spec, weights):
    (tmp_path / 'm').write_text('precious')
    for overwrite in (False, True):
        refusal(ckpt.save, tmp_path / 'm', make_spec(), weights, kind='flow', overwrite=overwrite)
        assert (tmp_path / 'm').read_text() == 'precious'
    assert [p.name for p in tmp_path.iterdir()] == ['m']


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path, make_spec, weights):
    """Someone's home folder, say."""
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('precious')
    refusal(ckpt.save, tmp_path / 'home', make_spec(), weights, kind='flow', overwrite=True)
    assert (tmp_path / 'home' / 'thesis.tex').read_text() == 'precious'
    assert [p.name for p in tmp_path.iterdir()] == ['home']


@pytest.mark.parametrize('name', ['../escaped', '/tmp/escaped', 'sub/file', 'policy.safetensors'])
def test_extra_files_stay_beside_the_weights(tmp_path, make_spec, weights, name):
    refusal(
        ckpt.save,
        tmp_path / 'models' / 'm',
        make_spec(),
        weights,
        kind='flow',
        extra_files={name: 'x'},
    )
    assert not (tmp_path / 'models' / 'm').exists()
    assert not (tmp_path / 'models' / 'escaped').exists()


@pytest.fixture
def two_roots(tmp_path, make_spec, weights):
    """Return two model folders and a model outside them."""
    for path in ('first/m', 'second/m', 'second/only', 'outside/m'):
        ckpt.save(tmp_path / path, make_spec(), weights, kind='flow')
    return [tmp_path / 'first', tmp_path / 'second'], tmp_path / 'outside' / 'm'


def test_names_are_looked_up_in_the_model_folders_in_order(two_roots):
    roots, _ = two_roots
    assert ckpt.resolve('m', roots) == roots[0] / 'm'
    assert ckpt.resolve('only', roots) == roots[1] / 'only'
    assert ckpt.resolve(f' {roots[1]}/m ', roots) == roots[1] / 'm'
    assert ckpt.resolve('../second/only', roots) == roots[1] / 'only'


def test_relative_paths_start_at_the_working_directory(two_roots, monkeypatch):
    roots, _ = two_roots
    monkeypatch.chdir(roots[1].parent)
    assert ckpt.resolve('second/only', roots) == roots[1] / 'only'


def test_a_path_outside_the_model_folders_is_refused(two_roots, monkeypatch):
    roots, outside = two_roots
    monkeypatch.chdir(outside.parent)
    (roots[0] / 'link').symlink_to(outside)
    for name in (str(outside), '../outside/m', 'link', './link', '../first/../outside/m'):
        assert 'outside' in refusal(ckpt.resolve, name, roots)


def test_a_link_that_stays_inside_is_fine(two_roots):
    roots, _ = two_roots
    (roots[0] / 'latest').symlink_to(roots[0] / 'm')
    assert ckpt.resolve('latest', roots) == roots[0] / 'm'


def test_a_model_folder_whose_name_merely_begins_alike_is_outside(two_roots):
    roots, outside = two_roots
    sibling = roots[0].with_name('first_and_more')
    (sibling / 'm').mkdir(parents=True)
    assert 'outside' in refusal(ckpt.resolve, str(sibling / 'm'), roots)


def test_a_name_that_nobody_can_log_is_refused(two_roots):
    """Bytes that are not UTF-8 are lone surrogates in a str, which rclpy's logger does not take."""
    roots, outside = two_roots
    odd = roots[0] / os.fsdecode(b'\x80x')
    odd.mkdir()
    (roots[0] / 'link').symlink_to(odd)
    (roots[0] / odd.name / 'inside').symlink_to(roots[0] / 'm')
    (outside.parent / odd.name).mkdir()
    inside = f'{odd}/inside'
    for name in (str(odd), odd.name, 'link', inside, str(outside.parent / odd.name)):
        message = refusal(ckpt.resolve, name, roots)
        assert 'is no name in UTF-8' in message and message.encode()
    assert refusal(ckpt.resolve, '\ud800', roots).encode()  # that no file can have


def test_an_unknown_name_lists_the_models_at_hand(two_roots):
    roots, _ = two_roots
    # What a killed writer leaves behind is no model.
    (roots[1] / '.only.123-abc').mkdir()
    (roots[1] / '.only.123-abc' / ckpt.MANIFEST_FILE).write_text('')
    message = refusal(ckpt.resolve, 'typo', roots)
    assert "'only'" in message and '.only' not in message
    assert 'none' in refusal(ckpt.resolve, 'typo', [roots[0].parent / 'absent'])


@pytest.mark.parametrize(
    'name', ['', '  ', '~nobody-has-this-name/m', 'a\0b', 'x' * 5000, '/', '.']
)
def test_odd_names_are_errors_of_one_line(two_roots, name):
    roots, _ = two_roots
    refusal(ckpt.resolve, name, roots)


def test_the_model_folder_itself_is_no_checkpoint(two_roots):
    roots, _ = two_roots
    refusal(ckpt.resolve, str(roots[0]), roots)
