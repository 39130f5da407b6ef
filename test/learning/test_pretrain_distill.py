# SPDX-License-Identifier: Apache-2.0
"""Cloning two ways around an obstacle, and teaching it to a student of one step."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning import pretrain as pretrain_module  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.learning.pretrain import PretrainConfig, pretrain  # noqa: E402
from dipod_ros.learning.students.distill import DistillConfig, distill  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

LEFT_OR_RIGHT_RAD, SPREAD_RAD = 0.1, 0.015


@pytest.fixture(scope='module')
def two_ways(make_spec):
    """Return demonstrations that go left or right at random, forward by what was observed."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (2000, 1)).astype(np.float32)
    side = rng.choice([-1, 1], 2000) * LEFT_OR_RIGHT_RAD
    actions = np.column_stack([side, 0.1 * observations[:, 0]])
    actions = (actions + SPREAD_RAD * rng.normal(size=(2000, 2))).astype(np.float32)
    return Demonstrations(
        spec=make_spec(observed=1, width=64, depth=3, sampler=SamplerSpec('midpoint', 10)),
        observations=observations,
        actions=actions[:, None],
        episodes=np.arange(2000, dtype=np.int32),
        success=np.ones(2000, dtype=bool),
        seed=0,
    )


@pytest.fixture(scope='module')
def teacher(two_ways):
    return pretrain(
        two_ways.spec, two_ways, PretrainConfig(steps=1000, batch=256, learning_rate=5e-3)
    )


def act(policy, sampler=None, count=1000):
    rng = np.random.default_rng(1)
    observations = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    noise = rng.normal(size=(count, policy.spec.noise_size)).astype(np.float32)
    return observations[:, 0], policy.act(observations, noise, sampler)[:, 0]


def assert_two_ways(actions, between=0.06):
    side = actions[:, 0]
    assert 0.4 < (side > 0).mean() < 0.6
    # Hardly anything in between, where the obstacle is.
    assert (np.abs(side) < 0.5 * LEFT_OR_RIGHT_RAD).mean() < between
    for mode in (side[side > 0], -side[side < 0]):
        assert np.median(mode) == pytest.approx(LEFT_OR_RIGHT_RAD, rel=0.1)


def test_a_cloned_flow_keeps_both_ways(teacher):
    observed, actions = act(teacher)
    assert_two_ways(actions)
    forward = actions[:, 1] - 0.1 * observed
    assert abs(forward.mean()) < 0.005 and forward.std() == pytest.approx(SPREAD_RAD, rel=0.3)


def test_one_step_of_the_teacher_takes_the_mean_of_both_ways(teacher):
    """Why a student is needed: this is where the obstacle stands."""
    _, actions = act(teacher, SamplerSpec('euler', 1))
    assert (np.abs(actions[:, 0]) < 0.5 * LEFT_OR_RIGHT_RAD).mean() > 0.9


@pytest.fixture(scope='module')
def student(teacher, two_ways):
    config = DistillConfig(train_steps=500, batch=256, learning_rate=3e-3)
    return distill(teacher, two_ways.observations, config)


def test_a_student_of_one_step_follows_its_teacher_noise_by_noise(teacher, student):
    assert student.spec.sampler == SamplerSpec('euler', 1)
    _, taught = act(teacher)
    _, learned = act(student)
    _, plain = act(teacher, SamplerSpec('euler', 1))
    error = np.abs(learned - taught).max(axis=1)
    untaught = np.abs(plain - taught).max(axis=1)
    assert np.median(error) < 0.012 and np.median(untaught) > 0.08
    # Which way it goes is decided by the same noise.
    assert (np.sign(learned[:, 0]) == np.sign(taught[:, 0])).mean() > 0.95
    assert_two_ways(learned, between=0.12)


def test_a_student_is_no_worse_with_more_steps_of_midpoint(teacher, two_ways):
    config = DistillConfig(method='reflow', solver='midpoint', steps=2, train_steps=200, batch=256)
    few = distill(teacher, two_ways.observations, replace(config, learning_rate=3e-3))
    assert few.spec.sampler == SamplerSpec('midpoint', 2)
    error = np.abs(act(few)[1] - act(teacher)[1]).max(axis=1)
    plain = np.abs(act(teacher, few.spec.sampler)[1] - act(teacher)[1]).max(axis=1)
    assert error.mean() < plain.mean()


def test_distilling_leaves_the_teacher_alone(teacher, two_ways, assert_same_weights):
    before = teacher.clone()
    distill(teacher, two_ways.observations, DistillConfig(train_steps=3, batch=8))
    assert_same_weights(teacher, before)
    assert teacher.spec.sampler == SamplerSpec('midpoint', 10)


