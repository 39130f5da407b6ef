# SPDX-License-Identifier: Apache-2.0
"""Start policies of the external benchmarks: what is shown, cloned, kept and refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.starts import CubeRecipe, external_spec, make_start
from dipod_ros.learning.bench.starts_gait import GaitRecipe, collect_gait, train_expert
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.evaluate import evaluate_policy
from dipod_ros.learning.pretrain import PretrainConfig
from dipod_ros.policy.flow import load_policy
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.sim.external.registry import make_env

SMALL = GaitRecipe(expert_steps=4096, episodes=6)
CLONING = PretrainConfig(steps=40, batch=64)


def noisy(observations, rng):
    """Act at random, but as a function of what is seen, as an expert does."""
    lean = np.tanh(observations[:, :3])
    return np.clip(lean + 0.3 * rng.standard_normal((len(observations), 3)), -1, 1)


def needs_sb3():
    pytest.importorskip('stable_baselines3', reason='the expert gait is trained by it')
    pytest.importorskip('imageio', reason='Gymnasium makes no MuJoCo env without it')


@pytest.fixture(scope='module')
def expert():
    """Return the expert of SMALL and seed 0, trained once."""
    needs_sb3()
    return train_expert('Hopper-v5', SMALL.expert_steps, seed=0)


def test_chunks_of_a_gait_replay_to_the_same_episode():
    shown, returns = collect_gait('Hopper-v5', noisy, episodes=5, horizon=4, seed=3)
    env = make_env('hopper', 5, seed=3)
    total = np.zeros(5)
    for k in range(np.bincount(shown.episodes).max()):
        actions = np.zeros((5, 4, 3), dtype=np.float32)
        seen = env.observe()
        for e in range(5):
            rows = np.flatnonzero(shown.episodes == e)
            if k < len(rows):
                np.testing.assert_array_equal(seen[e], shown.observations[rows[k]])
                actions[e] = shown.actions[rows[k]]
        active = np.array([k < (shown.episodes == e).sum() for e in range(5)])
        total += env.step(actions)[1] * active
    # What is dropped is less than a chunk: three steps of the reward at most.
    assert np.all(returns - total < 12) and np.all(np.abs(returns) > 1)
    assert np.abs(shown.actions).max() <= 1


def test_another_seed_shows_something_else():
    one, _ = collect_gait('Hopper-v5', noisy, 2, 4, seed=0)
    again, _ = collect_gait('Hopper-v5', noisy, 2, 4, seed=0)
    two, _ = collect_gait('Hopper-v5', noisy, 2, 4, seed=1)
    np.testing.assert_array_equal(one.actions, again.actions)
    assert not np.array_equal(one.actions[:3], two.actions[:3])


def test_raw_actions_drive_no_robot():
    spec = external_spec(make_env('hopper', 1, seed=0))
    assert spec.action == 'raw'
    # A robot with the very same joints, limits and rate, so that nothing else is in the way.
    said = spec.mismatch(spec.limits, spec.control_period_s)
    assert 'benchmark environment gymnasium/Hopper-v5' in said and 'no robot' in said
    assert replace(spec, action='joint_delta').mismatch(spec.limits, spec.control_period_s) is None
    arm = JointLimits(('a',), [-1], [1], [1], [1])
    assert 'benchmark' in spec.mismatch(arm, 0.04)


def test_raw_survives_the_manifest_and_other_kinds_are_refused():
    spec = external_spec(make_env('walker2d', 1, seed=0))
    assert PolicySpec.from_dict(spec.to_dict()).action == 'raw'
    with pytest.raises(UserError, match="'torque' is not one of"):
        replace(spec, action='torque')


def test_start_of_a_gait_is_made_once_and_the_same_again(tmp_path):
    needs_sb3()
    options = {'recipe': SMALL, 'config': CLONING, 'episodes': 6}
    said = []
    made = make_start('hopper', tmp_path / 'a', **options, say=said.append)
    policy = load_policy(made)
    assert policy.spec.action == 'raw' and policy.spec.task == 'hopper'
    assert '6 demonstrations' in said[0] and 'return' in said[1]
    manifest = (made / 'manifest.yaml').read_bytes()

    # Found again, not made again.
    assert make_start('hopper', tmp_path / 'a', **options) == made
    assert (made / 'manifest.yaml').read_bytes() == manifest
    with pytest.raises(UserError, match='other settings'):
        make_start('hopper', tmp_path / 'a', seed=1, **options)

    # One that an older release made, before cloning had all of today's settings, is found as well.
    text = manifest.decode()
    assert ', samples: 1' in text
    (made / 'manifest.yaml').write_text(text.replace(', samples: 1', ''))
    assert make_start('hopper', tmp_path / 'a', **options) == made
    with pytest.raises(UserError, match='other settings'):
        other = replace(CLONING, samples=2)
        make_start('hopper', tmp_path / 'a', **{**options, 'config': other})

    # The same settings elsewhere give the same bytes, the measurement in the manifest included:
    # expert, demonstrations, cloning and evaluation draw from nothing but the seed.
    other = make_start('hopper', tmp_path / 'b', **options)
    assert (other / 'manifest.yaml').read_bytes() == manifest

    # The manifest says what an evaluation gives.
    rate = evaluate_policy(make_env('hopper', 6, 0), policy, episodes=6, seed=1)
    assert f'return_mean: {rate.return_mean:.4f}'[:-3] in manifest.decode()


def test_interrupted_start_keeps_its_demonstrations(tmp_path, monkeypatch, expert):
    import dipod_ros.learning.bench.starts as starts

    def killed(*args, **options):
        raise KeyboardInterrupt

    options = {'recipe': SMALL, 'config': CLONING, 'episodes': 6}
    with monkeypatch.context() as patch:
        patch.setattr(starts, 'train_expert', lambda *_: expert)
        patch.setattr(starts, 'pretrain', killed)
        with pytest.raises(KeyboardInterrupt):
            make_start('hopper', tmp_path, **options)
    assert not (tmp_path / 'flow').exists()
    data = Demonstrations.load(tmp_path / 'demonstrations.safetensors')
    assert data.spec.action == 'raw' and len(data.success) == 6

    with monkeypatch.context() as patch:
        patch.setattr(starts, 'train_expert', killed)  # not needed any more
        made = make_start('hopper', tmp_path, **options)
    assert (made / 'manifest.yaml').is_file()

    # Demonstrations made in another way are not taken for these.
    note = tmp_path / 'demonstrations.json'
    told = json.loads(note.read_text())
    told['how']['recipe']['expert_steps'] = 1
    note.write_text(json.dumps(told))
    made.rename(tmp_path / 'old')
    with monkeypatch.context() as patch:
        patch.setattr(starts, 'train_expert', killed)
        with pytest.raises(KeyboardInterrupt):
            make_start('hopper', tmp_path, **options)


def test_expert_is_better_than_chance(expert):
    _, trained = collect_gait('Hopper-v5', expert, 40, 4, seed=5)

    def chance(observations, rng):
        return np.clip(rng.standard_normal((len(observations), 3)), -1, 1)

    _, untrained = collect_gait('Hopper-v5', chance, 40, 4, seed=5)
    assert trained.mean() > 1.5 * untrained.mean()


def test_start_of_the_cube(tmp_path):
    pytest.importorskip('ogbench', reason='the cube task is OGBench')
    made = make_start(
        'cube_single', tmp_path, recipe=CubeRecipe(episodes=2), config=CLONING, episodes=2
    )
    policy = load_policy(made)
    assert policy.spec.observation_size == 29 and policy.spec.horizon == 5
    assert policy.spec.joints[-1] == 'gripper'


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(UserError, match='no start to make'):
        make_start('pillar_reach', tmp_path)
    with pytest.raises(UserError, match='at least 1'):
        GaitRecipe(expert_steps=0)
    with pytest.raises(UserError, match='at least 1'):
        CubeRecipe(episodes=0)
