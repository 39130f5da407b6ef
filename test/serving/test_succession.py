# SPDX-License-Identifier: Apache-2.0
"""Who acts next, with real checkpoints and engines in a lockstep loop: everything but ROS."""

import re
import threading

import numpy as np
import pytest
from checkpoints import (
    HORIZON,
    make_limits,
    make_policy,
    make_spec,
    save_fragile_checkpoint,
    save_lying_checkpoint,
)

from dipod_ros.errors import UserError
from dipod_ros.policy.spec import Stream
from dipod_ros.serving.agent import Agent
from dipod_ros.serving.alarm import AlarmConfig, SwapAlarm
from dipod_ros.serving.decisions import DecisionLog, Outcome
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import PolicyLoader
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.loop import LoopConfig
from dipod_ros.serving.noise import NoiseSource
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import ObservationBuffer
from dipod_ros.serving.promotion import APPROVAL, AT_ONCE, SHADOW, PromotionConfig, Rejected
from dipod_ros.serving.safety import SafetyFilter
from dipod_ros.serving.shadow import RUNNING, Shadow
from dipod_ros.serving.succession import Succession
from dipod_ros.serving.swap import IDLE, READY, HotSwap

CHUNK_NS = HORIZON * 40_000_000
START = np.array([0.1, 0.2, 0.3])
LIMITS = make_limits()


def calm(seed):
    """Return a policy whose chunks are well within the limits."""
    return make_policy(seed, step_rad=0.002)


class Rig:
    """The parts of a server as the node puts them together, driven decision by decision."""

    def __init__(self, folder, clock, promotion=None, alarm=None):
        self.folder, self.clock = folder, clock
        self.said = []
        self.changed = threading.Condition()
        noise = NoiseSource('gaussian', 7)
        self.loader = PolicyLoader(LIMITS, 0.04, [folder], EngineFactory('torch'))
        self.swap = HotSwap(self.loader.build, clock, self.on_swap)
        first = self.loader.build(self.loader.validate('first'))
        self.agent = Agent(first, noise, 'tester', self.swap)
        self.shadow = Shadow(
            self.loader.build, LIMITS, 0.04, noise, 0.02, clock, self.on_shadow, wait=True
        )
        self.succession = Succession(
            self.loader,
            self.swap,
            self.shadow,
            lambda: self.agent,
            lambda streams: None,
            # A generous limit of time: no test may depend on how fast this machine is.
            promotion or PromotionConfig(decisions=4, rms_rad=10.0, latency_s=100.0),
            Rejected(),
            self.said.append,
            self.on_change,
        )
        self.alarm = SwapAlarm(alarm or AlarmConfig(window=6))
        self.buffer = ObservationBuffer(clock)
        self.loop = LockstepLoop(
            self.agent,
            self.buffer,
            SafetyFilter(LIMITS, 0.04),
            DecisionLog(clock),
            Notices(),
            LoopConfig(),
            clock,
        )
        self.stamp_ns = 0
        self.records, self.plans = [], []

    def close(self):
        self.shadow.close()
        self.swap.close()

    def on_swap(self):
        if self.swap.state == IDLE and self.swap.count:
            self.succession.on_taken()
        self.on_change()

    def on_change(self):
        with self.changed:
            self.changed.notify_all()

    def on_shadow(self):
        self.succession.on_shadow()
        self.on_change()

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 30)

    def decide(self, count=1):
        """Answer observations as the decision thread does; return the newest decision's policy."""
        for _ in range(count):
            first = self.stamp_ns == 0
            self.loop.on_outcome(Outcome(self.stamp_ns, -1 if first else 0, reset=first))
            self.buffer.put('point', 'goal', np.array([0.1, 0.2, 0.3]), self.stamp_ns)
            self.buffer.put('joint_velocity', 'joint_states', np.zeros(3), self.stamp_ns)
            self.buffer.put('joint_position', 'joint_states', START, self.stamp_ns)
            command, _ = self.loop.step()
            self.plans.append(command.plan.motion.points)
            self.records += self.loop.finished_records()
            self.agent.settle()
            decided = self.loop.decided
            reason = self.alarm.observe(decided)
            if reason:
                self.succession.on_alarm(decided.sampled.policy, reason)
            self.shadow.show(decided)
            self.stamp_ns += CHUNK_NS
        return self.loop.decided.sampled.policy.manifest.path.name

    def swap_to(self, name):
        """Have a checkpoint act from the next decision on."""
        self.succession.ask(name)
        self.wait(lambda: self.swap.state == READY)
        assert self.decide() == name

    def announce(self, name, mode, wait=True):
        manifest = self.loader.validate(name)
        self.succession.consider(str(manifest.path), manifest.sha256, mode)
        if wait and self.succession.candidate is not None:
            self.wait(lambda: self.shadow.state == RUNNING)
        return manifest

    def finish(self):
        self.records += self.loop.finished_records(flush=True)
        return self.records


