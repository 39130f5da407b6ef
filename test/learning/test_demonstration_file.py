# SPDX-License-Identifier: Apache-2.0
"""A file of demonstrations that grows: nothing is lost, nothing is mixed."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import make_spec

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations import dataset
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.demonstrations.demonstration_file import DemonstrationFile
from dipod_ros.learning.demonstrations.recording import Episode
from dipod_ros.policy.image import ImageSettings
from dipod_ros.policy.spec import SamplerSpec, Stream

SPEC = make_spec()


def episode(count, value=0.0, images=None):
    observations = np.full((count, SPEC.observation_size), value, np.float32)
    actions = np.full((count, SPEC.horizon, 3), value, np.float32)
    return Episode(observations, actions, None, 1.0, images or {})


def test_every_episode_is_on_disk_at_once(tmp_path):
    path = tmp_path / 'deep/demos.safetensors'
    file = DemonstrationFile(path, SPEC)
    assert not path.exists() and (file.decisions, file.room) == (0, None)
    file.add(episode(3, 1.0), True)
    file.add(episode(2, 2.0), False)
    data = Demonstrations.load(path)
    assert data.episodes.tolist() == [0, 0, 0, 1, 1]
    assert data.success.tolist() == [True, False]
    assert data.observations[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert data.spec == SPEC or data.spec.to_dict() == SPEC.to_dict()
    only = data.successful()
    assert only.episodes.tolist() == [0, 0, 0] and only.success.tolist() == [True]


def test_another_session_goes_on_in_the_same_file(tmp_path):
    path = tmp_path / 'demos'
    DemonstrationFile(path, SPEC).add(episode(3, 1.0), False)
    # Network and sampler are chosen when training: they may differ.
    file = DemonstrationFile(path, replace(SPEC, sampler=SamplerSpec('euler', 3)))
    assert (file.decisions, file.session_episodes, file.success) == (3, 0, [False])
    file.add(episode(1, 5.0), True)
    data = Demonstrations.load(path)
    assert data.episodes.tolist() == [0, 0, 0, 1]
    assert data.successful().observations[:, 0].tolist() == [5.0]
    assert data.successful().episodes.tolist() == [0]


def test_discard_takes_back_what_this_session_recorded_and_no_more(tmp_path):
    path = tmp_path / 'demos'
    DemonstrationFile(path, SPEC).add(episode(3), True)
    file = DemonstrationFile(path, SPEC)
    file.add(episode(2), False)
    assert file.discard() is False
    assert len(Demonstrations.load(path).success) == 1
    with pytest.raises(UserError, match='this session has recorded no episode'):
        file.discard()
    fresh = DemonstrationFile(tmp_path / 'fresh', SPEC)
    fresh.add(episode(2), True)
    assert fresh.discard() is True
    assert not (tmp_path / 'fresh').exists() and fresh.decisions == 0


@pytest.mark.parametrize(
    ('changes', 'name'),
    [
        ({'task': 'other'}, 'task'),
        ({'robot': 'other'}, 'robot'),
        ({'horizon': 7}, 'horizon'),
        ({'control_period_s': 0.02}, 'control_period_s'),
        ({'streams': SPEC.streams[:2]}, 'streams'),
        ({'limits': replace(SPEC.limits, velocity=[1.0, 1.0, 1.0])}, 'limits'),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, changes, name):
    path = tmp_path / 'demos'
    DemonstrationFile(path, SPEC).add(episode(3), True)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f'has another {name}: .*choose another output'):
        DemonstrationFile(path, replace(SPEC, **changes))
    assert path.read_bytes() == before


def test_a_file_that_knows_more_than_a_robot_is_left_alone(tmp_path):
    path = tmp_path / 'demos'
    DemonstrationFile(path, SPEC).add(episode(3), True)
    known = {'goal': np.zeros((3, 2), np.float32)}
    replace(Demonstrations.load(path), privileged=known).save(path)
    with pytest.raises(UserError, match=r'does not know \(goal\); choose another output'):
        DemonstrationFile(path, SPEC)
    assert Demonstrations.load(path).successful().privileged['goal'].shape == (3, 2)


def test_a_file_that_is_no_dataset_is_left_alone(tmp_path):
    path = tmp_path / 'notes'
    path.write_text('mine')
    with pytest.raises(UserError, match='cannot be read as demonstrations'):
        DemonstrationFile(path, SPEC)
    assert path.read_text() == 'mine'


@pytest.mark.parametrize('where', ['file/demos', 'file/deeper/demos', 'folder'])
def test_where_nothing_can_be_written_it_says_so_at_once(tmp_path, where):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(UserError, match='cannot'):
        DemonstrationFile(tmp_path / where, SPEC)


def test_an_episode_that_could_not_be_written_is_written_with_the_next(tmp_path):
    folder = tmp_path / 'disk'
    folder.mkdir()
    file = DemonstrationFile(folder / 'demos', SPEC)
    folder.rmdir()
    folder.write_text('the disk is gone')
    with pytest.raises(UserError, match='cannot write'):
        file.add(episode(2, 1.0), True)
    assert file.unsaved
    folder.unlink()
    file.add(episode(1, 2.0), True)
    assert not file.unsaved
    assert Demonstrations.load(folder / 'demos').observations[:, 0].tolist() == [1, 1, 2]


def test_pictures_are_counted_before_the_memory_is_full(tmp_path, monkeypatch):
    eye = Stream('eye', 'image', 4, 'front/image_raw', image=ImageSettings(16, 16))
    spec = replace(SPEC, streams=(eye,))
    monkeypatch.setattr(dataset, 'MAX_IMAGE_BYTES', 10 * 768)
    monkeypatch.setattr(
        'dipod_ros.learning.demonstrations.demonstration_file.MAX_IMAGE_BYTES', 10 * 768
    )

    def shown(count):
        pictures = np.zeros((count, 16, 16, 3), np.uint8)
        return Episode(
            np.zeros((count, 4), np.float32),
            np.zeros((count, 6, 3), np.float32),
            None,
            1.0,
            {'eye': pictures},
        )

    file = DemonstrationFile(tmp_path / 'demos', spec)
    file.add(shown(6), True)
    assert file.room == 4
    with pytest.raises(UserError, match='of pictures, at most'):
        file.add(shown(5), True)
    assert file.session_episodes == 1 and not file.unsaved
    file.add(shown(4), True)
    assert Demonstrations.load(tmp_path / 'demos').images['eye'].shape == (10, 16, 16, 3)


def test_where_nothing_succeeded_there_is_nothing_to_choose(tmp_path):
    file = DemonstrationFile(tmp_path / 'demos', SPEC)
    file.add(episode(3), False)
    with pytest.raises(UserError, match='none of the demonstrations succeeded'):
        Demonstrations.load(tmp_path / 'demos').successful()
