# SPDX-License-Identifier: Apache-2.0
"""`dipod drift` run small on real checkpoints of the reach task, as a user would."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')

from dipod_ros.cli import drift  # noqa: E402
from dipod_ros.cli.main import call  # noqa: E402
from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.drift import decisions  # noqa: E402
from dipod_ros.learning.task_spec import spec_for  # noqa: E402
from dipod_ros.policy.flow import FlowPolicy, load_policy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402
from dipod_ros.sim.vector_env import ChunkVectorEnv  # noqa: E402

SMALL = ('--task-episodes', 16, '--samples', 24)


def run(*words):
    return call(drift, [str(w) for w in words])


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    """A run that kept nine versions of a small random policy."""
    folder = tmp_path_factory.mktemp('drift')
    torch.manual_seed(0)
    network = {'kind': 'residual_mlp', 'width': 16, 'depth': 2}
    policy = FlowPolicy(spec_for(ChunkVectorEnv('reach', 1, seed=0), network=network))
    initial = policy.save(folder / 'initial')
    for version in range(2, 11):
        policy.save(folder / 'ft' / 'checkpoints' / f'v{version:06d}', version=version)
    begun = {'initial': str(initial.path), 'initial_sha256': initial.sha256}
    (folder / 'ft' / 'run.json').write_text(json.dumps(begun))
    return folder / 'ft'


def names(targets):
    return [t.path.name for t in targets]


def test_of_a_run_the_first_the_last_and_some_between_are_measured(run_dir):
    spread = names(drift.find_targets(str(run_dir), 0))
    assert spread == ['initial', 'v000003', 'v000005', 'v000008', 'v000010']
    assert names(drift.find_targets(str(run_dir), 4)) == [
        'initial',
        'v000005',
        'v000009',
        'v000010',
    ]
    assert len(drift.find_targets(str(run_dir), 1)) == 10


def test_an_initial_checkpoint_that_is_gone_or_another_is_left_out(run_dir, tmp_path):
    copy = tmp_path / 'ft'
    shutil.copytree(run_dir, copy)
    begun = json.loads((copy / 'run.json').read_text())
    for changed in ({'initial': str(tmp_path / 'gone')}, {'initial_sha256': 'other'}):
        (copy / 'run.json').write_text(json.dumps(begun | changed))
        assert names(drift.find_targets(str(copy), 0))[0] == 'v000002'
    shutil.rmtree(copy / 'checkpoints')
    with pytest.raises(UserError, match='without any checkpoint yet'):
        drift.find_targets(str(copy), 0)


def test_two_versions_are_measured_written_and_drawn(run_dir, tmp_path, capsys):
    out = tmp_path / 'deep' / 'd.json'
    words = (run_dir, '--every', 100, *SMALL, '--eval-episodes', 4)
    assert run(*words, '--json', out, '--plot', tmp_path / 'd.png') == 0
    told = json.loads(out.read_text())
    first, last = told['results']
    assert (first['version'], last['version']) == (0, 10)
    # The same weights and the same seed: the same numbers.
    assert first['report'] == last['report']
    report = first['report']
    assert report['decisions'] == 24 and report['gap_q05'] <= report['gap_q95']
    assert report['entropy'] + report['gap_mean'] == pytest.approx(-report['elbo_mean'], rel=1e-3)
    assert report['alignment']['decisions'] == 24
    assert list(first['success']) == [
        'euler-1 (1 evaluations)',
        'midpoint-1 (2 evaluations)',
        'midpoint-2 (4 evaluations)',
        'midpoint-5 (10 evaluations)',
        'midpoint-25 (50 evaluations)',
    ]
    assert (tmp_path / 'd.png').read_bytes().startswith(b'\x89PNG')
    lines = capsys.readouterr().out.splitlines()
    assert 'cos ELBO' in lines[0] and 'midpoint-25' in lines[0]
    assert f'{report["gap_mean"]:.2f}' in next(x for x in lines if 'v000010' in x)


def test_gradients_and_success_can_be_left_out_and_the_sampler_changed(run_dir, tmp_path):
    out = tmp_path / 'd.json'
    words = ('--gradient-samples', 0, '--eval-episodes', 0, '--sampler', 'euler-3')
    assert run(run_dir.parent / 'initial', *SMALL, *words, '--json', out) == 0
    (row,) = json.loads(out.read_text())['results']
    assert row['report']['alignment'] is None and row['success'] == {}
    assert row['report']['sampler'].startswith('euler-3')


def test_the_same_decisions_are_judged_by_returns_or_by_a_critic_of_chunks(run_dir, tmp_path):
    reports = {}
    for name in ('returns', 'q'):
        out = tmp_path / f'{name}.json'
        words = ('--eval-episodes', 0, '--advantages', name, '--json', out)
        assert run(run_dir.parent / 'initial', *SMALL, *words) == 0
        told = json.loads(out.read_text())
        assert told['config']['advantages'] == name
        reports[name] = told['results'][0]['report']
    judged = ('gap_positive', 'gap_negative', 'alignment')
    assert all(reports['returns'][key] != reports['q'][key] for key in judged)
    others = set(reports['q']) - set(judged)
    assert all(reports['returns'][key] == reports['q'][key] for key in others)


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (('nobody',), "no checkpoint 'nobody'"),
        (('RUN', '--task-episodes', 1), '--task-episodes must be at least 2'),
        (('RUN', '--samples', 0), '--samples must be at least 1'),
        (('RUN', '--gradient-samples', -1), '--gradient-samples must be at least 0'),
        (('RUN', '--every', -1), '--every must be at least 0'),
        (('RUN', '--every', 100, *SMALL, '--sampler', 'sde-4'), 'use a deterministic sampler'),
        (('RUN', '--every', 100, *SMALL, '--sampler', 'euler'), 'SOLVER-STEPS'),
        (('RUN', '--task-episodes', 6), '--task-episodes must be at least 16'),
        (('RUN', '--samples', 7), '--samples must be at least 8 for the gradients'),
        (('RUN', '--gradient-samples', 3), '--gradient-samples must be at least 8 for the'),
        (('RUN', '--seed', -1), '--seed must be at least 0'),
        (('RUN', '--plot', '/proc/x.png'), 'cannot write /proc/x.png'),
        (('RUN', '--plot', 'x'), 'name a file that ends in .png'),
    ],
)
def test_mistakes_are_one_line(run_dir, words, reason):
    with pytest.raises(UserError, match=reason):
        run(*(run_dir if w == 'RUN' else w for w in words))


@pytest.mark.parametrize('own', [True, False], ids=['own sampler', 'given sampler'])
def test_a_sampler_without_a_likelihood_is_refused_before_the_rollouts(
    run_dir, tmp_path, monkeypatch, own
):
    def never(*_, **__):
        raise AssertionError('rolled out')

    monkeypatch.setattr(decisions, 'collect_episodes', never)
    words = (run_dir.parent / 'initial', *SMALL)
    with pytest.raises(AssertionError, match='rolled out'):
        run(*words)
    if own:
        policy = load_policy(run_dir.parent / 'initial').with_sampler(SamplerSpec('sde', 4))
        # After one that could be measured: nothing is, when one cannot.
        words = (*words, policy.save(tmp_path / 'noisy').path)
    else:
        words = (*words, '--sampler', 'sde-4')
    with pytest.raises(UserError, match='use a deterministic sampler'):
        run(*words)


def test_what_could_not_be_measured_is_a_dash_with_its_reason():
    nan = float('nan')
    names = ('gap_mean', 'gap_error', 'gap_positive', 'gap_negative', 'g1_gap', 'entropy')
    report = dict.fromkeys(names, 1.0) | {'action_std': 0.5}
    silent = {'value': nan, 'error': nan, 'note': 'no signal in the true gradient'}
    found = {'value': 0.25, 'error': 0.5, 'note': ''}
    rows = [
        {
            'name': 'x',
            'version': 3,
            'success': {},
            'report': report | {'alignment': {'elbo': silent, 'cfm': found}},
        }
    ]
    _, line, note = drift.table(rows)
    assert (
        line.split()[-4:] == ['-', '-', '0.25', '0.50'] and 'no signal in the true gradient' in note
    )


def test_the_page_names_every_option():
    parser = argparse.ArgumentParser()
    drift.add_arguments(parser)
    page = (Path(__file__).resolve().parents[2] / 'docs/drift.md').read_text()
    for action in parser._actions:
        for option in action.option_strings:
            assert option in ('-h', '--help', '--threads', '--json') or option in page, option