@pytest.fixture
def make_rig(tmp_path, clock):
    rigs = []
    for name, seed in (('first', 0), ('second', 1), ('third', 2)):
        calm(seed).save(tmp_path / name, version=seed)
    save_fragile_checkpoint(tmp_path / 'fragile', seed=5)
    save_lying_checkpoint(tmp_path / 'liar', seed=6)
    make_policy(9, step_rad=2.0).save(tmp_path / 'wild')  # far beyond what the limits allow

    def make(**more):
        rigs.append(Rig(tmp_path, clock, **more))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig):
    return make_rig()


def test_reload_swaps_when_the_content_changed_and_says_what_happens(rig):
    rig.decide()
    done, said = rig.succession.reload('first')
    assert done and 'acts already' in said
    old = rig.agent.policy.manifest.sha256
    new = calm(3).save(rig.folder / 'first', overwrite=True)
    done, said = rig.succession.reload('first')
    assert done and new.sha256[:12] in said and 'where a chunk ends' in said
    done, said = rig.succession.reload('first')
    assert done and 'on its way already' in said
    rig.wait(lambda: rig.swap.state == READY)
    rig.decide()
    assert rig.agent.policy.manifest.sha256 == new.sha256 != old
    (rig.folder / 'first/manifest.yaml').write_text('format_version: 99')
    done, said = rig.succession.reload('first')
    assert not done and 'format_version' in said
    assert not rig.succession.reload('../elsewhere')[0]


def test_a_policy_whose_streams_cannot_be_heard_is_refused_however_it_is_asked_for(rig):
    refused = 'stream goal: cannot listen to goal: no such luck'

    def deaf(streams):
        raise UserError(refused)

    rig.decide()
    rig.succession._listen = deaf
    rig.succession.ask('second')
    assert refused in rig.succession.refusal and 'second' in rig.succession.refusal
    rig.succession.watch('second')
    assert rig.said[-1].startswith('not swapped: shadow_checkpoint: second (')
    for mode in (AT_ONCE, SHADOW, APPROVAL):
        rig.announce('third', mode)
        assert rig.said[-1].startswith('not swapped: trainer: third (')
        assert rig.succession.candidate is None and rig.shadow.wanted is None
    calm(3).save(rig.folder / 'first', overwrite=True)
    done, said = rig.succession.reload('first')
    assert not done and refused in said
    assert rig.swap.requested is None and rig.decide(2) == 'first'


def test_a_candidate_goes_on_waiting_when_what_would_replace_it_cannot_be_heard(rig):
    rig.decide()
    rig.announce('second', APPROVAL)

    def deaf(streams):
        raise UserError('no such luck')

    rig.succession._listen = deaf
    rig.announce('third', APPROVAL, wait=False)
    rig.succession.ask('third')
    assert rig.succession.candidate.manifest.path.name == 'second'
    assert 'no such luck' in rig.succession.refusal and rig.swap.requested is None


def test_rollback_goes_back_without_a_build_and_back_again(rig):
    assert rig.succession.rollback(False) == (False, 'no other policy has acted before this one')
    rig.decide()
    first = rig.agent.policy
    rig.swap_to('second')
    rig.loader.build = None  # nothing is built from here on
    done, said = rig.succession.rollback(False)
    assert done and said.startswith('first (')
    assert rig.decide() == 'first' and rig.agent.policy is first
    assert rig.succession.rollback(False)[0] and rig.decide() == 'second'
    assert [r.source for r in rig.swap.history] == ['parameter', 'rollback', 'rollback']
    assert rig.succession.hold == ''


def test_rollback_twice_before_a_chunk_ends_changes_nothing(rig):
    rig.decide()
    rig.swap_to('second')
    assert rig.succession.rollback(False)[0]
    done, said = rig.succession.rollback(False)
    assert done and 'second' in said and 'keeps acting' in said
    assert rig.decide() == 'second'
    assert rig.succession.rollback(False)[0] and rig.decide() == 'first'


