# SPDX-License-Identifier: Apache-2.0
"""A student that follows a flow through its updates, and through the ends of a process."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.run import RunConfig, TrainingRun  # noqa: E402
from dipod_ros.learning.students.fresh_student import FreshConfig, FreshStudent  # noqa: E402
from dipod_ros.policy import checkpoint as ckpt  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

CONFIG = FreshConfig(first_steps=150, train_steps=60, batch=128, new_pairs=256, learning_rate=3e-3)


def turning(angle):
    return torch.tensor([[0.2, -angle], [angle, 0.2]])


def behind(student, flow):
    """Return how far the student is from the flow for the same noise (rms)."""
    generator = torch.Generator().manual_seed(3)
    o, z = (torch.randn(512, 2, generator=generator) for _ in range(2))
    with torch.no_grad():
        return float((student.policy.sample(o, z) - flow.sample(o, z)).square().mean().sqrt())


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'new_pairs': 0, 'use_rollout': True},
        {'use_rollout': True},
        {'steps': 2},
        {'steps': 2, 'new_pairs': 0, 'use_rollout': True},
    ],
    ids=['new', 'rollout', 'both', 'two steps', 'two steps, rollout'],
)
def test_a_student_catches_up_with_a_flow_that_stands_still(linear_flow, make_rollout, options):
    flow = linear_flow(turning(1.2))
    student = FreshStudent(flow, replace(CONFIG, **options))
    assert student.policy.spec.sampler == SamplerSpec('euler', options.get('steps', 1))
    distances = [behind(student, flow)]
    for update in range(3):
        metrics = student.update(flow, make_rollout(flow, episodes=128, seed=update))
        distances.append(behind(student, flow))
        assert ('student_rms' in metrics) == (options.get('new_pairs') != 0)
    assert distances[0] > 0.25
    assert distances[1] < 0.4 * distances[0] and distances[3] < 0.1
    assert distances[3] < distances[1]


def test_a_student_follows_a_flow_that_moves(linear_flow, make_rollout):
    """Each rollout is of the version before; the student is compared with the one after."""
    angles = [0.8, 0.9, 1.0, 1.1, 1.2]
    flows = [linear_flow(turning(a)) for a in angles]
    student = FreshStudent(flows[0], CONFIG)
    told, after = [], []
    for update, (acted, newest) in enumerate(zip(flows, flows[1:], strict=False)):
        rollout = make_rollout(acted, episodes=64, seed=update)
        told.append(student.update(newest, rollout)['student_rms'])
        after.append(behind(student, newest))
    # What it is told is the distance before the steps: far at first, then one version's worth.
    assert told[0] > 0.25 and max(told[1:]) < 0.2
    assert max(after) < 0.12
    # A student left behind would be far away by now.
    left = FreshStudent(flows[0], CONFIG)
    left.update(flows[1], make_rollout(flows[0], episodes=64))
    assert behind(left, flows[-1]) > 2 * after[-1]


def test_it_goes_on_bit_by_bit(linear_flow, make_rollout, tmp_path, assert_same_weights):
    flow = linear_flow(turning(1.0))
    config = replace(CONFIG, first_steps=5, train_steps=5, memory=100)
    rollouts = [make_rollout(flow, episodes=32, seed=s) for s in range(4)]
    straight, first = FreshStudent(flow, config), FreshStudent(flow, config)
    for rollout in rollouts:
        straight.update(flow, rollout)
    for rollout in rollouts[:2]:
        first.update(flow, rollout)
    first.save(tmp_path / 'state')
    torch.manual_seed(99)
    second = FreshStudent(linear_flow(turning(0.1)), config)
    second.load(tmp_path / 'state')
    for rollout in rollouts[2:]:
        second.update(flow, rollout)
    assert second.updates == 4
    assert_same_weights(second.policy, straight.policy)
    with pytest.raises(AssertionError):
        assert_same_weights(first.policy, straight.policy)


def test_a_state_that_does_not_fit_is_an_error_of_one_line(
    linear_flow, make_policy, make_rollout, tmp_path
):
    flow = linear_flow(turning(1.0))
    student = FreshStudent(flow, replace(CONFIG, first_steps=2))
    student.update(flow, make_rollout(flow))
    student.save(tmp_path / 'state')
    with pytest.raises(UserError, match='of 1 steps, not of 2'):
        FreshStudent(flow, replace(CONFIG, steps=2)).load(tmp_path / 'state')
    with pytest.raises(UserError, match='does not fit') as error:
        FreshStudent(make_policy(width=8), CONFIG).load(tmp_path / 'state')
    assert '\n' not in str(error.value)
    (tmp_path / 'state').write_bytes(b'rubbish')
    with pytest.raises(UserError, match='cannot read'):
        student.load(tmp_path / 'state')


@pytest.mark.parametrize(
    'options, what',
    [
        ({'train_steps': 0}, 'train_steps'),
        ({'memory': 0}, 'memory'),
        ({'learning_rate': 0.0}, 'learning_rate'),
        ({'new_pairs': -1}, 'new_pairs'),
        ({'new_pairs': 0}, 'needs pairs'),
    ],
)
def test_settings_that_teach_nothing_are_refused(options, what):
    with pytest.raises(UserError, match=what):
        FreshConfig(**options)


def test_noise_that_is_not_coupled_is_refused(make_policy):
    with pytest.raises(UserError, match='choose midpoint'):
        FreshStudent(make_policy(sampler=SamplerSpec('sde', 4)), CONFIG)


RUN = RunConfig(
    learner=LearnerConfig(
        algorithm=DipodConfig(epochs=2, minibatches=2, samples_per_action=2),
        critic=CriticConfig(width=8, epochs=1),
        gap_every=0,
    ),
    fresh=FreshConfig(first_steps=4, train_steps=3, batch=16, new_pairs=16),
    tensorboard=False,
)


@pytest.fixture
def open_run(make_policy, tmp_path):
    make_policy().save(tmp_path / 'initial')
    opened = []

    def open_run(config=RUN):
        for run in opened:
            run.close()
        opened.append(TrainingRun(tmp_path / 'run', tmp_path / 'initial', config))
        return opened[-1]

    return open_run


@pytest.fixture
def improve(make_rollout):
    def step(run, updates=1):
        for _ in range(updates):
            rollout = make_rollout(
                load_policy(run.latest.path),
                episodes=8,
                seed=run.learner.updates,
                version=run.version_of(run.latest.sha256),
            )
            result = run.update(rollout)
        return result

    return step


def test_every_checkpoint_of_a_run_has_its_student(open_run, improve, tmp_path):
    run = open_run()
    metrics, manifest = improve(run)
    # The critic alone has learned: there is no checkpoint to have a student of.
    assert manifest is None and run.student is None and metrics['student_rms'] > 0
    for version in (1, 2, 3):
        metrics, manifest = improve(run)
        assert run.student.kind == 'student' and run.student.version == version
        assert run.student.path == tmp_path / 'run' / 'students' / f'v{version:06d}'
        assert run.student.lineage['teacher'] == manifest.sha256
        assert run.student.spec.sampler == SamplerSpec('euler', 1)
        assert metrics['student_s'] > 0
        # What acts and what is learned from is the flow.
        assert run.latest is manifest and run.version_of(run.student.sha256) is None
        assert ckpt.load(run.student.path).manifest.sha256 == run.student.sha256
    assert [p.name for p in (tmp_path / 'run' / 'fresh').iterdir()] == ['u000004.safetensors']


def test_only_the_newest_students_are_kept(open_run, improve, tmp_path):
    improve(open_run(replace(RUN, keep_checkpoints=2)), 5)
    names = sorted(p.name for p in (tmp_path / 'run' / 'students').iterdir())
    assert names == ['v000003', 'v000004']


def test_a_student_beside_it_changes_nothing_for_the_flow(open_run, improve, tmp_path):
    _, with_student = improve(open_run(), 3)
    shutil.rmtree(tmp_path / 'run')
    run = open_run(replace(RUN, fresh=None))
    _, alone = improve(run, 3)
    assert alone.sha256 == with_student.sha256 and run.student is None
    assert not (tmp_path / 'run' / 'fresh').exists()


def test_a_resumed_run_makes_the_same_students(open_run, improve, tmp_path):
    run = open_run()
    improve(run, 4)
    expected = run.student.sha256
    shutil.rmtree(tmp_path / 'run')
    run = open_run()
    improve(run, 2)
    before = run.student
    run = open_run()
    assert run.student.sha256 == before.sha256
    improve(run, 2)
    assert run.student.sha256 == expected


def test_a_kill_between_the_students_state_and_the_learners_is_undone(
    open_run, improve, tmp_path, monkeypatch
):
    run = open_run()
    improve(run, 4)
    expected = run.student.sha256
    shutil.rmtree(tmp_path / 'run')
    run = open_run()
    improve(run, 3)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.learner, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
        improve(run)
    run = open_run()
    assert run.learner.updates == 3 and run.student.version == 2
    improve(run)
    assert run.student.sha256 == expected


def test_a_run_without_a_student_can_get_one_later(open_run, improve):
    improve(open_run(replace(RUN, fresh=None)), 2)
    run = open_run()
    assert run.student is None
    improve(run)
    assert run.student.version == 2


def test_a_rollout_is_left_as_it_was(linear_flow, make_rollout):
    flow = linear_flow(turning(1.0))
    rollout = make_rollout(flow)
    copies = [getattr(rollout, n).copy() for n in ('observations', 'noise', 'chunks')]
    FreshStudent(flow, replace(CONFIG, first_steps=2)).update(flow, rollout)
    for name, copy in zip(('observations', 'noise', 'chunks'), copies, strict=True):
        np.testing.assert_array_equal(getattr(rollout, name), copy)


def test_the_bench_follows_a_real_run():
    from dipod_ros.cli.bench_fresh import follow_run
    from dipod_ros.resources import share_dir

    config = FreshConfig(first_steps=2, train_steps=2, batch=8, new_pairs=8)
    result = follow_run(
        share_dir() / 'models' / 'reach_flow',
        control_steps=150,
        every=1,
        episodes=4,
        rollout_episodes=4,
        students={'one': config},
        distil=False,
    )
    assert result['updates'] == len(result['points']) and result['points'][0]['flow']['rms'] == 0
    assert result['one']['cpu_s'] > 0 and result['update_cpu_s'] > 0
    assert result['points'][-1]['control_steps'] >= 150
    assert 0 < result['points'][-1]['one']['rms'] < 3
