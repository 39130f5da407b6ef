# SPDX-License-Identifier: Apache-2.0
"""Image streams in specs and checkpoints, and the encoders that they name."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eyes import FINE, SMALL, camera_stream, make_camera_policy, make_camera_spec  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.policy import checkpoint as ckpt  # noqa: E402
from dipod_ros.policy.export import export_encoder  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy, load_policy  # noqa: E402
from dipod_ros.policy.image import ImageSettings, encoder_shapes, golden_image  # noqa: E402
from dipod_ros.policy.spec import PolicySpec, SpecError, Stream  # noqa: E402
from dipod_ros.policy.vision import KeypointEncoder, load_encoder  # noqa: E402


def test_a_spec_with_a_camera_survives_yaml():
    spec = make_camera_spec()
    again = PolicySpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict())))
    assert again.streams == spec.streams
    assert again.observation_size == 3 + 5 + 3
    assert [(s.name, place) for s, place in again.images] == [('camera', slice(3, 8))]


def test_a_spec_without_a_camera_says_nothing_of_images():
    stream = Stream('goal', 'point', 3, 'goal')
    assert 'image' not in stream.to_dict()
    assert Stream.from_dict(stream.to_dict()) == stream


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'width': 4}, 'image width must be within 16..512'),
        ({'height': 5000}, 'image height must be within'),
        ({'encoding': '16UC1'}, "encoding '16UC1' is not one of"),
        ({'encoder': {'kind': 'resnet'}}, "encoder 'resnet' is not one of"),
        ({'encoder': {'kind': 'keypoints', 'depth': 3}}, 'has no setting'),
        ({'encoder': {'kind': 'keypoints', 'channels': (8,)}}, 'channels must be 2 to 8'),
        ({'encoder': {'kind': 'keypoints', 'channels': (8, 9)}}, 'multiples of 8'),
        ({'encoder': {'kind': 'keypoints', 'keypoints': 0}}, 'keypoints must be at least 1'),
        ({'encoder': {'kind': 'keypoints', 'hidden': -1}}, 'hidden must be at least 0'),
        ({'encoder': {'kind': 'keypoints', 'strides': (2, 1)}}, 'strides must be 3 numbers'),
        ({'encoder': {'kind': 'keypoints', 'strides': (2, 3, 1)}}, r'numbers of \[1, 2\]'),
    ],
)
def test_wrong_settings_are_named(changes, text):
    with pytest.raises(UserError, match=text):
        ImageSettings(**changes)


def test_an_image_stream_needs_its_settings_and_no_other_stream_has_them():
    with pytest.raises(SpecError, match='needs the settings of its image'):
        camera_stream(image=None)
    with pytest.raises(SpecError, match='needs the settings of its image'):
        Stream('goal', 'point', 3, 'goal', image=SMALL)
    with pytest.raises(SpecError, match='needs a topic'):
        camera_stream(topic='')
    with pytest.raises(SpecError, match='without a dot'):
        camera_stream(name='front.left')


@pytest.mark.parametrize('encoding', ['rgb8', 'mono8'])
@pytest.mark.parametrize(
    'changes',
    [
        {'channels': (8, 8)},
        {'channels': (16, 24, 8)},
        {'channels': (8, 16), 'strides': (2, 1), 'hidden': 12},
        {'channels': (8, 8, 8), 'strides': (1, 2, 2)},
    ],
)
def test_the_shapes_foretold_are_those_of_the_network(encoding, changes):
    settings = ImageSettings(33, 50, encoding, {'kind': 'keypoints', 'keypoints': 3, **changes})
    stream = camera_stream(settings, size=7)
    encoder = KeypointEncoder(stream)
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == encoder_shapes(stream)
    assert encoder.encode(golden_image(settings)[None]).shape == (1, 7)


def test_an_encoder_from_before_strides_and_hidden_layers_is_what_it_was():
    old = {'kind': 'keypoints', 'channels': [8, 8, 8], 'keypoints': 2}
    data = {'width': 40, 'height': 24, 'encoding': 'rgb8', 'encoder': old}
    settings = ImageSettings.from_dict(data)
    assert settings.encoder['strides'] == (2, 2, 1) and settings.encoder['hidden'] == 0
    names = encoder_shapes(camera_stream(settings)).keys()
    assert not any(name.startswith('hidden') for name in names)
    encoder = KeypointEncoder(camera_stream(settings))
    assert len(encoder.grid) == 6 * 10
    assert ImageSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize('strides', [(2, 2), (2, 1)])
def test_keypoints_follow_what_they_look_at(strides):
    """The place of a map that likes red is where the red block is."""
    settings = ImageSettings(
        64,
        64,
        encoder={'kind': 'keypoints', 'channels': (8, 8), 'keypoints': 1, 'strides': strides},
    )
    encoder = KeypointEncoder(camera_stream(settings))
    with torch.no_grad():
        for convolution in encoder.convolutions:
            convolution.weight.zero_()
            convolution.bias.zero_()
            side = convolution.weight.shape[-1] // 2
            convolution.weight[0, 0, side, side] = 5.0
        encoder.maps.weight.zero_()
        encoder.maps.weight[0, 0] = 5.0
    places = []
    for row, column in ((12, 12), (12, 44), (44, 12)):
        picture = np.zeros((1, 64, 64, 3), np.uint8)
        picture[0, row : row + 8, column : column + 8, 0] = 255
        places.append(encoder.keypoints(torch.from_numpy(picture))[0, :2].detach().numpy())
    for place, (row, column) in zip(places, ((12, 12), (12, 44), (44, 12)), strict=True):
        expected = (np.array([column, row]) + 4) / 32 - 1
        np.testing.assert_allclose(place, expected, atol=0.1)


def test_whitened_features_have_unit_scale():
    encoder = KeypointEncoder(camera_stream())
    rng = np.random.default_rng(0)
    pictures = np.stack([golden_image(SMALL, int(s)) for s in rng.integers(1000, size=50)])
    encoder.whiten(torch.from_numpy(pictures))
    features = encoder.encode(pictures)
    np.testing.assert_allclose(features.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(features.std(0), 1, atol=0.1)


@pytest.mark.parametrize('image', [SMALL, FINE], ids=['small', 'fine'])
def test_sharp_maps_have_places_before_any_training(image):
    torch.manual_seed(0)
    encoder = KeypointEncoder(camera_stream(image))
    pictures = torch.from_numpy(np.stack([golden_image(SMALL, seed) for seed in range(40)]))
    places = slice(0, 2 * image.encoder['keypoints'])

    def spread():
        return encoder.keypoints(pictures)[:, places].std(0).min().item()

    before = spread()
    encoder.sharpen(pictures, 2.5)
    assert spread() > 2 * before and spread() > 0.1  # of the picture from -1 to 1
    encoder.whiten(pictures)
    np.testing.assert_allclose(encoder.encode(pictures.numpy()).std(0), 1, atol=0.2)


def test_a_checkpoint_carries_its_encoder_through_everything(tmp_path):
    policy = make_camera_policy()
    manifest = policy.save(tmp_path / 'one')
    loaded = load_policy(tmp_path / 'one')
    assert loaded.encoder_weights.keys() == policy.encoder_weights.keys()
    for name, value in policy.encoder_weights.items():
        np.testing.assert_array_equal(loaded.encoder_weights[name], value)
    stream = policy.spec.streams[1]
    features = load_encoder(stream, loaded.encoder_weights).encode(golden_image(SMALL)[None])[0]
    np.testing.assert_allclose(manifest.golden.features['camera'], features, atol=1e-6)
    for other in (loaded.clone(), loaded.with_sampler(policy.spec.sampler)):
        again = other.save(tmp_path / 'other', overwrite=True)
        assert again.sha256 == manifest.sha256
    # Learning works on what the network has; the encoder is no part of it.
    assert not any(name.startswith('encoder') for name, _ in loaded.named_parameters())


@pytest.mark.parametrize(
    ('harm', 'text'),
    [
        (
            lambda w: w.pop('encoder.camera.head.bias'),
            r"\['encoder.camera.head.bias'\] are missing",
        ),
        (
            lambda w: w.update({'encoder.camera.extra': np.zeros(2, np.float32)}),
            r"\['encoder.camera.extra'\] are unknown",
        ),
        (
            lambda w: w.update({'encoder.camera.head.bias': np.zeros(2, np.float32)}),
            r'has shape \(2,\), expected \(5,\)',
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, harm, text):
    policy = make_camera_policy()
    weights = policy.weights()
    harm(weights)
    with pytest.raises(ckpt.CheckpointError, match=text):
        ckpt.save(tmp_path / 'x', policy.spec, weights, kind='flow', golden=policy.golden())
    with pytest.raises(ckpt.CheckpointError, match=text):
        FlowPolicy(policy.spec).load_weights(weights)


def test_a_policy_without_its_encoder_cannot_be_saved(tmp_path):
    policy = FlowPolicy(make_camera_spec())
    with pytest.raises(UserError, match='are missing'):
        policy.save(tmp_path / 'blind')
    assert not (tmp_path / 'blind').exists()


def test_golden_features_are_part_of_the_golden_values(tmp_path):
    policy = make_camera_policy()
    golden = replace(policy.golden(), features={})
    with pytest.raises(UserError, match=r"golden features .* \['camera'\]"):
        ckpt.save(tmp_path / 'x', policy.spec, policy.weights(), kind='flow', golden=golden)


def test_the_golden_image_never_changes():
    image = golden_image(SMALL)
    assert image.shape == (24, 40, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [int(v) for v in np.random.PCG64(0).random_raw(3) >> 56]
    assert image[:8, :8].std(axis=(0, 1)).max() == 0 and image.std() > 40


@pytest.mark.parametrize('changes', [{}, {'strides': (2, 1), 'hidden': 16}])
def test_the_exported_encoder_agrees_with_torch(changes):
    ort = pytest.importorskip('onnxruntime')
    onnx = pytest.importorskip('onnx')
    from dipod_ros.policy.image import weights_of
    from dipod_ros.serving.engines.graphs import put_weights

    image = replace(SMALL, encoder={**SMALL.encoder, 'strides': (), **changes})
    policy = make_camera_policy(spec=make_camera_spec(image=image))
    stream = policy.spec.streams[1]
    model = onnx.load_model_from_string(export_encoder(stream))
    put_weights(model, weights_of(policy.encoder_weights, 'camera'))
    session = ort.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    (given,) = session.get_inputs()
    assert (given.shape, given.type) == ([1, 24, 40, 3], 'tensor(uint8)')
    encoder = load_encoder(stream, policy.encoder_weights)
    for seed in range(5):
        picture = golden_image(SMALL, seed)[None]
        np.testing.assert_allclose(
            session.run(None, {'image': picture})[0], encoder.encode(picture), atol=1e-5
        )