def test_a_distillation_repeats_and_can_be_stopped(teacher, two_ways, assert_same_weights):
    config = DistillConfig(train_steps=30, batch=16)
    told = []
    first = distill(teacher, two_ways.observations, config, progress=lambda *a: told.append(a))
    assert_same_weights(first, distill(teacher, two_ways.observations, config))
    assert [done for done, _ in told] == [25, 30] and all(np.isfinite(loss) for _, loss in told)
    asked = iter(range(100))
    stopped = distill(teacher, two_ways.observations, config, stop=lambda: next(asked) >= 5)
    assert next(asked) == 6  # asked before each step, and not again after the answer
    with pytest.raises(AssertionError):
        assert_same_weights(stopped, first)


def test_only_coupled_noise_can_be_distilled(make_policy, two_ways):
    chance = make_policy(observed=1, sampler=SamplerSpec('sde', 4))
    with pytest.raises(UserError, match='midpoint'):
        distill(chance, two_ways.observations, DistillConfig())
    with pytest.raises(UserError, match='euler or midpoint'):
        DistillConfig(solver='sde')


def test_distilling_on_nothing_is_refused(teacher):
    with pytest.raises(UserError, match='observations'):
        distill(teacher, np.empty((0, 1)), DistillConfig())


@pytest.mark.parametrize(
    'settings',
    [{'train_steps': 0}, {'batch': 0}, {'learning_rate': 0.0}, {'pairs': 0}, {'ema': 1.0}],
)
def test_a_student_that_would_learn_nothing_is_refused(settings):
    with pytest.raises(UserError, match=f'^{next(iter(settings))} must be'):
        DistillConfig(**settings)


@pytest.mark.parametrize('share', [-0.1, 1.1])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(UserError, match='on_grid'):
        DistillConfig(on_grid=share)


SHORT = PretrainConfig(steps=120, batch=16)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_bit_by_bit(
    two_ways, tmp_path, monkeypatch, assert_same_weights
):
    monkeypatch.setattr(pretrain_module, 'STATE_EVERY', 20)
    whole = pretrain(two_ways.spec, two_ways, SHORT)
    state = tmp_path / 'deep' / 'state'
    done, ends = [], [50, 100]

    def interrupt(step, loss):
        done.append(step)
        if step in ends:
            ends.remove(step)
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            pretrain(two_ways.spec, two_ways, SHORT, state_file=state, progress=interrupt)
        assert state.is_file()
    torch.manual_seed(77)
    resumed = pretrain(two_ways.spec, two_ways, SHORT, state_file=state, progress=interrupt)
    # To 50; from the state of step 40 to 100; from the state of step 80 to the end.
    assert done == [50, 50, 100, 100, 120]
    assert_same_weights(resumed, whole)
    assert not state.exists()


@pytest.mark.parametrize('change', ['seed', 'steps', 'network', 'data'])
def test_a_state_of_other_settings_or_data_is_not_used(
    two_ways, tmp_path, monkeypatch, assert_same_weights, make_spec, change
):
    monkeypatch.setattr(pretrain_module, 'STATE_EVERY', 20)
    state = tmp_path / 'state'

    def interrupt(step, loss):
        raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(two_ways.spec, two_ways, SHORT, state_file=state, progress=interrupt)
    spec, data, config = two_ways.spec, two_ways, SHORT
    if change == 'network':
        spec = make_spec(observed=1, width=16)
    elif change == 'data':
        data = replace(two_ways, actions=-two_ways.actions)
    else:
        config = replace(SHORT, **{change: getattr(SHORT, change) + 1})
    fresh = pretrain(spec, data, config)
    assert_same_weights(pretrain(spec, data, config, state_file=state), fresh)


def test_a_corrupt_state_is_an_error_of_one_line(two_ways, tmp_path):
    (tmp_path / 'state').write_bytes(b'rubbish')
    with pytest.raises(UserError, match='cannot read'):
        pretrain(two_ways.spec, two_ways, SHORT, state_file=tmp_path / 'state')


def test_cloning_depends_on_its_seed_alone(two_ways, assert_same_weights):
    short = replace(SHORT, steps=5)
    first = pretrain(two_ways.spec, two_ways, short)
    torch.manual_seed(123)
    assert_same_weights(pretrain(two_ways.spec, two_ways, short), first)
    with pytest.raises(AssertionError):
        assert_same_weights(pretrain(two_ways.spec, two_ways, replace(short, seed=1)), first)


def test_chunks_of_another_size_are_refused(two_ways, make_spec):
    with pytest.raises(UserError, match='chunks of 2'):
        pretrain(make_spec(observed=1, horizon=3), two_ways, SHORT)


def test_observations_of_another_size_are_refused(two_ways, make_spec):
    with pytest.raises(UserError, match='observations'):
        pretrain(make_spec(observed=2), two_ways, SHORT)


@pytest.mark.parametrize('options', [{'steps': 0}, {'batch': 0}])
def test_a_run_of_nothing_is_refused(options):
    with pytest.raises(UserError, match='at least 1'):
        PretrainConfig(**options)
