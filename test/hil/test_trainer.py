# SPDX-License-Identifier: Apache-2.0
"""The trainer as a process: fed with decisions, watched from its topics, killed and resumed."""

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import save_checkpoint  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from node_process import TIMEOUT_S, NodeProcess  # noqa: E402
from peer import Peer, make_context  # noqa: E402
from std_msgs.msg import Float64MultiArray, String, UInt8MultiArray  # noqa: E402

from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.policy import checkpoint as ckpt  # noqa: E402
from dipod_ros.policy.decision import MAX_BYTES, Decision, encode  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.ros import messages, qos  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(400)]

EPISODES, STEPS = 4, 3


class Trainer(NodeProcess):
    """The trainer, learning from a policy in `folder`."""

    def __init__(self, folder, **parameters):
        given = {
            'checkpoint': str(folder / 'initial'),
            'model_dirs': [str(folder)],
            'run_dir': str(folder / 'run'),
            'episodes_per_update': EPISODES,
            'epochs': 2,
            'critic_warmup_updates': 0,
            'gap_every': 0,
            'student_train_steps': 20,
            'tensorboard': False,
            **parameters,
        }
        super().__init__(folder, 'trainer', given)


class Actor(Peer):
    """Plays a policy server: publishes decisions of a real policy, hears the announcements."""

    services_of = 'trainer'

    def __init__(self, context, folder):
        super().__init__(context, 'actor')
        self.checkpoints, self.students, self.statuses, self.metrics = [], [], [], []
        self.diagnostics = []
        self.seq = self.episode = 0
        self.rng = np.random.default_rng(0)
        self.use(folder / 'initial')
        self._replay = self.create_publisher(UInt8MultiArray, 'replay', qos.REPLAY)
        listen = self.create_subscription
        for topic, kept in (
            ('checkpoint', self.checkpoints),
            ('student', self.students),
            ('status', self.statuses),
        ):
            listen(
                String,
                f'trainer/{topic}',
                lambda m, kept=kept: self._add(kept, json.loads(m.data)),
                qos.LATCHED,
            )
        listen(
            Float64MultiArray,
            'trainer/metrics',
            lambda m: self._add(
                self.metrics,
                dict(zip(m.layout.dim[0].label.split(','), m.data, strict=True)),
            ),
            qos.STATE,
        )
        listen(DiagnosticArray, '/diagnostics', lambda m: self._add(self.diagnostics, m), 10)
        self.begin()

    def use(self, path):
        self.policy = load_policy(path)
        self.sha = ckpt.read_manifest(path).sha256

    def wait_connected(self):
        self.wait_until(self._replay.get_subscription_count, 'the trainer')

    def act_until(self, condition):
        """Act, as a robot goes on acting, until a condition holds.

        After a trainer was killed, its subscription is counted until its lease ends, so that
        nothing tells when its successor hears what is published.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            self.act()
            with self.news:
                if self.news.wait_for(condition, 5.0):
                    return
        raise AssertionError('acted in vain')

    def act(self, episodes=EPISODES, steps=STEPS, **changes):
        """Publish whole episodes of the policy in use."""
        spec = self.policy.spec
        for _ in range(episodes):
            success = bool(self.rng.random() < 0.5)
            observations, noise = (
                self.rng.standard_normal((steps, size)).astype(np.float32)
                for size in (spec.observation_size, spec.noise_size)
            )
            chunks = self.policy.act(observations, noise)
            for step, made in enumerate(zip(observations, noise, chunks, strict=True)):
                last = step == steps - 1
                self.publish(encode(self.decision(step, last, success, *made, **changes)))
                if step % 100 == 99:
                    time.sleep(0.05)  # no faster than a network loses nothing
            self.episode += 1

    def decision(self, step, last, success, observation, noise, chunk, **changes):
        values = {
            'actor': 'arm',
            'seq': self.seq,
            'episode': self.episode,
            'step': step,
            'policy_sha': self.sha,
            'stamp_s': 0.0,
            'observation': observation,
            'noise': noise,
            'chunk': chunk,
            'executed': np.cumsum(chunk, axis=0),
            'reward': float(last and success),
            'success': last and success,
            'terminated': last,
            'truncated': False,
            'clamp_rad': 0.0,
            'interrupted': False,
            'latency_s': 0.001,
        }
        self.seq += 1
        return Decision(**values | changes)

    def publish(self, payload):
        self._replay.publish(messages.payload_msg(payload))


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / 'initial')
    return tmp_path


@pytest.fixture
def actor(folder):
    context = make_context()
    actor = Actor(context, folder)
    yield actor
    actor.close()
    context.shutdown()


@pytest.fixture
def demonstrations(folder):
    """Write six demonstrations of random chunks, half of them successes; return the file."""
    spec = ckpt.read_manifest(folder / 'initial').spec
    rng = np.random.default_rng(1)
    count = 6 * STEPS
    Demonstrations(
        spec=spec,
        observations=rng.standard_normal((count, spec.observation_size)).astype(np.float32),
        actions=(0.02 * rng.standard_normal((count, spec.horizon, len(spec.joints)))).astype(
            np.float32
        ),
        episodes=np.repeat(np.arange(6), STEPS),
        success=np.arange(6) % 2 == 0,
        seed=1,
    ).save(folder / 'demonstrations.safetensors')
    return str(folder / 'demonstrations.safetensors')


@pytest.fixture
def start(folder):
    started = []

    def start(**parameters):
        started.append(Trainer(folder, **parameters))
        return started[-1]

    yield start
    for trainer in started:
        if trainer.process.poll() is None:
            trainer.process.kill()
            trainer.process.wait()


def test_replay_becomes_an_announced_checkpoint_that_loads(start, actor):
    trainer = start()
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.checkpoints)
    announced = actor.checkpoints[0]
    loaded = ckpt.load(announced['path'])
    assert loaded.manifest.sha256 == announced['sha256'] != actor.sha
    assert (announced['version'], announced['kind']) == (1, 'flow')
    assert loaded.manifest.lineage['parent'] == actor.sha
    actor.wait(lambda: actor.metrics)
    metrics = actor.metrics[0]
    assert metrics['episodes'] == EPISODES and metrics['collapsed'] == 0
    # What acted and what learning assumes are the same policy, up to float32 of two machines.
    assert metrics['policy_mismatch_rad'] < 1e-5
    assert 0 <= metrics['clip_fraction'] <= 1 and metrics['gradient_norm'] > 0
    assert trainer.stop() == 0


def test_another_sampler_is_announced_at_the_start_and_learned_with(start, actor):
    own = actor.policy.spec.sampler
    sampler = 'euler-3' if own.solver == 'midpoint' else 'midpoint-3'
    trainer = start(sampler=sampler)
    actor.wait(lambda: actor.checkpoints)
    begun = actor.checkpoints[0]
    assert (begun['version'], begun['kind'], begun['sha256']) == (0, 'flow', actor.sha)
    actor.wait_connected()
    actor.use(begun['path'])
    assert str(actor.policy.spec.sampler).startswith(f'{sampler} ')
    actor.act()
    actor.wait(lambda: len(actor.checkpoints) > 1)
    learned = ckpt.read_manifest(actor.checkpoints[1]['path'])
    assert learned.version == 1 and learned.spec.sampler == actor.policy.spec.sampler
    actor.wait(lambda: actor.metrics)
    assert actor.metrics[0]['policy_mismatch_rad'] < 1e-5
    assert trainer.stop() == 0


def test_killed_at_any_time_it_resumes_from_whole_files(start, actor, folder):
    trainer = start()
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.checkpoints)
    actor.use(actor.checkpoints[-1]['path'])
    actor.act()  # an update is on its way, or not, when the process dies
    trainer.stop(signal.SIGKILL)
    whole = [p for p in sorted((folder / 'run/checkpoints').iterdir()) if p.name[0] != '.']
    versions = [ckpt.load(path).manifest.version for path in whole]
    assert versions and versions == list(range(1, len(versions) + 1))
    actor.checkpoints.clear()
    actor.statuses.clear()
    start()
    actor.wait(lambda: actor.checkpoints and actor.statuses)
    assert actor.statuses[0]['resumed']
    resumed = actor.checkpoints[0]['version']
    assert resumed >= 1
    actor.use(actor.checkpoints[0]['path'])
    actor.seq, actor.episode = 1000, 1000
    actor.act_until(lambda: any(c['version'] == resumed + 1 for c in actor.checkpoints))


def test_a_seed_is_drawn_for_a_run_and_kept_when_it_goes_on(start, actor, folder):
    trainer = start(seed=-1)
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.checkpoints)
    seed = actor.statuses[-1]['seed']
    assert seed >= 0 and f'seed {seed} (drawn)' in trainer.log
    assert ckpt.read_manifest(actor.checkpoints[-1]['path']).lineage['seed'] == seed
    assert trainer.stop() == 0
    actor.statuses.clear()
    trainer = start(seed=-1)
    actor.wait(lambda: actor.statuses and actor.statuses[-1]['resumed'])
    assert actor.statuses[-1]['seed'] == seed
    assert f'seed {seed} (of the resumed run)' in trainer.log
    assert trainer.stop() == 0
    actor.statuses.clear()
    start(seed=-1, run_dir=str(folder / 'another'))
    actor.wait(lambda: actor.statuses and not actor.statuses[-1]['resumed'])
    assert actor.statuses[-1]['seed'] != seed


def test_a_q_critic_learns_from_replay_and_demonstrations_and_survives_a_kill(
    start, actor, demonstrations
):
    given = {'q_critic': True, 'demonstrations': demonstrations, 'demo_weight': 0.0, 'ema': 0.5}
    trainer = start(**given)
    actor.wait_connected()
    for version in (1, 2):
        actor.act()
        actor.wait(lambda v=version: [c for c in actor.checkpoints if c['version'] == v])
        actor.use(actor.checkpoints[-1]['path'])
    actor.wait(lambda: len(actor.metrics) == 2)
    for metrics in actor.metrics:
        assert 0 < metrics['q_loss'] < 1 and metrics['update_s'] > 0
        # Q alone learns from them.
        assert 'demo_loss' not in metrics
    update = ckpt.read_manifest(actor.checkpoints[-1]['path']).lineage['update']
    assert update['ema'] == 0.5
    trainer.stop(signal.SIGKILL)
    actor.statuses.clear()
    start(**given)
    actor.wait(lambda: actor.statuses)
    # What Q remembers came back with the rest: without it the state is refused.
    assert actor.statuses[0]['resumed'] and actor.statuses[0]['updates'] == 2


def test_rewards_that_q_cannot_learn_beside_demonstrations_end_it_with_the_reason(
    start, actor, demonstrations, folder
):
    trainer = start(q_critic=True, demonstrations=demonstrations)
    actor.wait_connected()
    actor.act(reward=0.3)
    reason = 'give the Q critic no demonstrations, or leave q_critic off'
    assert trainer.exit_code() == 2
    assert reason in trainer.log and 'Traceback' not in trainer.log
    told = [s.message for m in actor.diagnostics for s in m.status if s.level == s.ERROR]
    assert told and reason in told[-1]
    assert actor.statuses[-1]['state'] == 'error' and reason in actor.statuses[-1]['error']
    assert not (folder / 'run/learner.safetensors').exists()


def test_rewards_that_will_end_it_are_told_of_when_the_first_episode_shows_them(
    start, actor, demonstrations
):
    trainer = start(q_critic=True, demonstrations=demonstrations)
    actor.wait_connected()
    actor.act(episodes=1, reward=0.3)
    reason = 'give the Q critic no demonstrations, or leave q_critic off'
    actor.wait(lambda: actor.statuses and reason in actor.statuses[-1]['error'])
    assert actor.statuses[-1]['state'] == 'waiting' and trainer.process.poll() is None

    def told():
        return [s for m in list(actor.diagnostics) for s in m.status if reason in s.message]

    actor.wait(told)
    assert told()[-1].level == told()[-1].ERROR
    assert trainer.log.count(reason) == 1
    actor.act(episodes=EPISODES - 1)
    assert trainer.exit_code() == 2
    assert 'Traceback' not in trainer.log


def test_finish_distils_a_student_and_hands_over(start, actor):
    start()
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.checkpoints)
    assert actor.call('finish').success
    actor.wait(lambda: actor.statuses and actor.statuses[-1]['state'] == 'finished')
    actor.wait(lambda: actor.checkpoints[-1]['kind'] == 'student')
    student = ckpt.load(actor.checkpoints[-1]['path'])
    assert student.spec.sampler.evaluations == 1
    assert student.manifest.lineage['teacher'] == actor.checkpoints[-2]['sha256']
    assert not actor.call('finish').success


def test_a_run_that_had_all_its_updates_goes_on_with_its_student_alone(start, actor):
    trainer = start(max_updates=1, student_train_steps=1_000_000)
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.statuses and actor.statuses[-1]['state'] == 'distilling')
    trainer.stop(signal.SIGKILL)
    actor.checkpoints.clear()
    actor.statuses.clear()
    start(max_updates=1)
    actor.wait(lambda: [s for s in actor.statuses if s['state'] == 'finished'])
    assert actor.statuses[-1]['resumed'] and actor.statuses[-1]['updates'] == 1
    actor.wait(lambda: actor.checkpoints and actor.checkpoints[-1]['kind'] == 'student')
    student = ckpt.read_manifest(actor.checkpoints[-1]['path'])
    assert student.version == 1


def test_an_end_that_is_interrupted_hands_nothing_over(start, actor):
    """There is a student, but the one that the robot would act with is not made yet."""
    trainer = start(student='fresh', student_fresh_steps=5, student_train_steps=1_000_000)
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.students and actor.checkpoints)
    assert actor.call('finish').success
    actor.wait(lambda: actor.statuses[-1]['state'] == 'distilling')
    assert trainer.stop() == 0
    time.sleep(1.0)  # what was published at the very end is on its way
    assert 'finished' not in [s['state'] for s in actor.statuses]
    assert [c['kind'] for c in actor.checkpoints] == ['flow']


def test_students_are_made_beside_learning(start, actor):
    start(student='every_n', student_every=1)
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.students)
    assert ckpt.read_manifest(actor.students[0]['path']).kind == 'student'
    assert [c['kind'] for c in actor.checkpoints] == ['flow']


def test_a_fresh_student_comes_with_every_checkpoint(start, actor):
    start(student='fresh', student_fresh_steps=5)
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.students and actor.checkpoints)
    student = ckpt.read_manifest(actor.students[0]['path'])
    assert student.kind == 'student'
    assert student.lineage['teacher'] == actor.checkpoints[0]['sha256']
    # The robot goes on with the flow until learning ends.
    assert [c['kind'] for c in actor.checkpoints] == ['flow']
    assert actor.call('finish').success
    actor.wait(lambda: actor.checkpoints[-1]['kind'] == 'student')
    actor.wait(lambda: actor.checkpoints[-1]['sha256'] == actor.students[-1]['sha256'])


def test_nothing_is_learned_from_what_was_not_executed_or_is_not_a_decision(start, actor):
    start()
    actor.wait_connected()
    actor.publish(b'not a decision')
    actor.publish(bytes(MAX_BYTES + 1))
    for seq in (0, 10**400):  # no float holds what would be lost in between
        actor.act(episodes=1, steps=1, actor='other', terminated=False, seq=seq)
    actor.act(interrupted=True)
    actor.act(policy_sha='0' * 64)
    actor.act()  # the first that may be learned from
    actor.wait(lambda: actor.metrics)
    metrics = actor.metrics[0]
    assert metrics['episodes'] == EPISODES
    assert metrics['replay_interrupted'] == EPISODES * STEPS
    assert metrics['replay_stale'] == EPISODES * STEPS
    assert metrics['replay_invalid'] == 1 and metrics['replay_lost'] == 0


def test_episodes_too_long_for_the_usual_memory_are_learned_from_all_the_same(start, actor):
    """64 of 330 decisions are more than the 20 000 that wait otherwise."""
    start(episodes_per_update=64, epochs=1, minibatches=1, samples_per_action=1, samples_per_step=1)
    actor.wait_connected()
    for _ in range(192):  # more than that, where the machine is too busy to hear all of them
        actor.act(episodes=1, steps=330)
        if actor.metrics:
            break
    actor.wait(lambda: actor.metrics, 20.0)
    metrics = actor.metrics[0]
    assert metrics['episodes'] == 64 and metrics['decisions'] == 64 * 330
    assert metrics['replay_overflow'] == 0


@pytest.mark.parametrize(
    ('changes', 'why'),
    [
        ({'policy_sha': '0' * 64}, 'of policies too old or unknown'),
        ({'interrupted': True, 'terminated': False}, 'not executed as sampled'),
        ({'seq': 7}, 'repeat numbers'),
    ],
)
def test_a_stream_that_nothing_can_be_learned_from_is_told_of(start, actor, changes, why):
    start()
    actor.wait_connected()
    actor.act(episodes=101, **changes)

    def told():
        return [s for m in list(actor.diagnostics) for s in m.status if why in s.message]

    actor.wait(told)
    assert told()[-1].level == told()[-1].WARN
    assert 'nothing to learn from' in told()[-1].message
    if 'seq' not in changes:
        actor.act()
        actor.wait(lambda: actor.metrics)
        actor.diagnostics.clear()
        actor.wait(lambda: any(s.level == s.OK for m in list(actor.diagnostics) for s in m.status))


@pytest.mark.parametrize(
    ('parameters', 'reason'),
    [
        ({'checkpoint': ''}, 'parameter checkpoint is empty'),
        ({'checkpoint': 'nowhere'}, "no checkpoint 'nowhere'"),
        ({'checkpoint': '/etc'}, 'outside the model folders'),
        ({'run_dir': '/proc/run'}, 'cannot write run_dir'),
        ({'sampler': 'midpoint'}, 'write SOLVER-STEPS, such as midpoint-5'),
        ({'trust_region': 'none'}, 'trust_region'),
        ({'seed': -2}, 'seed'),
        ({'demonstratons': 'x'}, 'did you mean demonstrations?'),
        ({'clip': 0.0}, 'clip must be above 0'),
        ({'ema': 1.0}, 'ema must be at least 0 and below 1'),
    ],
)
def test_bad_parameters_end_it_with_one_line(start, parameters, reason):
    trainer = start(**parameters)
    assert trainer.process.wait(TIMEOUT_S) == 2
    assert reason in trainer.log and 'Traceback' not in trainer.log


def test_two_trainers_do_not_learn_in_one_folder(start, actor):
    first = start()
    actor.wait_connected()
    second = start()
    assert second.exit_code() == 2
    assert 'is in use: another process learns there' in second.log
    assert 'Traceback' not in second.log
    actor.act()
    actor.wait(lambda: actor.checkpoints)
    assert first.stop() == 0


def test_another_initial_checkpoint_does_not_resume_a_run(start, actor, folder):
    trainer = start()
    actor.wait_connected()
    actor.act()
    actor.wait(lambda: actor.checkpoints)
    trainer.stop()
    save_checkpoint(folder / 'other', seed=5)
    second = start(checkpoint=str(folder / 'other'))
    assert second.process.wait(TIMEOUT_S) == 2
    assert 'began with another checkpoint' in second.log
