# SPDX-License-Identifier: Apache-2.0
"""Only a checkpoint that fits this robot and does what it promised comes to act."""

import numpy as np
import pytest
from checkpoints import (
    JOINTS,
    make_limits,
    make_policy,
    save_checkpoint,
    save_lying_checkpoint,
)

from dipod_ros.policy.checkpoint import MANIFEST_FILE, WEIGHTS_FILE, CheckpointError
from dipod_ros.serving.engines.base import EngineError
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import PolicyLoader


@pytest.fixture
def loader(tmp_path):
    return PolicyLoader(make_limits(), 0.04, [tmp_path], EngineFactory('torch'))


def test_a_good_checkpoint_is_built_checked_and_runs(loader, tmp_path):
    saved = save_checkpoint(tmp_path / 'good')
    policy = loader.build(loader.validate('good', saved.sha256))
    chunk = policy.engine.run(saved.golden.observation, saved.golden.noise)
    np.testing.assert_allclose(chunk, saved.golden.chunk, atol=1e-6)
    assert policy.manifest.sha256 == saved.sha256


def test_joints_in_another_order_are_welcome(loader, tmp_path):
    save_checkpoint(tmp_path / 'mirrored', joints=JOINTS[::-1], limits=make_limits(JOINTS[::-1]))
    policy = loader.build(loader.validate('mirrored'))
    np.testing.assert_array_equal(policy.layout.order, [2, 1, 0])


def swap_weights(path):
    (path / WEIGHTS_FILE).write_bytes(b'x' * 100)


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'joints': ('left', 'right'), 'limits': make_limits(('left', 'right'))}, 'left'),
        ({'control_period_s': 0.01}, 'control_period_s'),
    ],
)
def test_a_checkpoint_for_another_robot_is_refused_before_its_weights_are_read(
    loader, tmp_path, options, reason
):
    from dipod_ros.policy.spec import Stream

    joints = options.get('joints', JOINTS)
    streams = (Stream('position', 'joint_position', len(joints), 'joint_states'),)
    save_checkpoint(tmp_path / 'other', streams=streams, **options)
    swap_weights(tmp_path / 'other')
    with pytest.raises(CheckpointError, match=reason):
        loader.validate('other')


@pytest.mark.parametrize(('name', 'reason'), [('', 'empty'), ('nobody', 'models at hand')])
def test_a_name_that_is_nowhere_is_refused(loader, name, reason):
    with pytest.raises(CheckpointError, match=reason):
        loader.validate(name)


def test_a_path_outside_the_model_folders_is_refused(loader, tmp_path_factory):
    outside = tmp_path_factory.mktemp('outside')
    save_checkpoint(outside / 'good')
    with pytest.raises(CheckpointError, match='outside the model folders'):
        loader.validate(str(outside / 'good'))


def test_whatever_goes_wrong_with_a_manifest_is_a_refusal(loader, tmp_path, monkeypatch):
    from dipod_ros.policy.spec import PolicySpec

    save_checkpoint(tmp_path / 'odd')

    def stumble(*_):
        raise IndexError('nobody\nthought of this')

    monkeypatch.setattr(PolicySpec, 'mismatch', stumble)
    with pytest.raises(CheckpointError, match='^odd cannot be used: IndexError: nobody$'):
        loader.validate('odd')


@pytest.mark.parametrize('sha', ['f' * 64, 'short'])
def test_another_checkpoint_than_announced_is_refused(loader, tmp_path, sha):
    save_checkpoint(tmp_path / 'good')
    with pytest.raises(CheckpointError, match='sha256'):
        loader.validate('good', sha)


def test_weights_that_changed_on_disk_are_refused(loader, tmp_path):
    save_checkpoint(tmp_path / 'good')
    manifest = loader.validate('good')
    swap_weights(tmp_path / 'good')
    with pytest.raises(CheckpointError, match='corrupt'):
        loader.build(manifest)


def test_a_checkpoint_replaced_after_the_request_is_refused(loader, tmp_path):
    save_checkpoint(tmp_path / 'good', seed=0)
    manifest = loader.validate('good')
    make_policy(1).save(tmp_path / 'good', overwrite=True)
    with pytest.raises(CheckpointError, match='changed since'):
        loader.build(manifest)


@pytest.mark.parametrize(
    ('said', 'says'),
    [('control_period_s: 0.04', 'control_period_s: 0.4'), ('topic: goal', 'topic: elsewhere')],
)
def test_a_manifest_that_changed_after_the_request_is_refused(loader, tmp_path, said, says):
    """Its weights are the same, so that their sha256 is."""
    save_checkpoint(tmp_path / 'good')
    manifest = loader.validate('good')
    file = tmp_path / 'good' / MANIFEST_FILE
    text = file.read_text()
    assert said in text
    file.write_text(text.replace(said, says))
    with pytest.raises(CheckpointError, match='changed since'):
        loader.build(manifest)


def test_a_policy_that_does_not_do_what_its_manifest_says_is_refused(loader, tmp_path):
    save_lying_checkpoint(tmp_path / 'liar')
    with pytest.raises(EngineError, match='golden check failed'):
        loader.build(loader.validate('liar'))