def test_a_policy_that_waits_for_a_stream_in_vain_can_be_rolled_back(rig):
    depth = Stream('depth', 'vector', 2, 'depth')
    spec = make_policy(1).spec
    make_policy(1, streams=(*spec.streams, depth)).save(rig.folder / 'deep')
    rig.decide()
    rig.succession.ask('deep')
    rig.wait(lambda: rig.swap.state == READY)
    with pytest.raises(TypeError):
        rig.decide()  # no answer
    assert rig.agent.policy.manifest.path.name == 'deep'
    assert rig.succession.rollback(False)[0]
    assert rig.loop.step() is None
    rig.clock.advance(10.0)
    assert 'depth' in rig.loop.look_around()
    assert rig.loop.step() is not None and rig.agent.policy.manifest.path.name == 'first'


def test_rollback_drops_what_was_requested(rig):
    rig.decide()
    rig.swap_to('second')
    rig.succession.ask('third')
    done, said = rig.succession.rollback(False)
    assert done and 'the request for third' in said
    assert rig.decide(3) == 'first'


def test_records_around_a_rollback_carry_who_acted_and_are_executed_as_sampled(rig):
    rig.decide(2)
    rig.swap_to('second')
    rig.decide()
    rig.succession.rollback(False)
    rig.decide(2)
    records = rig.finish()
    sha = {n: rig.loader.validate(n).sha256 for n in ('first', 'second')}
    names = ['first', 'first', 'second', 'second', 'first', 'first']
    assert [r.policy_sha for r in records] == [sha[n] for n in names]
    assert [r.seq for r in records] == list(range(6))
    # All but the last, which the end of the test cut short, were executed to their end.
    assert [r.interrupted for r in records] == [False] * 5 + [True]
    policies = {n: calm(seed) for n, seed in (('first', 0), ('second', 1))}
    for record, name, points in zip(records[:5], names[:5], rig.plans[:5], strict=True):
        chunk = policies[name].act(record.observation[None], record.noise[None])[0]
        np.testing.assert_allclose(record.chunk, chunk, atol=1e-6)
        np.testing.assert_allclose(record.executed, points[:HORIZON], rtol=1e-6)


@pytest.mark.parametrize(('name', 'says'), [('fragile', 'not finite'), ('wild', 'were moved by')])
def test_an_alarm_rolls_back_and_rejects(rig, name, says):
    rig.decide(6)
    rig.swap_to(name)
    for _ in range(8):
        if rig.decide() == 'first':
            break
    assert rig.agent.policy.manifest.path.name == 'first'
    assert says in rig.succession.alarm and 'back to first' in rig.succession.alarm
    assert rig.said == [rig.succession.alarm]
    last = rig.swap.history[-1]
    assert (last.source, last.result) == ('alarm', 'active') and says in last.reason
    # It does not come back by itself, nor by the ways around its name.
    bad = rig.announce(name, AT_ONCE)
    assert rig.swap.requested is None and 'was rejected' in rig.succession.refusal
    assert not rig.succession.rollback(False)[0]
    done, said = rig.succession.reload(name)
    assert not done and 'set checkpoint' in said
    assert rig.decide() == 'first'
    # By its name it does; and it is still watched.
    rig.succession.ask(name)
    assert rig.succession.rejected.reason(bad.sha256) == ''
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.decide() == name
    assert rig.succession.rejected.reason(bad.sha256) == '' or name == 'fragile'


def test_what_was_sampled_by_a_broken_policy_is_interrupted_and_its_own(rig):
    rig.decide(2)
    rig.swap_to('fragile')
    rig.decide(2)
    records = rig.finish()
    sha = {n: rig.loader.validate(n).sha256 for n in ('first', 'fragile')}
    assert [r.policy_sha for r in records] == [
        sha[n] for n in ('first', 'first', 'fragile', 'first', 'first')
    ]
    assert [r.interrupted for r in records] == [False, False, True, False, True]
    assert np.isnan(records[2].executed).all()


def test_an_alarm_with_nothing_sound_to_go_back_to_says_so(rig):
    rig.decide(6)
    rig.swap_to('fragile')
    rig.decide()
    rig.succession.ask('fragile')
    rig.wait(lambda: rig.swap.state == READY)
    rig.succession.rejected.add(rig.loader.validate('first').sha256, 'a person said so')
    assert rig.decide() == 'fragile'
    assert 'nothing to go back to' in rig.succession.alarm
    assert rig.decide() == 'fragile'


def test_a_rollback_holds_the_trainer_off_until_an_approval(rig):
    rig.decide()
    rig.announce('second', AT_ONCE)
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.decide() == 'second'
    done, said = rig.succession.rollback(True)
    assert done and 'announcements wait for ~/approve' in said and rig.succession.hold in said
    rig.announce('third', AT_ONCE)
    assert rig.succession.candidate.mode == APPROVAL
    assert rig.decide(8) == 'first'
    done, said = rig.succession.approve()
    assert done and 'third' in said and rig.succession.hold == ''
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.decide() == 'third'
    rig.announce('second', AT_ONCE)
    rig.wait(lambda: rig.swap.state == READY)  # announcements are followed again


