# SPDX-License-Identifier: Apache-2.0
"""The commands that make, improve, measure and show policies, run small, as a user would."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dipod_ros.cli._node_log import failure
from dipod_ros.cli.main import main
from dipod_ros.learning import q_critic
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.students import distill as students
from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.flow import FlowPolicy

DATA = 'runs/demos/reach.safetensors'


def run(*words):
    return main([str(w) for w in words])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with demonstrations, a flow and a student of `reach`, all tiny."""
    folder = tmp_path_factory.mktemp('made')
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run('demos', 'reach', '--episodes', 6, '--json', 'demos.json') == 0
        data = 'runs/demos/reach.safetensors'
        small = ('--width', 16, '--depth', 2, '--steps', 30, '--batch', 16)
        assert run('pretrain', data, '--out', 'flow', *small, '--json', 'pretrain.json') == 0
        with pytest.MonkeyPatch.context() as patch:
            few = partial(students.DistillConfig, pairs=512)
            patch.setattr(students, 'DistillConfig', few)
            assert run('distill', 'flow', '--out', 'student', '--steps', 5, '--episodes', 4) == 0
        recorded = ckpt.load('flow')
        policy = FlowPolicy.from_checkpoint(recorded)
        policy.spec = replace(policy.spec, task='pick')
        policy.save(Path('recorded'))
        for version in ('v000000', 'v000001'):
            Path('a_run/checkpoints', version).mkdir(parents=True)
        Path('a_run/run.json').write_text('{}')
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def at(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def quick_q(monkeypatch):
    """Let Q critics take few gradient steps: it is what is learned from that is asked here."""
    few = partial(q_critic.QCriticConfig, first_rounds=4, rounds=2, steps=10, imagined=32)
    monkeypatch.setattr(q_critic, 'QCriticConfig', few)


def test_demonstrations_are_what_the_summary_says(at):
    demos = Demonstrations.load('runs/demos/reach.safetensors')
    told = json.loads(Path('demos.json').read_text())
    assert told['episodes'] == len(demos.success) == 6
    assert told['success'] == demos.success.mean()
    assert demos.spec.task == 'reach' and demos.actions.shape[1:] == (5, 7)
    assert run('demos', 'reach', '--episodes', 6, '--out', 'again.safetensors') == 0
    again = Demonstrations.load('again.safetensors')
    np.testing.assert_array_equal(demos.actions, again.actions)


@pytest.mark.parametrize(
    'network',
    [
        {'kind': 'dit', 'width': 16, 'depth': 1, 'heads': 2},
        {'kind': 'unet', 'width': 8, 'depth': 2},
    ],
    ids=lambda n: n['kind'],
)
def test_other_networks_are_cloned_alike(at, tmp_path, network):
    sizes = [word for k, v in network.items() if k != 'kind' for word in (f'--{k}', v)]
    data = 'runs/demos/reach.safetensors'
    words = ('--network', network['kind'], *sizes, '--steps', 3, '--batch', 8)
    assert run('pretrain', data, '--out', tmp_path / 'flow', *words) == 0
    checkpoint = ckpt.load(tmp_path / 'flow')
    assert checkpoint.spec.network == network
    assert FlowPolicy.from_checkpoint(checkpoint).spec.horizon == 5


def test_a_clone_knows_where_it_comes_from(at):
    manifest = ckpt.load('flow').manifest
    assert manifest.kind == 'flow' and manifest.golden is not None
    assert manifest.lineage['episodes'] == 6
    assert json.loads(Path('pretrain.json').read_text())['sha256'] == manifest.sha256
    student = ckpt.load('student').manifest
    assert student.kind == 'student' and student.spec.sampler.evaluations == 1
    assert student.lineage['teacher'] == manifest.sha256


def test_eval_gives_numbers_intervals_and_a_picture(at, capsys):
    words = ('--episodes', 8, '--samplers', 'euler-1,midpoint-2')
    assert run('eval', 'flow', *words, '--plot', 'e.png', '--json', 'e.json') == 0
    results = json.loads(Path('e.json').read_text())['results']
    assert len(results) == 2
    for rate in results.values():
        assert rate['episodes'] == 8 and rate['low'] <= rate['success'] <= rate['high']
    assert Path('e.png').read_bytes().startswith(b'\x89PNG')
    assert 'euler-1 (1 evaluations)' in capsys.readouterr().out


def test_eval_fails_below_the_success_that_is_asked_for(at, capsys):
    words = ('eval', 'flow', '--episodes', 4, '--samplers', 'euler-1,midpoint-5')
    assert run(*words, '--min-success', 0) == 0
    assert 'of its own sampler is not below --min-success 0' in capsys.readouterr().out
    assert run(*words, '--min-success', 1) == 1  # tiny, it never always succeeds


def test_a_dataset_is_replaced_only_where_that_is_said(at, tmp_path):
    out = tmp_path / 'mine.safetensors'
    out.write_text('a recording')
    words = ('demos', 'reach', '--episodes', 1, '--out', out)
    assert run(*words) == 2 and out.read_text() == 'a recording'
    assert run(*words, '--overwrite') == 0 and len(Demonstrations.load(out).success) == 1


def test_eval_films_where_there_is_gl_and_says_so_where_not(at, capsys):
    code = run('eval', 'flow', '--episodes', 2, '--video', 'film.mp4', '--video-episodes', 2)
    if code == 0:
        assert Path('film.mp4').stat().st_size > 1000
    else:
        assert 'OpenGL' in capsys.readouterr().err and not Path('film.mp4').exists()


def test_pretrain_can_leave_out_what_failed(at):
    from dipod_ros.learning.demonstrations.dataset import Demonstrations

    data = Demonstrations.load('runs/demos/reach.safetensors')
    half = np.arange(len(data.success)) % 2 == 0
    replace(data, success=half).save('half.safetensors')
    words = ('--steps', 2, '--width', 8, '--depth', 2, '--only-success')
    assert run('pretrain', 'half.safetensors', '--out', 'chosen', *words) == 0
    lineage = ckpt.load('chosen').manifest.lineage
    assert (lineage['episodes'], lineage['demonstrator_success']) == (int(half.sum()), 1.0)
    replace(data, success=half & False).save('none.safetensors')
    assert run('pretrain', 'none.safetensors', '--out', 'x', *words) == 2


def test_finetune_learns_keeps_its_run_and_goes_on_with_it(at, quick_q, capsys):
    words = ('--episodes', 4, '--epochs', 1, '--gap-every', 0, '--eval-episodes', 4)
    # It never succeeds: what succeeds it knows from the demonstrations.
    where = ('flow', '--run-dir', 'ft', '--demos', 'runs/demos')
    assert run('finetune', *where, '--control-steps', 400, *words, '--student', 'off') == 0
    assert ckpt.load('ft/checkpoints/v000001').manifest.lineage['method'] == 'dipod'
    assert run('finetune', *where, '--control-steps', 800, *words, '--json', 'ft.json') == 0
    told = json.loads(Path('ft.json').read_text())
    assert set(told['results']) == {'before', 'after', 'student'}
    assert {rate['episodes'] for rate in told['results'].values()} == {4}
    kinds = {n: ckpt.read_manifest(r['checkpoint']).kind for n, r in told['results'].items()}
    assert kinds == {'before': 'flow', 'after': 'flow', 'student': 'student'}
    after = told['results']['after']['checkpoint']
    assert after == str(max(Path('ft/checkpoints').glob('v*')))
    assert f'episodes  {after}' in capsys.readouterr().out
    steps = [row['control_steps'] for row in told['curve']]
    assert steps == sorted(steps) and steps[-1] >= 800
    assert [row['updates'] for row in told['curve']] == list(range(1, len(steps) + 1))


def test_finetune_takes_a_reward_for_dense(at, quick_q):
    words = ('--episodes', 4, '--epochs', 1, '--gap-every', 0, '--eval-episodes', 2)
    words += ('--control-steps', 400, '--student', 'off', '--demos', 'runs/demos')
    for name, more, clip in (('ft_end', (), 0.0), ('ft_dense', ('--dense-reward',), 3.0)):
        assert run('finetune', 'flow', '--run-dir', name, *words, *more) == 0
        last = sorted(Path(name, 'checkpoints').iterdir())[-1]
        assert ckpt.load(last).manifest.lineage['update']['advantage_clip'] == clip


def test_finetune_draws_a_seed_for_a_run_and_keeps_it_when_it_goes_on(at, capsys):
    words = ('--episodes', 2, '--epochs', 1, '--gap-every', 0, '--eval-episodes', 2)
    words += ('--student', 'off', '--no-q-critic', '--seed', -1, '--run-dir', 'ft_drawn')
    told = []
    for steps, of in ((100, 'drawn'), (200, 'of the resumed run')):
        command = ('finetune', 'flow', *words, '--control-steps', steps, '--json', 'drawn.json')
        assert run(*command) == 0
        told.append(json.loads(Path('drawn.json').read_text())['config']['seed'])
        assert f'seed {told[-1]} ({of})' in capsys.readouterr().out
    assert told[0] == told[1] >= 0


def test_finetune_learns_with_the_sampler_that_is_given(at, capsys, caplog):
    words = ('--episodes', 2, '--epochs', 1, '--gap-every', 0, '--eval-episodes', 2)
    words += ('--student', 'off', '--no-q-critic', '--control-steps', 100)
    where = ('flow', '--run-dir', 'ft_sampler')
    assert run('finetune', *where, *words, '--sampler', 'euler-3', '--json', 's.json') == 0
    assert [text for text in caplog.messages if 'euler-3' in text and 'narrower' in text]
    for folder in Path('ft_sampler/checkpoints').iterdir():
        assert str(ckpt.read_manifest(folder).spec.sampler).startswith('euler-3 ')
    told = json.loads(Path('s.json').read_text())['results']
    assert told['after']['sampler'].startswith('euler-3 ')
    assert told['before']['sampler'] == str(ckpt.read_manifest('flow').spec.sampler)
    assert run('finetune', *where, *words, '--sampler', 'midpoint-2') == 2
    assert 'began with another sampler than midpoint-2' in capsys.readouterr().err
    assert run('finetune', *where, *words, '--sampler', 'midpoint') == 2
    assert 'write SOLVER-STEPS' in capsys.readouterr().err


def test_finetune_keeps_demonstrations_in_the_batch(at, quick_q):
    words = ('--episodes', 4, '--epochs', 1, '--gap-every', 0, '--eval-episodes', 4)
    words += ('--control-steps', 400, '--student', 'off', '--demo-weight', 0.5, '--demo-decay', 0.9)
    words += ('--ema', 0.9)
    for name, path in (('file', 'runs/demos/reach.safetensors'), ('folder', 'runs/demos')):
        told = f'{name}.json'
        where = ('--run-dir', f'ft_{name}', '--demos', path, '--json', told)
        assert run('finetune', 'flow', *where, *words) == 0
        rows = json.loads(Path(told).read_text())['curve']
        # The first update fits the critic alone; then the demonstrations are learned from.
        assert 'demo_loss' not in rows[0]
        assert all(row['demo_loss'] > 0 for row in rows[1:]) and len(rows) > 1


def test_finetune_shows_its_q_critic_the_demonstrations_and_imitates_none(at, quick_q):
    words = ('--episodes', 4, '--epochs', 1, '--gap-every', 0, '--eval-episodes', 4)
    words += ('--student', 'off', '--demos', 'runs/demos')
    words += ('--run-dir', 'ft_q', '--json', 'q.json')
    for steps in (150, 400):  # the second goes on with the first
        assert run('finetune', 'flow', '--control-steps', steps, *words) == 0
    rows = json.loads(Path('q.json').read_text())['curve']
    assert all(row['q_loss'] > 0 and 'demo_loss' not in row for row in rows) and len(rows) > 1


def test_inspect_shows_joints_limits_and_lineage(at, capsys):
    assert run('inspect', 'student', '--json', 'i.json') == 0
    text = capsys.readouterr().out
    for part in ('student', 'verified', 'joint7', 'euler-1', 'teacher', 'goal'):
        assert part in text
    assert json.loads(Path('i.json').read_text())['spec']['horizon'] == 5


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (('demos', 'juggle'), "unknown task 'juggle'"),
        (('demos', 'reach', '--episodes', 0), '--episodes must be at least 1'),
        (('demos', 'reach', '--episodes', 1, '--out', '/proc/d.safetensors'), 'cannot write'),
        (('demos', 'reach', '--episodes', 1, '--seed', -1), '--seed must be at least 0'),
        (('demos', 'reach', '--episodes', 1), 'is there already; choose another --out or add'),
        (('pretrain', DATA, '--out', 'x', '--batch', 0), '--batch must be at least 1'),
        (('pretrain', DATA, '--out', 'demos.json', '--overwrite'), 'it is a file, and a folder'),
        (('models', 'reach', '--out', '/proc/x'), 'cannot write /proc/x'),
        (('models', 'reach', '--episodes', 0), '--episodes must be at least 1'),
        (('export', 'flow', '--out', '/proc/x'), 'cannot write /proc/x'),
        (('pretrain', 'nothing.safetensors', '--out', 'x'), 'make them with `dipod demos`'),
        (('pretrain', 'demos.json', '--out', 'x'), 'demonstrations'),
        (('pretrain', 'runs/demos/reach.safetensors', '--out', 'flow'), 'exists already'),
        (
            ('pretrain', 'runs/demos/reach.safetensors', '--out', 'x', '--sampler', 'rk4-3'),
            "solver 'rk4'",
        ),
        (
            ('pretrain', 'runs/demos/reach.safetensors', '--out', 'x', '--heads', 2),
            'residual_mlp has no --heads',
        ),
        (
            (
                'pretrain',
                'runs/demos/reach.safetensors',
                '--out',
                'x',
                '--network',
                'dit',
                '--heads',
                3,
            ),
            'multiple of heads',
        ),
        (('distill', 'nobody', '--out', 'x'), "no checkpoint 'nobody'"),
        (('distill', 'flow', '--out', 'student'), 'exists already'),
        (('distill', 'flow', '--out', 'x', '--steps', 0), '--steps must be at least 1'),
        (('distill', 'flow', '--out', 'x', '--episodes', 0), '--episodes must be at least 1'),
        (('distill', 'flow', '--out', 'x', '--seed', -1), '--seed must be at least 0'),
        (('distill', 'flow', '--out', '/proc/x'), 'cannot write /proc/x'),
        (('distill', 'flow', '--out', 'x', '--sampler', 'euler-8'), 'at most 4 steps'),
        (('distill', 'student', '--out', 'x'), 'is a student: give its teacher'),
        (('distill', 'recorded', '--out', 'x'), "task 'pick' is not simulated here"),
        (('distill', 'flow', '--out', 'x', '--sampler', 'sde-2'), 'deterministic sampler'),
        (('eval', 'flow', '--samplers', 'euler'), 'SOLVER-STEPS'),
        (('eval', 'flow', '--episodes', 0), '--episodes must be at least 1'),
        (('eval', 'flow', '--seed', -1), '--seed must be at least 0'),
        (('eval', 'flow', '--threads', 100_000), '--threads must be within 1..256'),
        (('eval', 'flow', '--video-episodes', 0), '--video-episodes must be at least 1'),
        (('eval', 'flow', '--plot', '/proc/x.png'), 'cannot write /proc/x.png'),
        (('eval', 'flow', '--plot', 'x.foo'), 'name a file that ends in .png'),
        (('eval', 'flow', '--plot', 'noext'), 'name a file that ends in .png'),
        (('eval', 'flow', '--json', 'runs'), 'cannot write runs: it is a folder'),
        (('eval', 'flow', '--video', '/proc/x.mp4'), 'cannot write /proc/x.mp4'),
        (('eval', 'flow', '--min-success', 2), '--min-success must be within 0..1'),
        (('finetune', 'flow', '--run-dir', 'x', '--clip', 'inf'), '--clip must be a finite number'),
        (
            ('eval', 'flow', '--min-success', 0.5, '--samplers', 'euler-1'),
            "the policy's own sampler, midpoint-5",
        ),
        (('eval', 'recorded'), "task 'pick' is not simulated here"),
        (('finetune', 'recorded', '--run-dir', 'x'), "task 'pick' is not simulated here"),
        (('finetune', 'flow', '--run-dir', 'x', '--gap-every', -1), '--gap-every must be at least'),
        (('finetune', 'flow', '--run-dir', 'x', '--json', '/proc/x'), 'cannot write /proc/x'),
        (('inspect', 'a_run'), 'a_run is a run: give one of its checkpoints, such as'),
        (('eval', 'flow', '--task', 'rail_push'), 'do not fit task rail_push'),
        (('finetune', 'student', '--run-dir', 'x'), 'give its teacher'),
        (('finetune', 'flow', '--run-dir', '/proc/x'), 'cannot write run_dir'),
        (
            ('finetune', 'flow', '--run-dir', 'x', '--demos', 'nowhere'),
            'make them with `dipod demos`',
        ),
        (
            ('finetune', 'flow', '--run-dir', 'x', '--demos', 'runs/demos', '--no-q-critic'),
            'nothing would learn from the demonstrations runs/demos: set demo_weight above 0',
        ),
        (('finetune', 'flow', '--run-dir', 'x', '--demos', 'runs'), 'no *.safetensors file in'),
        (
            ('finetune', 'flow', '--run-dir', 'x', '--demos', 'runs/demos', '--demo-weight', -1),
            'demo_weight must not be negative',
        ),
        (('inspect', 'runs'), 'it has no manifest.yaml'),
        (('models', 'juggle'), "no recipe for ['juggle']"),
        (('demo', '--task', 'juggle'), "no checkpoint 'juggle_flow'"),
        (('demo', '--minutes', 0), '--minutes must be above 0'),
        (('demo', '--minutes', 'nan'), '--minutes must be a finite number, got nan'),
        (('demo', '--minutes', 'inf'), '--minutes must be a finite number, got inf'),
        (('demo', '--updates', 0), '--updates must be at least 1'),
        (('demo', '--seed', -1), '--seed must be at least 0'),
        (('demo', '--beta', -1), '--beta must be within 0..1000'),
        (('demo', '--checkpoint', 'pillar_reach_student'), 'is a student: give its teacher'),
        (('demo', '--params-file', 'no.yaml'), '--params-file no.yaml: there is no such file'),
        (('finetune', 'flow', '--run-dir', 'x', '--eval-episodes', 0), '--eval-episodes must be'),
        (('finetune', 'flow', '--run-dir', 'x', '--seed', -2), '--seed must be at least -1'),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_change(at, capsys, words, reason):
    assert run(*words) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith('dipod:')]
    assert len(lines) == 1 and reason in lines[0]
    assert 'Traceback' not in error and not Path('x').exists()
    assert 'episode/s' not in error  # before any work


def test_why_a_node_failed_is_what_it_said_last(tmp_path):
    log = tmp_path / 'nodes.log'
    assert failure(log) == ''
    log.write_text(
        '[sim] one world\n[trainer] version 0\n[trainer] trainer: no room\n[sim] all is well\n'
        '[trainer] failed with exit code 2\n[sim] gone\n[sim] failed with exit code 1\n'
    )
    assert failure(log) == '[trainer] trainer: no room'


def test_a_corrupt_checkpoint_is_named_not_used(at, capsys, tmp_path):
    broken = tmp_path / 'broken'
    broken.mkdir()
    for name in (ckpt.MANIFEST_FILE, ckpt.WEIGHTS_FILE):
        (broken / name).write_bytes((at / 'flow' / name).read_bytes())
    weights = bytearray((broken / ckpt.WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (broken / ckpt.WEIGHTS_FILE).write_bytes(weights)
    for command in (('inspect', broken), ('eval', broken), ('distill', broken, '--out', 'x')):
        assert run(*command) == 2
        assert 'is corrupt' in capsys.readouterr().err
