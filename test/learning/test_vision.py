# SPDX-License-Identifier: Apache-2.0
"""Encoders learn with the flow in behaviour cloning, and stay as they are in all that follows."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eyes import SMALL, camera_stream  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms import gaussian_ppo  # noqa: E402
from dipod_ros.learning.algorithms.dppo import DppoConfig  # noqa: E402
from dipod_ros.learning.algorithms.gaussian_ppo import GaussianPpoConfig  # noqa: E402
from dipod_ros.learning.algorithms.reinflow import ReinFlowConfig  # noqa: E402
from dipod_ros.learning.demonstrations import dataset  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations, require_space  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.locating import LocateConfig, locate  # noqa: E402
from dipod_ros.learning.pretrain import PretrainConfig, pretrain  # noqa: E402
from dipod_ros.learning.run import RunConfig, TrainingRun  # noqa: E402
from dipod_ros.learning.students.distill import DistillConfig, distill  # noqa: E402
from dipod_ros.learning.students.fresh_student import FreshConfig  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.policy.spec import Stream  # noqa: E402
from dipod_ros.policy.vision import encoder_weights, load_encoder  # noqa: E402

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
        {'block': np.stack([places, -places], axis=1).astype(np.float32)},
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


LOOK = LocateConfig(steps=200, batch=32, ema=0.98, sharpness=0, held_out=0.2)


@pytest.fixture(scope='module')
def taught(spec, demonstrations):
    return locate(spec, demonstrations, LOOK)


def test_an_encoder_is_taught_where_things_are(spec, demonstrations, taught):
    _, untaught = locate(spec, demonstrations, replace(LOOK, steps=1))
    _, located = taught
    assert located.median['block'] < 0.05 < 0.3 < untaught.median['block']
    assert located.median['block'] <= located.rms['block'] and 'block: median' in str(located)


def test_a_taught_encoder_stays_as_it_is_and_is_acted_on(spec, demonstrations, taught):
    encoders, _ = taught
    before = encoder_weights(encoders)
    policy = pretrain(spec, demonstrations, QUICK, encoders=encoders)
    for name, value in policy.encoder_weights.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    places = np.linspace(-0.9, 0.9, 13)
    assert np.corrcoef(act(policy, places)[:, 0], places)[0, 1] > 0.98
    features = load_encoder(spec.streams[1], policy.encoder_weights).encode(show(places))
    assert 0.2 < features.std() < 3  # what a policy without a normaliser for it can take


def test_teaching_goes_on_where_it_stopped(spec, demonstrations, tmp_path, monkeypatch):
    from dipod_ros.learning import locating as module

    monkeypatch.setattr(module, 'STATE_EVERY', 10)
    config, file = replace(LOOK, steps=25), tmp_path / 'state'
    whole, _ = locate(spec, demonstrations, config)
    told = []

    def stop(done, loss):
        told.append(done)
        raise KeyboardInterrupt

    with monkeypatch.context() as at_20:
        at_20.setattr(module, 'TELL_EVERY', 20)
        with pytest.raises(KeyboardInterrupt):
            locate(spec, demonstrations, config, state_file=file, progress=stop)
    assert told == [20] and file.is_file()
    resumed, _ = locate(spec, demonstrations, config, state_file=file)
    again, _ = locate(spec, demonstrations, config, state_file=file)  # all done: kept
    expected = encoder_weights(whole)
    for encoders in (resumed, again):
        for name, value in encoder_weights(encoders).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_nothing_is_taught_without_pictures_or_what_they_show(spec, demonstrations, make_spec):
    with pytest.raises(UserError, match='give --encoder-steps 0'):
        locate(spec, replace(demonstrations, privileged={}), LOOK)
    with pytest.raises(UserError, match='no image stream'):
        locate(make_spec(), demonstrations, LOOK)
    with pytest.raises(UserError, match='held_out must be between'):
        LocateConfig(held_out=1.0)
    with pytest.raises(UserError, match='sharpness must be at least 0'):
        LocateConfig(sharpness=-1)


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
    run.close()
    again = TrainingRun(
        tmp_path / 'run', tmp_path / 'initial', RunConfig(fresh=FreshConfig(), tensorboard=False)
    )
    assert again.resumed
    assert_same_eyes(policy, again.learner.policy)


@pytest.mark.parametrize('config', [DppoConfig(epochs=2), ReinFlowConfig(epochs=2)], ids=str)
def test_other_methods_keep_the_eyes_too(policy, make_rollout, tmp_path, config):
    policy.save(tmp_path / 'initial')
    learner = LearnerConfig(algorithm=config, critic_warmup_updates=0)
    run = TrainingRun(
        tmp_path / 'run', tmp_path / 'initial', RunConfig(learner=learner, tensorboard=False)
    )
    assert_same_eyes(policy, run.learner.policy)  # with which it acts
    run.update(make_rollout(run.learner.policy, episodes=16, version=run.learner.version))
    assert run.latest.version == 1
    assert_same_eyes(policy, load_policy(run.latest.path))


@pytest.mark.parametrize(
    ('config', 'text'),
    [(GaussianPpoConfig(), 'a Gaussian policy'), (DppoConfig(fine_tuned_steps=2), 'two networks')],
    ids=['gaussian', 'late'],
)
def test_what_could_not_be_kept_is_not_begun(policy, tmp_path, config, text, monkeypatch):
    short = partial(gaussian_ppo.gaussian_start, steps=3)
    monkeypatch.setattr(gaussian_ppo, 'gaussian_start', short)
    policy.save(tmp_path / 'initial')
    learner = LearnerConfig(algorithm=config)
    with pytest.raises(UserError, match=text):
        TrainingRun(tmp_path / 'run', tmp_path / 'initial', RunConfig(learner=learner))
    assert not (tmp_path / 'run').exists()


def test_a_dataset_keeps_its_pictures(demonstrations, tmp_path):
    demonstrations.save(tmp_path / 'demos')
    again = Demonstrations.load(tmp_path / 'demos')
    np.testing.assert_array_equal(again.images['camera'], demonstrations.images['camera'])
    np.testing.assert_array_equal(again.privileged['block'], demonstrations.privileged['block'])


@pytest.mark.parametrize('values', [np.zeros(300), np.zeros((299, 2)), np.full((300, 2), np.nan)])
def test_privileged_data_that_do_not_fit_are_refused(demonstrations, values, tmp_path):
    with pytest.raises(UserError, match='privileged block has shape'):
        replace(demonstrations, privileged={'block': values}).save(tmp_path / 'demos')


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
