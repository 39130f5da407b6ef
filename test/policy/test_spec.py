# SPDX-License-Identifier: Apache-2.0
"""The policy specification refuses what cannot work, and says why in one line."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import yaml

from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import PolicySpec, SamplerSpec, SpecError, Stream


def test_a_spec_survives_its_manifest(make_spec):
    spec = make_spec(sampler=SamplerSpec('sde', 7, 0.25))
    text = yaml.safe_dump(spec.to_dict())
    again = PolicySpec.from_dict(yaml.safe_load(text))
    assert again.to_dict() == spec.to_dict()
    assert again.sampler == spec.sampler and again.streams == spec.streams
    np.testing.assert_array_equal(again.limits.acceleration, spec.limits.acceleration)


def test_sizes_follow_from_streams_joints_and_sampler(make_spec):
    spec = make_spec(size=2, horizon=3)
    assert (spec.observation_size, spec.action_size, spec.noise_size) == (5, 6, 6)
    assert make_spec(size=2, horizon=3, sampler=SamplerSpec('sde', 4)).noise_size == 24
    assert make_spec(size=2, horizon=3, sampler=SamplerSpec('chain', 4)).noise_size == 30


def test_the_noise_of_a_chain_is_in_the_manifest_and_older_manifests_have_none(make_spec):
    spec = make_spec(sampler=SamplerSpec('chain', 4, noise_std=0.2))
    data = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
    assert PolicySpec.from_dict(data).sampler == spec.sampler
    del data['sampler']['noise_std']
    assert PolicySpec.from_dict(data).sampler == SamplerSpec('chain', 4, noise_std=0.15)


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        ({'source': 'camera', 'size': 3}, 'source'),
        ({'source': 'vector', 'size': 0}, 'size'),
        ({'source': 'vector', 'size': 2, 'max_age_s': 0.0}, 'max_age_s'),
        ({'source': 'vector', 'size': 2, 'max_age_s': float('nan')}, 'max_age_s'),
        ({'source': 'vector', 'size': 2, 'max_age_s': float('inf')}, 'at most 60 for source vec'),
        ({'source': 'joint_position', 'size': 2, 'max_age_s': 10.1}, 'at most 10 for source joint'),
        ({'source': 'point', 'size': 2}, 'size 3'),
        ({'source': 'joint_position', 'size': 2, 'topic': ''}, 'topic'),
        ({'source': 'vector', 'size': 2, 'topic': 'goal point!'}, 'no name of a ROS topic'),
    ],
)
def test_a_stream_that_cannot_be_read_is_refused(options, word):
    with pytest.raises(SpecError, match=word):
        Stream(**({'name': 's', 'topic': 't'} | options))


@pytest.mark.parametrize('period_s', [0.0, -1.0, 11.0, float('inf'), float('nan')])
def test_a_control_period_that_cannot_be_is_refused(make_spec, period_s):
    with pytest.raises(SpecError, match='control_period_s above 0 and at most 10'):
        make_spec(control_period_s=period_s)


def test_the_command_needs_no_topic():
    assert Stream('command', 'command', 2).topic == ''


@pytest.mark.parametrize(
    'options',
    [
        {'solver': 'heun'},
        {'steps': 0},
        {'steps': 1001},
        {'solver': 'sde', 'sde_scale': -0.1},
        {'solver': 'sde', 'sde_scale': 1.1},
        {'solver': 'chain', 'noise_std': 0.0},
        {'solver': 'chain', 'noise_std': 1.1},
        {'solver': 'chain', 'noise_std': float('nan')},
    ],
)
def test_a_sampler_that_does_not_exist_is_refused(options):
    with pytest.raises(SpecError, match=list(options)[-1]):
        SamplerSpec(**options)


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'action': 'torque'}, 'joint_delta'),
        ({'network': {'kind': 'transformer'}}, 'residual_mlp'),
        ({'network': {}}, 'residual_mlp'),
        ({'network': {'kind': 'residual_mlp'}}, 'width'),
        ({'network': {'kind': 'residual_mlp', 'width': 0, 'depth': 2}}, 'width'),
        ({'network': {'kind': 'residual_mlp', 'width': 'wide', 'depth': 2}}, 'width'),
        ({'horizon': 0}, 'horizon'),
        ({'control_period_s': 0.0}, 'control_period_s'),
        ({'control_period_s': float('nan')}, 'control_period_s'),
        ({'joints': ('j0', 'j0')}, 'distinct'),
        ({'joints': ('j1', 'j0')}, 'order'),
        ({'streams': ()}, 'stream'),
        ({'streams': (Stream('q', 'joint_position', 7, 'joint_states'),)}, '7 for 2 joints'),
        ({'streams': (Stream('q', 'command', 2), Stream('q', 'point', 3, 'goal'))}, 'twice'),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(make_spec, changes, word):
    with pytest.raises(SpecError, match=word) as error:
        make_spec(size=2, **changes)
    assert '\n' not in str(error.value)


def test_every_missing_field_is_named(make_spec):
    whole = make_spec().to_dict()
    for name in set(whole) - {'units'}:
        data = {k: v for k, v in whole.items() if k != name}
        with pytest.raises(SpecError, match=name):
            PolicySpec.from_dict(data)


@pytest.mark.parametrize('path', [('limits',), ('sampler', 'solver'), ('streams', 0, 'source')])
def test_a_missing_inner_field_is_an_error_of_one_line(make_spec, path):
    data = copy.deepcopy(make_spec().to_dict())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(SpecError, match=str(path[-1])):
        PolicySpec.from_dict(data)


@pytest.mark.parametrize('value', [None, 3, 'text', [], {}, float('nan'), float('inf'), [None]])
def test_rubbish_in_any_field_is_a_user_error(make_spec, value):
    from dipod_ros.errors import UserError

    whole = make_spec().to_dict()
    for name in ('joints', 'limits', 'streams', 'horizon', 'network', 'sampler'):
        if whole[name] == value or (name == 'horizon' and value == 3):
            continue
        with pytest.raises(UserError) as error:
            PolicySpec.from_dict(whole | {name: value})
        assert '\n' not in str(error.value)
    with pytest.raises(UserError):
        PolicySpec.from_dict(value)


def test_a_policy_fits_the_robot_it_was_made_for(make_spec):
    spec = make_spec()
    assert spec.mismatch(spec.limits, 0.04) is None
    # Joint order is the robot's own business: values are mapped by name.
    turned = JointLimits(
        spec.joints[::-1],
        *(getattr(spec.limits, n)[::-1] for n in ('lower', 'upper', 'velocity', 'acceleration')),
    )
    assert spec.mismatch(turned, 0.04) is None


def test_a_policy_for_another_robot_is_told_why(make_spec):
    spec = make_spec()
    other = replace(spec.limits, joints=('j0', 'elbow'))
    reason = spec.mismatch(other, 0.04)
    assert 'j1' in reason and 'elbow' in reason
    assert '0.02' in spec.mismatch(spec.limits, 0.02)
    apart = replace(spec.limits, lower=np.array([-2.0, 1.6]), upper=np.array([1.5, 3.0]))
    reason = spec.mismatch(apart, 0.04)
    assert 'j1' in reason and 'j0' not in reason


def test_overlap_is_judged_by_name_and_not_by_position(make_limits):
    """The second joint of the checkpoint is the first of the robot."""
    limits = JointLimits(
        ('a', 'b'), np.array([0.0, -9.0]), np.array([1.0, -8.0]), np.ones(2), np.ones(2)
    )
    turned = JointLimits(
        ('b', 'a'), np.array([-9.0, 0.0]), np.array([-8.0, 1.0]), np.ones(2), np.ones(2)
    )
    spec = PolicySpec(
        task='t',
        robot='r',
        joints=('a', 'b'),
        limits=limits,
        streams=(Stream('c', 'command', 2),),
        horizon=1,
        control_period_s=0.04,
    )
    assert spec.mismatch(turned, 0.04) is None
    wrong = replace(turned, joints=('a', 'b'))
    assert 'do not overlap' in spec.mismatch(wrong, 0.04)
