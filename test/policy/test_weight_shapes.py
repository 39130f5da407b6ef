# SPDX-License-Identifier: Apache-2.0
"""What a spec asks for is known before anything of that size is made."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save as dump

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.policy import checkpoint as ckpt  # noqa: E402
from dipod_ros.policy import flow  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy, load_policy  # noqa: E402
from dipod_ros.policy.spec import NETWORKS, SpecError, Stream  # noqa: E402
from dipod_ros.policy.weight_shapes import (  # noqa: E402
    MAX_WEIGHTS_BYTES,
    policy_shapes,
    weight_bytes,
)

SMALL = [
    {'kind': 'residual_mlp', 'width': 16, 'depth': 1},
    {'kind': 'residual_mlp', 'width': 16, 'depth': 3},
    {'kind': 'dit', 'width': 16, 'depth': 1, 'heads': 2},
    {'kind': 'dit', 'width': 24, 'depth': 3, 'heads': 4},
    {'kind': 'unet', 'width': 8, 'depth': 1},
    {'kind': 'unet', 'width': 16, 'depth': 3},
]


@pytest.mark.parametrize('network', SMALL)
def test_the_shapes_are_those_of_the_network(make_spec, network):
    spec = make_spec(size=3, horizon=5, network=network)
    policy = FlowPolicy(spec)
    own = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    assert policy_shapes(spec) == own
    assert weight_bytes(spec) == sum(v.nbytes for v in policy.weights().values())


def test_every_kind_of_network_is_checked_here():
    assert {n['kind'] for n in SMALL} == set(NETWORKS)


def test_image_encoders_count_too():
    from eyes import make_camera_policy

    policy = make_camera_policy()
    assert weight_bytes(policy.spec) == sum(v.nbytes for v in policy.weights().values())


@pytest.fixture
def built(monkeypatch):
    """Return the list of networks whose building began."""
    begun, build = [], flow.build_network
    monkeypatch.setattr(flow, 'build_network', lambda *a: begun.append(a) or build(*a))
    return begun


@pytest.fixture
def saved(make_policy, tmp_path):
    """Return the folder of a small checkpoint."""
    make_policy().save(tmp_path / 'm')
    return tmp_path / 'm'


def edit_spec(folder, change):
    file = folder / ckpt.MANIFEST_FILE
    manifest = yaml.safe_load(file.read_text())
    change(manifest['spec'])
    manifest.pop('golden', None)
    file.write_text(yaml.safe_dump(manifest))


@pytest.mark.parametrize(
    ('network', 'word'),
    [
        ({'kind': 'residual_mlp', 'width': 8_000, 'depth': 2}, 'weight net.'),
        ({'kind': 'residual_mlp', 'width': 16, 'depth': 50}, 'missing'),
        ({'kind': 'dit', 'width': 1024, 'depth': 4, 'heads': 4}, 'missing'),
        ({'kind': 'unet', 'width': 64, 'depth': 6}, 'missing'),
        ({'kind': 'unet', 'width': 8, 'depth': 64}, f'at most {MAX_WEIGHTS_BYTES} are read'),
        ({'kind': 'residual_mlp', 'width': 16_000, 'depth': 64}, 'at most'),
        ({'kind': 'residual_mlp', 'width': 60_000, 'depth': 2}, 'width must be'),
        ({'kind': 'residual_mlp', 'width': 16, 'depth': 10**9}, 'depth must be'),
        ({'kind': 'dit', 'width': 4096, 'depth': 1, 'heads': 4096}, 'heads must be'),
    ],
)
def test_a_network_that_its_weights_do_not_hold_is_never_built(saved, built, network, word):
    edit_spec(saved, lambda spec: spec.update(network=network))
    with pytest.raises(ckpt.CheckpointError, match=word) as error:
        load_policy(saved)
    assert built == [] and '\n' not in str(error.value)


def test_a_network_that_its_weights_hold_is_built(saved, built):
    load_policy(saved)
    assert len(built) == 1


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        (lambda s: s.update(horizon=10**9), 'horizon must be within'),
        (lambda s: s['streams'].append(stream(10**12)), 'size must be within'),
        (lambda s: s['streams'].append(stream(60_000)), 'weight n'),
    ],
)
def test_an_observation_that_the_weights_do_not_hold_is_never_made(saved, built, change, word):
    edit_spec(saved, change)
    with pytest.raises(ckpt.CheckpointError, match=word):
        load_policy(saved)
    assert built == []


def stream(size):
    return Stream('more', 'vector', 1, 'more').to_dict() | {'size': size}


def test_weights_that_are_more_than_the_network_can_hold_are_not_read(saved):
    with open(saved / ckpt.WEIGHTS_FILE, 'ab') as handle:
        handle.truncate(1 << 30)  # sparse: takes no space
    with pytest.raises(ckpt.CheckpointError, match='larger than it can be'):
        ckpt.load(saved)


def test_an_unknown_weight_is_refused_before_anything_is_built(saved, built, make_policy):
    payload = dump(make_policy().weights() | {'net.extra': np.zeros(1, np.float32)})
    (saved / ckpt.WEIGHTS_FILE).write_bytes(payload)
    file = saved / ckpt.MANIFEST_FILE
    manifest = yaml.safe_load(file.read_text()) | {'sha256': hashlib.sha256(payload).hexdigest()}
    file.write_text(yaml.safe_dump(manifest))
    built.clear()
    with pytest.raises(ckpt.CheckpointError, match='unknown .*net.extra'):
        load_policy(saved)
    assert built == []


def test_a_new_network_too_large_for_any_checkpoint_is_not_built(make_spec, built):
    spec = make_spec(network={'kind': 'dit', 'width': 8192, 'depth': 8, 'heads': 8})
    with pytest.raises(UserError, match='narrower or less deep'):
        FlowPolicy(spec)
    assert built == []
    with pytest.raises(SpecError, match='depth'):
        replace(spec, network={'kind': 'dit', 'width': 8, 'depth': True, 'heads': 8})


@pytest.mark.parametrize(
    'encoder',
    [
        {'channels': (100_000, 8), 'strides': (1, 1)},
        {'channels': (8, 8), 'strides': (1, 1), 'keypoints': 10_000},
        {'hidden': 10**9},
    ],
)
def test_an_encoder_of_few_weights_and_huge_layers_is_refused(encoder):
    from dipod_ros.policy.image import ImageSettings

    with pytest.raises(UserError, match='fewer channels or keypoints, or a smaller picture'):
        ImageSettings(512, 512, encoder={'kind': 'keypoints'} | encoder)
    ImageSettings(512, 512)