@pytest.mark.parametrize('release', ['ask', 'follow', 'approve'])
def test_a_hold_ends_when_a_person_says_so(rig, release):
    rig.decide()
    rig.swap_to('second')
    rig.succession.rollback(True)
    rig.decide()
    assert rig.succession.hold
    {
        'ask': lambda: rig.succession.ask('first'),
        'follow': lambda: rig.succession.follow(True),
        'approve': lambda: rig.succession.approve(),
    }[release]()
    assert rig.succession.hold == ''


def test_a_rollback_takes_an_automatic_promotion_into_a_persons_hands(rig):
    rig.decide()
    rig.swap_to('second')
    rig.announce('third', SHADOW)
    rig.succession.rollback(True)
    assert rig.decide(10) == 'first' and rig.succession.candidate.mode == APPROVAL


def test_approval_waits_and_a_newer_announcement_takes_the_place(rig):
    assert rig.succession.approve() == (False, 'no checkpoint of the trainer waits for approval')
    rig.decide()
    rig.announce('second', APPROVAL)
    rig.announce('third', APPROVAL)
    assert rig.decide(10) == 'first'
    assert rig.shadow.figures.compared == 10
    assert rig.succession.approve()[0]
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.decide() == 'third'
    assert [(r.sha256[:4], r.result) for r in rig.swap.history] == [
        (rig.loader.validate('second').sha256[:4], 'superseded'),
        (rig.loader.validate('third').sha256[:4], 'active'),
    ]


def test_what_is_rejected_stays_out(rig):
    assert not rig.succession.reject()[0]
    rig.decide()
    rig.announce('second', APPROVAL)
    assert rig.succession.reject()[0] and rig.succession.candidate is None
    assert rig.swap.history[-1].result == 'refused'
    rig.announce('second', AT_ONCE)
    assert rig.swap.requested is None and 'rejected by ~/reject' in rig.succession.refusal
    assert not rig.succession.approve()[0]


def test_a_candidate_that_passes_in_the_shadow_acts_from_the_next_decision_on(rig):
    rig.decide()
    rig.announce('second', SHADOW)
    names = [rig.decide() for _ in range(5)]
    assert names == ['first'] * 4 + ['second']
    record = rig.swap.history[-1]
    assert (record.source, record.reason) == ('trainer', 'passed 4 decisions in the shadow')
    assert rig.succession.candidate is None and rig.shadow.wanted is None


@pytest.mark.parametrize(
    ('name', 'limits', 'says'),
    [
        ('second', {'rms_rad': 1e-6}, r'rad \(rms\) away'),
        ('wild', {}, 'would be clamped'),
        ('second', {'latency_s': 0.0009}, r'takes 1 ms \(p99\), allowed 0.9'),
        ('fragile', {}, 'failed in the shadow'),
        ('liar', {}, 'golden check'),
    ],
)
def test_a_candidate_that_does_not_pass_is_refused_with_the_reason(make_rig, name, limits, says):
    generous = {'decisions': 4, 'rms_rad': 1e3, 'latency_s': 100.0}
    rig = make_rig(promotion=PromotionConfig(**(generous | limits)))
    # An inference takes a millisecond on this clock.
    rig.shadow._clock = lambda: rig.clock.advance(0.001) or rig.clock.now
    rig.decide()
    manifest = rig.announce(name, SHADOW, wait=name != 'liar')
    if name == 'liar':
        rig.wait(lambda: rig.succession.candidate is None)
    assert rig.decide(6) == 'first'
    reason = rig.succession.rejected.reason(manifest.sha256)
    assert re.search(says, reason), reason
    assert reason in rig.succession.refusal
    assert rig.swap.history[-1].result == 'refused' and rig.swap.count == 0


def test_a_person_goes_before_a_candidate(rig):
    rig.decide()
    rig.announce('second', SHADOW)
    rig.succession.ask('third')
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.succession.candidate is None
    assert rig.decide(8) == 'third'


def test_no_longer_following_the_trainer_ends_its_candidate(rig):
    rig.decide()
    rig.announce('second', SHADOW)
    rig.succession.follow(False)
    assert rig.succession.candidate is None and rig.decide(8) == 'first'


