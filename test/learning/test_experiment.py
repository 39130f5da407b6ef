# SPDX-License-Identifier: Apache-2.0
"""A job of the benchmark: learns, survives being killed bit by bit, measures, is not run twice."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.algorithms import gaussian_ppo  # noqa: E402
from dipod_ros.learning.bench import experiment, experiment_start, suites  # noqa: E402
from dipod_ros.learning.bench.experiment import (  # noqa: E402
    Interrupted,
    Training,
    run_job,
)
from dipod_ros.learning.bench.experiment_result import (  # noqa: E402
    alarm_at,
    collapsed,
    outdated,
    read_result,
    smooth,
    steps_to,
)
from dipod_ros.learning.bench.experiment_score import (  # noqa: E402
    EVALUATION_SEED,
    SWEEP,
    Effort,
    measure,
    without_noise,
)
from dipod_ros.learning.bench.experiment_start import make_worlds, start_policy  # noqa: E402
from dipod_ros.learning.bench.jobs import Job, critic_settings, update_config  # noqa: E402
from dipod_ros.learning.bench.methods import METHODS  # noqa: E402
from dipod_ros.learning.bench.regimes import Regime  # noqa: E402
from dipod_ros.learning.collapse import HealthConfig  # noqa: E402
from dipod_ros.learning.critic import CriticConfig  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.learning.demonstrations.scripted import record  # noqa: E402
from dipod_ros.learning.evaluate import evaluate_policy  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402
from dipod_ros.resources import resource  # noqa: E402

CLOCKS = {'wall_s', 'rollout_s', 'update_s', 'other_s', 'cpu_s', 'measure_s'}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=['lag', 'window'])
def tiny(monkeypatch, request):
    """Return a regime of a few seconds whose rollouts are two updates old, or up to two."""
    old = {'lag': 2} if request.param == 'lag' else {'window': 3}
    regime = Regime(
        'tiny', epochs=1, control_steps=550, episodes=4, gap_every=3, effort=0.01, **old
    )
    monkeypatch.setitem(suites.REGIMES, 'tiny', regime)
    return 'tiny'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return (folder, job, result) of a job that nobody disturbed."""
    folder, job = tmp_path_factory.mktemp('whole'), Job('reach', 'dipod', 0, 'smoke')
    shares = []
    result = run_job(job, folder, lambda share, text: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0
    return folder, job, result


@pytest.fixture
def short_gaussian_start(monkeypatch):
    """Let the Gaussian be fitted in a few steps; return the calls."""
    calls = []

    def short(*arguments):
        calls.append(arguments)
        return original(*arguments, steps=3, batch=16)

    original = gaussian_ppo.gaussian_start
    monkeypatch.setattr(gaussian_ppo, 'gaussian_start', short)
    return calls


def finish(training):
    while not training.finished:
        training.step()
    return training


def plain(result):
    """Return a result without its clocks, as it is read back."""
    return {k: v for k, v in json.loads(json.dumps(result)).items() if k not in CLOCKS}


def test_a_result_says_what_happened(whole):
    folder, job, result = whole
    assert read_result(job.file(folder)) == json.loads(json.dumps(result))
    assert result['control_steps'] >= 500 and result['updates'] == len(result['curve'])
    assert result['minutes'] == pytest.approx(result['control_steps'] * 0.04 / 60)
    assert result['episodes'] == 8 * result['updates'] == result['curve'][-1]['episodes']
    assert result['score'] == result['final']['success'] and result['final']['episodes'] == 10
    assert set(result['sweep']) == {'1', '2', '4', '10', '50'}
    assert set(result['zero_noise']) == {'1', '10'}
    assert 0 <= result['student'] <= 1 and math.isfinite(result['gap_nats'])
    # A bound is below the likelihood.
    assert result['exact_gap_nats'] > 0
    assert [len(point) for point in result['gap_curve']] == [3] * len(result['gap_curve'])
    assert result['wall_s'] == pytest.approx(
        result['rollout_s'] + result['update_s'] + result['other_s']
    )
    # The first update fits the critic alone; then something is clipped and the policy moves.
    assert 'clip_fraction' not in result['curve'][0] and 'clip_fraction' in result['curve'][1]
    assert all(row['beta'] == 0.03 for row in result['curve'])


def test_only_result_and_policy_stay(whole):
    folder, job, result = whole
    assert sorted(p.name for p in job.file(folder).parent.iterdir()) == [
        'seed0.json',
        'seed0.policy',
    ]
    policy = load_policy(job.file(folder, '.policy'))
    start = load_policy(resource('models/reach_flow'))
    assert any(not np.array_equal(a, start.weights()[k]) for k, a in policy.weights().items())


def test_a_result_that_is_there_is_not_made_again(whole, monkeypatch):
    folder, job, result = whole
    monkeypatch.setattr(experiment, 'Training', None)
    assert plain(run_job(job, folder)) == plain(result)


def test_a_job_that_was_stopped_gives_the_same_result(whole, tmp_path):
    _, job, result = whole
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        run_job(job, tmp_path, stop=lambda: next(asked))
    assert not job.file(tmp_path).exists() and job.file(tmp_path, '.run.json').exists()
    assert plain(run_job(job, tmp_path)) == plain(result)


def test_a_killed_training_goes_on_bit_by_bit(tiny, tmp_path, assert_same_weights):
    job = Job('reach', 'fpo++', 1, tiny)
    reference = finish(Training(job, tmp_path / 'a'))
    # Rollout i is collected by the version after update i - 3, so two versions are always behind;
    # in a window of three it is the newest, the one before, or the one before that.
    lag = reference.curve[-1]['lag_mean']
    assert lag == 2 if reference.regime.lag else 0.3 < lag < 1.7
    assert sum(4 for _ in reference.curve) == reference.learner.episodes
    assert len(reference.curve) >= 5
    # What a window holds already the critic does not keep besides.
    assert bool(reference.learner.critic.memory()) == (reference.regime.window == 1)
    broken = Training(job, tmp_path / 'b')
    broken.step()
    broken.step()
    broken.step()
    broken.save()
    broken.step()
    # Killed between the two files: the curve knows of an update that the learner does not.
    kept = job.file(tmp_path / 'b', '.state.safetensors').read_bytes()
    broken.save()
    job.file(tmp_path / 'b', '.state.safetensors').write_bytes(kept)
    resumed = Training(job, tmp_path / 'b')
    assert resumed.learner.updates == 3 == len(resumed.curve)
    finish(resumed)
    assert_same_weights(resumed.learner.policy, reference.learner.policy)
    assert resumed.curve == reference.curve
    assert resumed.gap_curve == reference.gap_curve and len(resumed.gap_curve) >= 2


def test_a_state_of_other_settings_is_not_taken_up(tiny, tmp_path, monkeypatch, caplog):
    job = Job('reach', 'fpo++', 1, tiny)
    training = Training(job, tmp_path)
    training.step()
    training.save()
    assert Training(job, tmp_path).learner.updates == 1
    monkeypatch.setitem(suites.REGIMES, tiny, Regime('tiny', epochs=3, episodes=4))
    assert Training(job, tmp_path).learner.updates == 0
    assert 'settings have changed' in caplog.text


def test_a_damaged_state_is_named(tiny, tmp_path):
    job = Job('reach', 'fpo++', 1, tiny)
    training = Training(job, tmp_path)
    training.step()
    training.save()
    job.file(tmp_path, '.run.json').write_text('{"settings": ')
    with pytest.raises(UserError, match='seed1.run.json cannot be read: delete it'):
        Training(job, tmp_path)


def test_a_result_of_other_settings_is_recognised(whole, monkeypatch):
    _, job, result = whole
    sha256 = result['settings']['start_sha256']
    assert not outdated(job, result, sha256)
    assert outdated(job, result, 'another start')
    # A setting that the result knows nothing of yet is no difference.
    newer = json.loads(json.dumps(result))
    del newer['settings']['config']['clip']
    assert not outdated(job, newer, sha256)
    monkeypatch.setitem(suites.REGIMES, 'smoke', Regime('other', epochs=3))
    assert outdated(job, result, sha256)


@pytest.mark.parametrize('text', ['', '[]', '{"schema": "another"}', '{"schema"', '\x00\xff'])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    file = tmp_path / 'seed0.json'
    file.write_text(text)
    with pytest.raises(UserError, match='delete it'):
        read_result(file)


def test_the_alarm_is_off_and_what_it_would_have_said_is_kept(tiny, tmp_path):
    guarded = Training(Job('reach', 'fpo++_guarded', 0, tiny), tmp_path)
    assert guarded.learner.config.health == HealthConfig()
    training = Training(Job('reach', 'fpo++', 0, tiny), tmp_path)
    assert training.learner.config.health.max_cfm_ratio == math.inf
    good = {'cfm_ratio': 1.2, 'action_std_ratio': 0.8, 'return_mean': 0.5, 'success_rate': 0.5}
    training.curve = [good | {'control_steps': 10}, good | {'control_steps': 20}]
    assert training.report()['alarm_at'] is None
    for bad in ({'cfm_ratio': 1.6}, {'action_std_ratio': 0.4}, {'cfm_ratio': math.nan}):
        training.curve[1] = good | bad | {'control_steps': 20}
        assert training.report()['alarm_at'] == alarm_at(training.report()) == 20
    # A chain's velocity is no flow of its actions: its loss says nothing, its spread does.
    chain = Training(Job('reach', 'dppo', 0, tiny), tmp_path)
    chain.curve = [good | {'cfm_ratio': 9.0, 'control_steps': 10}]
    assert chain.report()['alarm_at'] is None and alarm_at(chain.report()) is None


def test_scratch_keeps_the_normaliser_alone(tmp_path):
    shipped = load_policy(resource('models/reach_flow'))
    first, _ = start_policy(Job('reach', 'fpo++', 0, 'scratch'), tmp_path)
    second, _ = start_policy(Job('reach', 'dipod', 7, 'scratch'), tmp_path)
    for name, value in first.weights().items():
        np.testing.assert_array_equal(value, second.weights()[name])
        same = np.array_equal(value, shipped.weights()[name])
        assert same == name.startswith('normalizer') or np.all(value == 0), name


def test_sparse_is_a_tighter_tolerance(tmp_path):
    env = make_worlds(Job('reach', 'fpo++', 0, 'sparse'), 2, 0)
    assert env.task.tolerance == suites.TASKS['reach'].tight_tolerance < 0.025
    assert make_worlds(Job('reach', 'fpo++', 0), 2, 0).task.tolerance == 0.025
    with pytest.raises(UserError, match="use one of .*'reach'"):
        make_worlds(Job('rail_push', 'fpo++', 0, 'sparse'), 2, 0)


def test_a_method_may_act_by_another_sampler(tmp_path):
    policy, _ = start_policy(Job('reach', 'sde_rollouts', 0), tmp_path)
    assert policy.spec.sampler == SamplerSpec('sde', 10)
    # A flow is integrated for its student; a chain keeps its own steps, without their noise.
    assert without_noise(policy, keeps_flow=True).spec.sampler == SWEEP[10]
    chain = policy.with_sampler(SamplerSpec('chain', 4))
    assert without_noise(chain, keeps_flow=False).spec.sampler == SamplerSpec('euler', 4)
    flow = policy.with_sampler(SamplerSpec('euler', 3))
    assert without_noise(flow, keeps_flow=True) is flow


def test_a_task_has_settings_of_its_own_which_a_method_may_replace():
    """A gait's reward is dense: its values are anew in every update, a fall is not everything."""
    gait, arm, kept = (
        Job(*names, 0)
        for names in (('walker2d', 'dipod_0.1'), ('reach', 'dipod_0.1'), ('hopper', 'fpo++_plain'))
    )
    clips = [update_config(job).advantage_clip for job in (gait, arm, kept)]
    assert clips == [3.0, 0.0, 0.0]
    fresh = [CriticConfig(**critic_settings(job)).refresh for job in (gait, arm, kept)]
    assert fresh == [True, False, False]


def test_demonstrations_without_rewards_are_not_for_a_shaped_task():
    jobs = suites.plan(['tuned'])
    chosen = {job.method for job in jobs if job.task == 'rail_push'}
    assert 'dipod_0.1_q_alone' in chosen and not {'dipod_0.1_q', 'fpo++_q'} & chosen
    assert Job('cube_single', 'dipod_0.1_q', 0) in jobs
    with pytest.raises(UserError, match='hold none of the rewards of rail_push: use a method'):
        update_config(Job('rail_push', 'dipod_0.1_q', 0))


@pytest.mark.parametrize('method', ['dppo', 'reinflow', 'gaussian_ppo'])
def test_what_a_method_explores_with_is_not_judged(tmp_path, short_gaussian_start, method):
    job = Job('reach', method, 0, 'smoke')
    training = Training(job, tmp_path)
    keeps_flow = training.learner.algorithm.keeps_flow
    result = measure(job, training.learner.policy, keeps_flow, lambda share: None)
    env = make_worlds(job, Effort.of(job).worlds, seed=EVALUATION_SEED)
    policy = training.learner.policy
    quiet = without_noise(policy, keeps_flow) if training.method.flow else policy
    rate = evaluate_policy(
        env,
        quiet,
        episodes=result['final']['episodes'],
        seed=EVALUATION_SEED,
        zero_noise=not training.method.flow,
    )
    assert result['score'] == rate.success == result['final']['success']
    assert result['sampler'].startswith('euler-' if training.method.flow else 'mean')
    assert 0 <= result['score_exploring'] <= 1


def test_all_seeds_of_gaussian_ppo_share_one_start(tmp_path, short_gaussian_start):
    calls = short_gaussian_start
    first, sha256 = start_policy(Job('reach', 'gaussian_ppo', 0), tmp_path)
    second, _ = start_policy(Job('reach', 'gaussian_ppo_tuned', 1), tmp_path)
    assert len(calls) == 1 and isinstance(second, gaussian_ppo.GaussianPolicy)
    assert sha256 == start_policy(Job('reach', 'fpo++', 1), tmp_path)[1]
    for name, value in first.weights().items():
        np.testing.assert_array_equal(value, second.weights()[name])


def test_scores_are_read_off_means_of_five():
    values = smooth([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert np.isnan(values[:4]).all()
    np.testing.assert_allclose(values[4:], [0.7, 0.9, 1.0])
    steps = np.arange(1, 8) * 100
    assert steps_to(0.8, steps, values) == 600
    assert steps_to(0.95, steps, values) == 700
    assert steps_to(1.01, steps, values) is None
    assert steps_to(0.5, steps[:3], smooth([1.0, 1.0, 1.0])) is None


def test_collapsed_is_below_half_of_the_best():
    assert collapsed(smooth([1.0] * 5 + [0.0] * 5))
    assert not collapsed(smooth([1.0] * 5 + [0.6] * 5))
    assert not collapsed(smooth([0.0] * 10))
    assert not collapsed(smooth([1.0, 0.0]))


def test_plans_take_all_of_seed_0_first():
    jobs = suites.plan(['clip', 'controls'], seeds=2)
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert len(set(jobs)) == len(jobs) == len(set(suites.plan(['controls', 'clip'], seeds=2)))
    few = suites.plan(['main'], seeds=1, tasks=['reach'], methods=['fpo++'], regimes=['stale'])
    assert few == [Job('reach', 'fpo++', 0, 'stale')]
    assert len(suites.plan(['quick'])) == 8
    for name in ('smoke', 'quick'):
        methods = {job.method for job in suites.plan([name])}
        assert 'dipod_0.1' in methods and 'dipod' not in methods


def test_a_method_may_have_a_q_critic_that_saw_the_demonstrations(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_start, 'STARTS', tmp_path / 'starts')
    monkeypatch.setattr(experiment_start, 'DEMONSTRATIONS', 6)
    few = {'first_rounds': 2, 'rounds': 1, 'steps': 10}
    monkeypatch.setitem(METHODS, 'dipod_0.1_q', replace(METHODS['dipod_0.1_q'], q_critic=few))
    training = Training(Job('reach', 'dipod_0.1_q', 0, 'smoke'), tmp_path)
    shown = Demonstrations.load(tmp_path / 'starts/demonstrations/reach.safetensors')
    assert len(training.learner.q.shown) == len(shown.observations)
    assert training.learner.imitation is None and training.settings['q_critic']['members'] == 4
    while not training.finished:
        training.step()
    assert len(training.learner.q.own) > 0


@pytest.mark.parametrize('name', suites.SUITES)
def test_every_suite_can_be_run(name):
    for job in suites.plan([name], seeds=1):
        config = update_config(job)
        regime = suites.REGIMES[job.regime]
        assert regime.clip in (None, config.clip) and regime.epochs in (None, config.epochs)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'suites': ['mian']}, "unknown suite 'mian': use one of .*'main'"),
        ({'tasks': ['push']}, "unknown task 'push': use one of .*'rail_push'"),
        ({'methods': ['ppo']}, "unknown method 'ppo': use one of .*'gaussian_ppo'"),
        ({'regimes': ['late']}, "unknown regime 'late': use one of .*'stale'"),
        ({'seeds': 0}, r'seeds must be within 1\.\.100, got 0'),
        ({'seeds': 101}, 'got 101'),
    ],
)
def test_a_plan_says_what_is_allowed(change, says):
    with pytest.raises(UserError, match=says):
        suites.plan(**({'suites': ['main']} | change))


def test_a_method_may_imitate_what_its_start_was_cloned_from(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_start, 'STARTS', tmp_path / 'starts')
    monkeypatch.setattr(experiment_start, 'DEMONSTRATIONS', 6)
    job = Job('reach', 'dipod_0.1_demos', 0, 'smoke')
    training = Training(job, tmp_path)
    shown = Demonstrations.load(tmp_path / 'starts/demonstrations/reach.safetensors')
    again = record('reach', 6, experiment_start.START_SEED)
    np.testing.assert_array_equal(shown.actions, again.actions)
    good = int(shown.success[shown.episodes].sum())
    assert 0 < len(training.learner.imitation.shown[1]) == good
    assert training.settings['method']['imitation'] == {'weight': 0.3}
    while not training.finished:
        training.step()
    without = finish(Training(Job('reach', 'dipod_0.1', 0, 'smoke'), tmp_path))
    assert without.learner.imitation is None
    pairs = zip(
        training.learner.policy.parameters(), without.learner.policy.parameters(), strict=True
    )
    assert any(not torch.equal(a, b) for a, b in pairs)
