# SPDX-License-Identifier: Apache-2.0
"""A training run on disk: durable after each update, resumable after any end."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms.base import UpdateStopped  # noqa: E402
from dipod_ros.learning.algorithms.dipod import DipodConfig  # noqa: E402
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.learner_state import LearnerConfig  # noqa: E402
from dipod_ros.learning.run import RunConfig, TrainingRun  # noqa: E402
from dipod_ros.learning.run_log import read_metrics  # noqa: E402
from dipod_ros.learning.students.distill import DistillConfig  # noqa: E402
from dipod_ros.policy import checkpoint as ckpt  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

QUICK = RunConfig(
    learner=LearnerConfig(
        algorithm=DipodConfig(epochs=2, minibatches=2, samples_per_action=2),
        critic=CriticConfig(width=8, epochs=1),
        critic_warmup_updates=1,
        gap_every=0,
    ),
    distill=DistillConfig(train_steps=5, batch=8),
    tensorboard=False,
)
RUINOUS = replace(
    QUICK,
    learner=replace(
        QUICK.learner,
        algorithm=replace(QUICK.learner.algorithm, learning_rate=5.0, max_grad_norm=1e6),
        critic_warmup_updates=0,
    ),
)


@pytest.fixture
def initial(make_policy, tmp_path):
    make_policy().save(tmp_path / 'initial')
    return tmp_path / 'initial'


@pytest.fixture
def open_run(initial, tmp_path):
    """Return a function that opens the run in the folder `run`, and ends the one before."""
    opened = []

    def open_run(config=QUICK):
        for run in opened:
            run.close()
        opened.append(TrainingRun(tmp_path / 'run', initial, config))
        return opened[-1]

    return open_run


@pytest.fixture
def improve(make_rollout):
    """Return a function that lets the newest checkpoint act, and learns from it."""

    def step(run, updates=1, **options):
        for _ in range(updates):
            rollout = make_rollout(
                load_policy(run.latest.path),
                episodes=8,
                seed=run.learner.updates,
                version=run.version_of(run.latest.sha256),
            )
            result = run.update(rollout, **options)
        return result

    return step


def test_every_version_is_a_checkpoint_of_the_weights_that_act_next(open_run, improve, tmp_path):
    run = open_run()
    assert not run.resumed and run.version_of(run.initial.sha256) == 0
    metrics, manifest = improve(run)
    assert manifest is None and metrics['version'] == 0  # the critic warms up
    for version in (1, 2):
        metrics, manifest = improve(run)
        assert metrics['policy_mismatch_rad'] < 1e-5
        assert manifest.path == tmp_path / 'run' / 'checkpoints' / f'v{version:06d}'
        assert (manifest.version, manifest.kind) == (version, 'flow')
        assert run.version_of(manifest.sha256) == version and run.latest is manifest
        written, weights = load_policy(manifest.path).weights(), run.learner.policy.weights()
        for name in weights:
            np.testing.assert_array_equal(written[name], weights[name])
    assert manifest.lineage['initial'] == run.initial.sha256
    assert (
        manifest.lineage['parent']
        == ckpt.read_manifest(tmp_path / 'run' / 'checkpoints' / 'v000001').sha256
    )
    assert manifest.metrics['episodes'] == 8


def test_a_resumed_run_ends_with_the_same_weights(open_run, improve, initial, tmp_path):
    straight = open_run()
    _, expected = improve(straight, 4)
    rows = read_metrics(tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run')

    improve(open_run(), 2)
    run = open_run()
    assert run.resumed and run.learner.version == 1
    assert run.latest.version == 1
    assert run.version_of(run.latest.sha256) == 1 and run.version_of(run.initial.sha256) == 0
    _, manifest = improve(run, 2)
    assert manifest.sha256 == expected.sha256
    assert read_metrics(tmp_path / 'run') == rows
    # Nor is what a student is distilled on forgotten, after learning ended either.
    student, teacher = straight.make_student(), manifest.sha256
    assert open_run().make_student().sha256 == student.sha256
    assert student.lineage['teacher'] == teacher
    assert [r['updates'] for r in rows] == [1, 2, 3, 4]


def test_versions_too_old_to_learn_from_have_no_number(open_run, improve):
    run = open_run(replace(QUICK, learner=replace(QUICK.learner, max_lag=1)))
    improve(run, 4)
    assert run.learner.version == 3
    assert run.version_of(run.initial.sha256) is None
    assert run.version_of(run.latest.sha256) == 3
    assert run.version_of('ff' * 32) is None


def test_only_the_newest_checkpoints_are_kept(open_run, improve, tmp_path):
    run = open_run(replace(QUICK, keep_checkpoints=2))
    improve(run, 5)
    names = sorted(p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir())
    assert names == ['v000003', 'v000004']
    run = open_run(replace(QUICK, keep_checkpoints=0))
    improve(run, 2)
    assert len(list((tmp_path / 'run' / 'checkpoints').iterdir())) == 4


def test_a_collapse_makes_no_checkpoint(open_run, improve, tmp_path):
    run = open_run(RUINOUS)
    metrics, manifest = improve(run)
    assert metrics['collapsed'] == 1 and manifest is None
    assert run.latest is run.initial
    assert not list(tmp_path.glob('run/checkpoints/*'))
    again = open_run(RUINOUS)
    assert again.learner.alarms == 1 and again.learner.algorithm.config.learning_rate == 2.5


def test_going_back_to_wider_actions_is_a_checkpoint(open_run, improve, tmp_path):
    """Whoever acts with the narrow version has to be told."""
    run = open_run()
    improve(run, 2)
    learner = run.learner
    wide = learner.snapshot()
    improve(run)
    learner.wide, learner.returns = wide, [9.0] * 10
    learner.config = replace(
        learner.config, health=HealthConfig(min_action_std_ratio=9.0, return_updates=1)
    )
    metrics, manifest = improve(run)
    assert metrics['collapsed'] == 1 and manifest.version == 3
    assert manifest.sha256 == ckpt.read_manifest(tmp_path / 'run/checkpoints/v000001').sha256
    # Of the weights that were given up, nothing is said of these.
    assert set(manifest.metrics) == {'episodes', 'control_steps'}
    assert run.version_of(manifest.sha256) == 3


def test_a_checkpoint_whose_update_was_never_saved_is_made_again(open_run, improve, tmp_path):
    """A kill between the checkpoint and the state: the state says version 1, the folder 2."""
    run = open_run()
    improve(run, 2)
    state = (tmp_path / 'run' / 'learner.safetensors').read_bytes()
    _, orphan = improve(run)
    (tmp_path / 'run' / 'learner.safetensors').write_bytes(state)
    run = open_run()
    assert run.latest.version == 1 and run.version_of(orphan.sha256) is None
    _, manifest = improve(run)
    assert manifest.version == 2 and manifest.sha256 == orphan.sha256


@pytest.mark.parametrize('missing', [ckpt.MANIFEST_FILE, ckpt.WEIGHTS_FILE])
def test_a_checkpoint_half_deleted_by_a_kill_does_not_stop_the_run(
    open_run, improve, tmp_path, missing
):
    """Old checkpoints are deleted file by file."""
    improve(open_run(), 3)
    (tmp_path / 'run' / 'checkpoints' / 'v000001' / missing).unlink()
    run = open_run()
    assert run.latest.version == 2
    improve(run)


def test_a_folder_of_another_run_is_refused(open_run, improve, make_policy, tmp_path):
    run = open_run()
    improve(run)
    run.close()
    make_policy(seed=1).save(tmp_path / 'other')
    with pytest.raises(UserError, match='another checkpoint') as error:
        TrainingRun(tmp_path / 'run', tmp_path / 'other', QUICK)
    assert '\n' not in str(error.value)
    (tmp_path / 'run' / 'run.json').write_text('{')
    with pytest.raises(UserError, match='another checkpoint'):
        open_run()


def test_with_another_sampler_version_0_is_a_checkpoint_that_has_it(open_run, improve, tmp_path):
    euler = replace(QUICK, sampler=SamplerSpec('euler', 3))
    run = open_run(euler)
    own, start = run.initial, run.latest
    assert own.spec.sampler == SamplerSpec('midpoint', 5)
    assert (start.version, start.spec.sampler) == (0, euler.sampler)
    assert start.lineage == {'parent': own.sha256, 'initial': own.sha256}
    # The same weights, which is all that a decision names.
    assert start.sha256 == own.sha256 and run.version_of(start.sha256) == 0
    metrics, _ = improve(run, 2)
    assert metrics['policy_mismatch_rad'] < 1e-6
    assert (run.latest.version, run.latest.spec.sampler) == (1, euler.sampler)
    again = open_run(euler)
    assert again.resumed and again.latest.sha256 == run.latest.sha256
    for other in (QUICK, replace(QUICK, sampler=SamplerSpec('euler', 4))):
        with pytest.raises(UserError, match='began with another sampler than'):
            open_run(other)
    # A kill before the first update was saved.
    (tmp_path / 'run/learner.safetensors').unlink()
    assert open_run(euler).latest.spec.sampler == euler.sampler


def test_the_checkpoints_own_sampler_given_is_none_given(open_run, improve, tmp_path):
    run = open_run(replace(QUICK, sampler=SamplerSpec('midpoint', 5)))
    assert run.latest is run.initial and run.version_of(run.initial.sha256) == 0
    improve(run)
    assert open_run().resumed
    assert 'sampler' not in json.loads((tmp_path / 'run/run.json').read_text())


def test_a_folder_in_which_another_process_learns_is_refused(open_run, initial, tmp_path):
    run = open_run()
    open_another = (
        'import sys; from pathlib import Path; from dipod_ros.errors import UserError\n'
        'from dipod_ros.learning.run import RunConfig, TrainingRun\n'
        'try: TrainingRun(Path(sys.argv[1]), Path(sys.argv[2]), RunConfig(tensorboard=False))\n'
        'except UserError as error: print(error)\n'
        'else: print("opened")'
    )

    def another():
        command = [sys.executable, '-c', open_another, str(tmp_path / 'run'), str(initial)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert another() == (
        f'run_dir {tmp_path / "run"} is in use: another process learns there; end it, or give '
        'another run_dir\n'
    )
    run.close()
    assert another() == 'opened\n'
    open_run()  # which ended with that process


def test_a_run_that_could_not_be_opened_leaves_the_folder_free(open_run, improve, tmp_path):
    improve(open_run())
    state = tmp_path / 'run' / 'learner.safetensors'
    whole = state.read_bytes()
    state.write_bytes(b'rubbish')
    with pytest.raises(UserError, match='training state') as kept:
        open_run()
    state.write_bytes(whole)
    assert open_run().resumed and kept


def test_learning_does_not_start_from_a_student(make_policy, tmp_path):
    make_policy().save(tmp_path / 'student', kind='student')
    with pytest.raises(UserError, match='teacher'):
        TrainingRun(tmp_path / 'run', tmp_path / 'student', QUICK)
    assert not (tmp_path / 'run').exists()


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(initial, tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(UserError, match='run_dir') as error:
            TrainingRun(path, initial, QUICK)
        assert '\n' not in str(error.value)


def test_a_corrupt_state_is_an_error_of_one_line(open_run, improve, tmp_path):
    improve(open_run())
    (tmp_path / 'run' / 'learner.safetensors').write_bytes(b'rubbish')
    with pytest.raises(UserError, match='training state'):
        open_run()


def test_metrics_are_one_line_of_json_per_update(open_run, improve, tmp_path):
    improve(open_run(), 2)
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == read_metrics(tmp_path / 'run')[1]
    assert {'success_rate', 'control_steps', 'version', 'collapsed'} <= json.loads(lines[1]).keys()


def test_metrics_of_a_collapse_are_json_too(open_run, improve, tmp_path):
    """JSON has no NaN; other readers than Python's stop at one."""
    absurd = replace(
        RUINOUS,
        learner=replace(
            RUINOUS.learner, algorithm=replace(RUINOUS.learner.algorithm, learning_rate=1e30)
        ),
    )
    improve(open_run(absurd))
    line = (tmp_path / 'run' / 'metrics.jsonl').read_text()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(line, parse_constant=refuse)['collapsed'] == 1


