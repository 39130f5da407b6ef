# SPDX-License-Identifier: Apache-2.0
"""Encoders learn with the flow in behaviour cloning, and stay as they are in all that follows."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eyes import SMALL, camera_stream  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning import dataset  # noqa: E402
from dipod_ros.learning.dataset import Demonstrations, require_space  # noqa: E402
from dipod_ros.learning.distill import DistillConfig, distill  # noqa: E402
from dipod_ros.learning.fresh_student import FreshConfig  # noqa: E402
from dipod_ros.learning.pretrain import PretrainConfig, pretrain  # noqa: E402
from dipod_ros.learning.run import RunConfig, TrainingRun  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.policy.spec import Stream  # noqa: E402
from dipod_ros.policy.vision import load_encoder  # noqa: E402

QUICK = PretrainConfig(steps=400, batch=32, samples=4, ema=0.98)


def show(places):
    """Return pictures [N, 24, 40, 3] of a red block at columns -1..1."""
    pictures = np.full((len(places), 24, 40, 3), 90, np.uint8)
    for picture, place in zip(pictures, places, strict=True):
        at = round(16 + 14 * place)
        picture[8:16, at : at + 8] = (230, 40, 30)
    return pictures


@pytest.fixture(scope='module')
def spec(request):
    make_spec = request.getfixturevalue('make_spec')
    state = Stream('state', 'vector', 2, 'state')
    return replace(make_spec(width=64), streams=(state, camera_stream(size=4)))


@pytest.fixture(scope='module')
def demonstrations(spec):
    """Go to where the block is: action j0 is its place, j1 a number of the state."""
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, 300)
    observations = np.zeros((300, 6), np.float32)
    observations[:, :2] = rng.normal(size=(300, 2))
    actions = np.stack([places, observations[:, 0]], axis=1)[:, None] * 0.1
    return Demonstrations(
        spec,
        observations,
        actions.astype(np.float32),
        np.arange(300),
        np.ones(300, bool),
        0,
        {'camera': show(places)},
    )


@pytest.fixture(scope='module')
def policy(spec, demonstrations):
    return pretrain(spec, demonstrations, QUICK)


def act(policy, places):
    """Return actions [N, 2] for the block at these places, from zero noise."""
    features = load_encoder(policy.spec.streams[1], policy.encoder_weights).encode(show(places))
    observations = np.concatenate([np.zeros((len(places), 2), np.float32), features], axis=1)
    noise = np.zeros((len(places), policy.spec.noise_size), np.float32)
    return policy.act(observations, noise)[:, 0]


def assert_same_eyes(one, other):
    assert one.encoder_weights.keys() == other.encoder_weights.keys()
    for name, value in one.encoder_weights.items():
        np.testing.assert_array_equal(value, other.encoder_weights[name], err_msg=name)


def test_cloning_learns_to_look(policy):
    places = np.linspace(-0.9, 0.9, 13)
    went = act(policy, places)
    assert np.corrcoef(went[:, 0], places)[0, 1] > 0.9
    assert np.polyfit(places, went[:, 0], 1)[0] > 0.04  # of 0.1, at the most likely action
    assert np.abs(np.polyfit(places, went[:, 1], 1)[0]) < 0.02  # what the camera does not tell


def test_an_interrupted_run_goes_on_where_it_stopped(spec, demonstrations, tmp_path, monkeypatch):
    from dipod_ros.learning import pretrain as module

    monkeypatch.setattr(module, 'STATE_EVERY', 10)
    config = replace(QUICK, steps=25)
    whole = pretrain(spec, demonstrations, config)

    monkeypatch.setattr(module, 'cfm_loss', counted(module.cfm_loss, 14))
    with pytest.raises(KeyboardInterrupt):
        pretrain(spec, demonstrations, config, state_file=tmp_path / 'state')
    monkeypatch.undo()
    resumed = pretrain(spec, demonstrations, config, state_file=tmp_path / 'state')
    assert_same_eyes(whole, resumed)
    np.testing.assert_array_equal(act(whole, [0.3]), act(resumed, [0.3]))


def counted(function, limit):
    calls = [0]

    def wrapper(*args):
        calls[0] += 1
        if calls[0] > limit:
            raise KeyboardInterrupt
        return function(*args)

    return wrapper


def test_students_and_updates_keep_the_eyes(policy, make_rollout, tmp_path):
    rng = np.random.default_rng(1)
    encoder = load_encoder(policy.spec.streams[1], policy.encoder_weights)
    features = encoder.encode(show(rng.uniform(-1, 1, 64)))
    observations = np.concatenate([rng.normal(size=(64, 2)), features], 1).astype(np.float32)
    student = distill(policy, observations, DistillConfig(train_steps=20, pairs=256, batch=64))
    assert_same_eyes(policy, student)
    student.save(tmp_path / 'student', kind='student')
    policy.save(tmp_path / 'initial')
    run = TrainingRun(
        tmp_path / 'run', tmp_path / 'initial', RunConfig(fresh=FreshConfig(), tensorboard=False)
    )
    before = {k: v.clone() for k, v in run.learner.policy.state_dict().items()}
    for _ in range(2):  # the first one fits the critic alone
        run.update(make_rollout(run.learner.policy, episodes=16, version=run.learner.version))
    changed = [k for k, v in run.learner.policy.state_dict().items() if (v != before[k]).any()]
    assert any(name.startswith('net.') for name in changed)
    assert_same_eyes(policy, load_policy(run.latest.path))
    assert_same_eyes(policy, load_policy(run.student.path))
    again = TrainingRun(
        tmp_path / 'run', tmp_path / 'initial', RunConfig(fresh=FreshConfig(), tensorboard=False)
    )
    assert again.resumed
    assert_same_eyes(policy, again.learner.policy)


def test_a_dataset_keeps_its_pictures(demonstrations, tmp_path):
    demonstrations.save(tmp_path / 'demos')
    again = Demonstrations.load(tmp_path / 'demos')
    np.testing.assert_array_equal(again.images['camera'], demonstrations.images['camera'])


@pytest.mark.parametrize(
    'images',
    [{}, {'camera': np.zeros((300, 24, 41, 3), np.uint8)}, {'camera': np.zeros((300, 24, 40, 3))}],
)
def test_pictures_that_do_not_fit_are_refused(demonstrations, images, tmp_path):
    with pytest.raises(UserError, match='do not fit the image streams'):
        replace(demonstrations, images=images).save(tmp_path / 'demos')


def test_too_many_pictures_are_refused_before_they_are_taken(spec, monkeypatch):
    monkeypatch.setattr(dataset, 'MAX_IMAGE_BYTES', 100 * 24 * 40 * 3)
    require_space(spec, 100)
    with pytest.raises(UserError, match='at most 0 MB can be used'):
        require_space(spec, 101)
    assert SMALL.shape == (24, 40, 3)