def test_no_longer_following_the_trainer_stops_its_swap_that_is_ready(rig):
    rig.decide()
    rig.announce('second', AT_ONCE)
    rig.wait(lambda: rig.swap.state == READY)
    rig.succession.follow(False)
    assert rig.swap.requested is None and rig.decide(4) == 'first'
    last = rig.swap.history[-1]
    assert (last.result, last.reason) == ('superseded', 'follow_trainer was switched off')


def test_no_longer_following_the_trainer_stops_its_swap_that_is_being_built(rig):
    rig.decide()
    begun, let = threading.Event(), threading.Event()
    build = rig.swap._build
    rig.swap._build = lambda manifest: (begun.set(), let.wait(30), build(manifest))[-1]
    rig.announce('second', AT_ONCE)
    assert begun.wait(30)
    rig.succession.follow(False)
    let.set()
    rig.swap.close()  # waits for the build
    assert rig.decide(4) == 'first'
    last = rig.swap.history[-1]
    assert (last.result, last.reason) == ('superseded', 'follow_trainer was switched off')


def test_no_longer_following_the_trainer_leaves_what_a_person_asked_for(rig):
    rig.decide()
    rig.succession.ask('third')
    rig.succession.follow(False)
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.decide() == 'third'


@pytest.mark.parametrize('mode', [SHADOW, APPROVAL])
def test_asking_for_the_acting_policy_by_name_ends_a_candidate(rig, mode):
    rig.decide()
    rig.announce('second', mode)
    rig.succession.ask('first')
    assert rig.succession.candidate is None and rig.shadow.wanted is None
    assert rig.swap.history[-1].result == 'superseded'
    assert rig.decide(8) == 'first' and not rig.succession.approve()[0]


def test_the_shadow_returns_to_what_it_was_told_to_watch(rig):
    rig.decide()
    rig.succession.watch('third')
    rig.wait(lambda: rig.shadow.state == RUNNING)
    rig.decide(2)
    assert rig.shadow.figures.compared == 2
    rig.announce('second', SHADOW)
    assert rig.shadow.wanted.path.name == 'second'
    rig.decide(4)
    assert rig.shadow.wanted.path.name == 'third'
    rig.succession.watch('')
    assert rig.shadow.wanted is None
    rig.succession.watch('nobody')
    assert 'nobody' in rig.succession.refusal and rig.shadow.wanted is None


def test_with_the_same_swap_moments_everything_happens_again(make_rig):
    """A candidate that passes, a rollback and an alarm, twice: the same to the last bit."""

    def run():
        rig = make_rig()
        rig.decide(3)
        rig.announce('second', SHADOW)
        rig.decide(5)
        figures = rig.shadow.figures
        rig.succession.rollback(False)
        rig.decide(7)
        rig.swap_to('wild')
        rig.decide(8)
        return rig.finish(), rig.plans, figures, rig.succession.alarm

    one, two = run(), run()
    assert [r.policy_sha for r in one[0]] == [r.policy_sha for r in two[0]]
    assert len({r.policy_sha for r in one[0]}) == 3
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[2:] == two[2:] and 'wild' in one[3]


def test_a_shadow_changes_nothing_of_what_is_commanded(make_rig):
    alone, watched = make_rig(), make_rig()
    alone.decide(8)
    watched.succession.watch('second')
    watched.wait(lambda: watched.shadow.state == RUNNING)
    watched.decide(8)
    assert watched.shadow.figures.compared == 8
    for a, b in zip(alone.plans, watched.plans, strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_what_may_act_is_listened_to(rig):
    """Who acts, who acted before, and what is on its way or in the shadow."""
    heard = []
    rig.succession._listen = lambda streams: heard.append({s.topic for s in streams})
    for k in range(5):
        extra = Stream(f'extra{k}', 'vector', 2, f'extra{k}')
        make_policy(k, step_rad=0.002, streams=(*make_spec().streams, extra)).save(
            rig.folder / f'with{k}'
        )
        rig.buffer.put('vector', extra.topic, np.zeros(2), 0)
    rig.decide()
    for k in range(3):
        rig.swap_to(f'with{k}')
    rig.announce('with3', APPROVAL)
    assert {t for t in heard[-1] if 'extra' in t} == {'extra1', 'extra2', 'extra3'}
    rig.succession.ask('with4')
    expected = {'extra1', 'extra2', 'extra3', 'extra4', 'joint_states', 'goal'}
    assert {t for t in heard[-1] if t} == expected
    rig.wait(lambda: rig.swap.state == READY)
    assert rig.decide() == 'with4'
    rig.succession.ask('first')
    assert {t for t in heard[-1] if 'extra' in t} == {'extra2', 'extra4'}