def test_a_line_cut_short_by_a_kill_costs_that_line_only(open_run, improve, tmp_path):
    improve(open_run(), 2)
    file = tmp_path / 'run' / 'metrics.jsonl'
    file.write_text(file.read_text()[:-20])
    improve(open_run())
    assert [r['updates'] for r in read_metrics(tmp_path / 'run')] == [1, 3]


def test_metrics_of_no_run_are_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match='metrics.jsonl'):
        read_metrics(tmp_path)


def test_a_student_knows_its_teacher(open_run, improve, tmp_path):
    run = open_run()
    assert not run.has_observations
    improve(run, 2)
    assert run.has_observations
    manifest = run.make_student()
    assert manifest.kind == 'student' and manifest.spec.sampler.steps == 1
    assert manifest.path == tmp_path / 'run' / 'students' / 'v000001'
    assert manifest.lineage == {'teacher': run.latest.sha256, 'initial': run.initial.sha256}
    # It is not a policy to learn from.
    assert run.version_of(manifest.sha256) is None
    # Made again, say after a restart, it replaces the first.
    assert run.make_student().sha256 == manifest.sha256


def test_a_student_stopped_half_way_is_not_written(open_run, improve, tmp_path):
    run = open_run()
    improve(run, 2)
    assert run.make_student(stop=lambda: True) is None
    assert not (tmp_path / 'run' / 'students').exists()


def test_tensorboard_gets_the_same_numbers(open_run, improve, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = open_run(replace(QUICK, tensorboard=True))
    improve(run, 2)
    run.close()
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard'))
    events.Reload()
    rows = read_metrics(tmp_path / 'run')
    written = events.Scalars('dipod/success_rate')
    assert [e.step for e in written] == [1, 2]
    assert [e.value for e in written] == pytest.approx([r['success_rate'] for r in rows])


def test_a_stopped_update_leaves_learner_and_folder_as_they_were(open_run, improve):
    run = open_run()
    improve(run, updates=2)
    before = {k: v.copy() for k, v in run.learner.policy.weights().items()}
    state = (run.run_dir / 'learner.safetensors').read_bytes()
    asked = iter([False, True])
    with pytest.raises(UpdateStopped):
        improve(run, stop=lambda: next(asked))
    assert (run.learner.version, run.learner.updates) == (1, 2)
    for name, value in run.learner.policy.weights().items():
        np.testing.assert_array_equal(value, before[name])
    assert (run.run_dir / 'learner.safetensors').read_bytes() == state
