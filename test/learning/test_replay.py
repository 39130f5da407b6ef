# SPDX-License-Identifier: Apache-2.0
"""From the stream of a lossy network only whole episodes come out, and every loss is counted."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipod_ros.errors import UserError
from dipod_ros.learning.replay import MAX_ACTORS, MAX_GAP, ReplayAssembler
from dipod_ros.policy.decision import Decision

SHA = 'ab' * 32
OLD = 'cd' * 32


def every_version(sha):
    return 4


def only_new(sha):
    return {SHA: 4}.get(sha)


def decision(step, *, last=False, episode=0, seq=None, actor='arm', **changes):
    """Return a decision whose observation says where it belongs: (actor, episode, step)."""
    values = {
        'actor': actor,
        'seq': step if seq is None else seq,
        'episode': episode,
        'step': step,
        'policy_sha': SHA,
        'stamp_s': 0.2 * step,
        'observation': np.array([sum(map(ord, actor)), episode, step], dtype=np.float32),
        'noise': np.full(4, step, dtype=np.float32),
        'chunk': np.full((2, 2), 0.01 * step, dtype=np.float32),
        'executed': np.zeros((2, 2), dtype=np.float32),
        'reward': float(step),
        'success': last,
        'terminated': last,
        'truncated': False,
        'clamp_rad': 0.0,
        'interrupted': False,
        'latency_s': 0.001,
    }
    return Decision(**(values | changes))


def episode_of(length, *, episode=0, first_seq=0, **options):
    return [
        decision(k, last=k == length - 1, episode=episode, seq=first_seq + k, **options)
        for k in range(length)
    ]


@pytest.fixture(scope='module')
def spec(make_spec):
    return make_spec(size=2, horizon=2, observed=3)


@pytest.fixture
def assembler(spec):
    return ReplayAssembler(spec)


def feed(assembler, decisions):
    for d in decisions:
        assembler.add(d)
    return assembler


def steps_of(rollout):
    return rollout.observations[:, 2].astype(int).tolist()


def test_a_whole_episode_becomes_a_rollout(assembler):
    rollout = feed(assembler, episode_of(3)).take(1, 9, every_version)
    assert steps_of(rollout) == [0, 1, 2]
    assert rollout.rewards.tolist() == [0, 1, 2] and rollout.returns.tolist() == [3]
    assert rollout.terminated.tolist() == rollout.last.tolist() == [False, False, True]
    assert rollout.version.tolist() == [4, 4, 4]
    assert rollout.success.tolist() == [True] and rollout.episodes == 1
    np.testing.assert_array_equal(rollout.next_observations[:2], rollout.observations[1:])
    np.testing.assert_array_equal(rollout.noise[2], np.full(4, 2.0))
    np.testing.assert_array_equal(rollout.chunks[2], np.full((2, 2), np.float32(0.02)))
    assert rollout.chunks.dtype == rollout.rewards.dtype == np.float32
    assert rollout.control_steps == 6
    assert +assembler.counts == {'received': 3, 'episodes': 1}


def test_an_unfinished_episode_waits(assembler):
    feed(assembler, episode_of(3)[:2])
    assert assembler.ready_episodes == 0
    assert assembler.take(1, 9, every_version) is None


def test_the_newest_episodes_come_in_order_and_older_ones_are_passed_over(assembler):
    for e in range(5):
        feed(assembler, episode_of(2, episode=e, first_seq=2 * e))
    assert assembler.ready_episodes == 5
    assert assembler.take(6, 9, every_version) is None
    rollout = assembler.take(1, 3, every_version)
    assert rollout.episodes == 3 and rollout.observations[::2, 1].tolist() == [2, 3, 4]
    assert assembler.ready_episodes == 0 and assembler.counts['skipped'] == 2


def test_actors_are_kept_apart(assembler):
    left, right = episode_of(3, actor='left'), episode_of(2, actor='right')
    feed(assembler, [left[0], right[0], left[1], right[1], left[2]])
    rollout = assembler.take(2, 2, every_version)
    assert steps_of(rollout) == [0, 1, 0, 1, 2]
    assert rollout.last.tolist() == [False, True, False, False, True]


def test_repeated_decisions_count_once(assembler):
    first, second = episode_of(2)
    feed(assembler, [first, first, second, first, second])
    assert assembler.counts['duplicates'] == 3
    assert steps_of(assembler.take(1, 1, every_version)) == [0, 1]


def test_a_lost_decision_spoils_its_episode_and_no_other(assembler):
    decisions = episode_of(3) + episode_of(3, episode=1, first_seq=3)
    del decisions[1]
    feed(assembler, decisions)
    assert assembler.counts['lost'] == 1 and assembler.counts['incomplete'] == 1
    rollout = assembler.take(1, 9, every_version)
    assert rollout.observations[:, 1].tolist() == [1, 1, 1]


def test_a_lost_end_spoils_the_episode_and_a_lost_beginning_the_next(assembler):
    decisions = [episode_of(3, episode=e, first_seq=3 * e) for e in range(3)]
    feed(assembler, decisions[0][:2] + decisions[1][1:] + decisions[2])
    assert assembler.counts['lost'] == 2 and assembler.counts['incomplete'] == 2
    assert assembler.take(1, 9, every_version).observations[0, 1] == 2


def test_a_gap_in_the_numbers_alone_is_enough_to_distrust_an_episode(assembler):
    feed(assembler, [decision(0), decision(1, seq=2), decision(2, seq=3, last=True)])
    assert assembler.counts['lost'] == 1 and assembler.ready_episodes == 0


def test_who_joins_late_waits_for_the_next_episode_and_has_lost_nothing(assembler):
    feed(assembler, episode_of(4, first_seq=96)[2:] + episode_of(2, episode=1, first_seq=100))
    assert assembler.counts['lost'] == 0 and assembler.counts['incomplete'] == 1
    assert assembler.take(1, 9, every_version).observations[:, 1].tolist() == [1, 1]


def test_who_joins_between_episodes_learns_from_the_first_one_seen(assembler):
    feed(assembler, episode_of(2, episode=7, first_seq=100))
    assert assembler.ready_episodes == 1


@pytest.mark.parametrize(('where', 'kept'), [({0}, [1, 2, 3]), ({0, 2}, [3]), ({1}, [2, 3])])
def test_what_came_after_an_interrupted_chunk_is_learned_from(assembler, where, kept):
    decisions = [replace(d, interrupted=k in where) for k, d in enumerate(episode_of(4))]
    rollout = feed(assembler, decisions).take(1, 1, every_version)
    assert steps_of(rollout) == kept
    # Of the whole episode; the reward of a step is its number, and a chunk has two.
    assert (rollout.returns.tolist(), rollout.control_steps) == ([6], 8)
    assert rollout.step.tolist() == kept  # its age is the true one
    assert rollout.last.tolist() == rollout.terminated.tolist() == [k == 3 for k in kept]
    assert rollout.success.tolist() == [True]
    assert assembler.counts['interrupted'] == 4 - len(kept)


def test_an_episode_whose_last_chunk_was_interrupted_is_not_learned_from(assembler):
    decisions = episode_of(3)
    decisions[2] = replace(decisions[2], interrupted=True)
    feed(assembler, decisions)
    assert assembler.counts['interrupted'] == 3 and assembler.ready_episodes == 0


def test_a_truncated_episode_gives_up_its_last_decision_for_its_observation(assembler):
    decisions = episode_of(3)
    decisions[2] = replace(decisions[2], terminated=False, truncated=True, success=False)
    rollout = feed(assembler, decisions).take(1, 1, every_version)
    assert steps_of(rollout) == [0, 1]
    assert rollout.next_observations[1, 2] == 2
    assert rollout.terminated.tolist() == [False, False]
    assert rollout.last.tolist() == [False, True]
    assert rollout.success.tolist() == [False]


def test_nothing_is_left_of_an_episode_truncated_at_once(assembler):
    feed(assembler, [decision(0, truncated=True)])
    assert assembler.ready_episodes == 0 and assembler.counts['incomplete'] == 1


def test_stale_decisions_at_the_beginning_are_cut_off(assembler):
    """The policy was replaced in mid-episode and the old one is forgotten by now."""
    decisions = episode_of(4)
    decisions[:2] = [replace(d, policy_sha=OLD) for d in decisions[:2]]
    rollout = feed(assembler, decisions).take(1, 1, only_new)
    assert steps_of(rollout) == [2, 3] and rollout.last.tolist() == [False, True]
    assert assembler.counts['stale'] == 2


def test_stale_decisions_wait_no_longer(spec):
    assembler = ReplayAssembler(spec, keep_episodes=1, max_waiting_decisions=4)
    feed(assembler, episode_of(4, policy_sha=OLD))
    assert assembler.take(1, 1, only_new) is None
    for e in (1, 2):
        feed(assembler, episode_of(2, episode=e, first_seq=2 + 2 * e))
    assert assembler.counts['overflow'] == 0 and assembler.ready_episodes == 2


def test_both_policies_of_an_episode_may_still_be_known(assembler):
    decisions = episode_of(2)
    decisions[0] = replace(decisions[0], policy_sha=OLD)
    rollout = feed(assembler, decisions).take(1, 1, {SHA: 5, OLD: 4}.get)
    assert rollout.version.tolist() == [4, 5]


def test_a_stale_decision_in_the_middle_discards_the_episode(assembler):
    decisions = episode_of(3)
    decisions[1] = replace(decisions[1], policy_sha=OLD)
    feed(assembler, decisions)
    assert assembler.take(1, 1, only_new) is None
    assert assembler.counts['stale'] == 3 and assembler.ready_episodes == 0


def test_stale_episodes_do_not_count_as_ready(assembler):
    feed(assembler, episode_of(2, policy_sha=OLD) + episode_of(2, episode=1, first_seq=2))
    assert assembler.take(2, 2, only_new) is None
    assert assembler.counts['stale'] == 2
    assert assembler.take(1, 2, only_new).episodes == 1


def test_a_truncated_episode_whose_usable_part_was_stale_is_dropped(assembler):
    decisions = episode_of(2)
    decisions[0] = replace(decisions[0], policy_sha=OLD)
    decisions[1] = replace(decisions[1], terminated=False, truncated=True)
    feed(assembler, decisions)
    assert assembler.take(1, 1, only_new) is None


def test_a_restarted_actor_has_another_name_and_begins_again(assembler):
    feed(assembler, episode_of(5, actor='arm/1')[:3] + episode_of(2, actor='arm/2'))
    assert assembler.ready_episodes == 1
    assert steps_of(assembler.take(1, 1, every_version)) == [0, 1]


@pytest.mark.parametrize(
    'changes',
    [
        {'observation': np.zeros(4, np.float32)},
        {'noise': np.zeros(5, np.float32)},
        {'chunk': np.zeros((3, 2), np.float32)},
        {'chunk': np.zeros((2, 3), np.float32)},
        {'reward': np.nan},
        {'reward': np.inf},
        {'reward': 1e39},  # finite, but no float32
        {'observation': np.array([0, np.nan, 0], np.float32)},
        {'noise': np.full(4, np.inf, np.float32)},
        {'chunk': np.full((2, 2), 3e38, np.float32)},
        {'seq': 10**400},  # the counter of what was lost would be no float
        {'seq': -1},
        {'step': 10**400},
        {'episode': -(10**400)},
    ],
)
def test_a_decision_that_does_not_fit_spoils_its_episode_alone(assembler, changes):
    decisions = episode_of(3)
    decisions[1] = replace(decisions[1], **changes)
    feed(assembler, decisions + episode_of(2, episode=1, first_seq=3))
    assert assembler.counts['invalid'] == 1
    assert assembler.take(1, 9, every_version).observations[:, 1].tolist() == [1, 1]


def test_what_waits_can_be_looked_at_and_goes_on_waiting(assembler):
    assert assembler.newest(1, every_version) is None
    for e in range(3):
        feed(assembler, episode_of(2, episode=e, first_seq=2 * e))
    assert assembler.newest(1, every_version).observations[:, 1].tolist() == [2, 2]
    assert assembler.newest(2, every_version).episodes == 2
    assert assembler.newest(9, every_version).episodes == 3
    assert assembler.newest(1, lambda sha: None) is None  # stale ones are not looked at
    feed(assembler, episode_of(2, episode=3, first_seq=6))
    assert assembler.ready_episodes == 1
    assert assembler.take(1, 9, every_version).observations[:, 1].tolist() == [3, 3]


def test_episodes_nobody_takes_are_dropped_oldest_first(spec):
    assembler = ReplayAssembler(spec, keep_episodes=1, max_waiting_decisions=5)
    for e in range(4):
        feed(assembler, episode_of(2, episode=e, first_seq=2 * e))
    assert assembler.counts['overflow'] == 2
    rollout = assembler.take(1, 9, every_version)
    assert rollout.observations[::2, 1].tolist() == [2, 3]
    # Taken decisions wait no longer: there is room again.
    feed(assembler, episode_of(2, episode=4, first_seq=8) + episode_of(2, episode=5, first_seq=10))
    assert assembler.ready_episodes == 2


def test_as_many_episodes_as_an_update_needs_are_kept_however_long_they_are(spec):
    """64 episodes of 400 decisions are more than the 20 000 that wait otherwise."""
    assembler = ReplayAssembler(spec, keep_episodes=64)
    for e in range(70):
        feed(assembler, episode_of(400, episode=e, first_seq=400 * e))
        if e < 63:
            assert assembler.take(64, 64, every_version) is None
    # What is more than that is dropped as before.
    assert assembler.counts['overflow'] == 6
    rollout = assembler.take(64, 64, every_version)
    assert (rollout.episodes, len(rollout)) == (64, 64 * 400)
    assert rollout.observations[0, 1] == 6


def test_an_update_that_no_memory_holds_is_an_error_that_names_the_parameter(spec):
    assembler = ReplayAssembler(spec, 8, max_waiting_decisions=20, most_waiting_decisions=40)
    for e in range(5):
        assert assembler.take(8, 8, only_new) is None
        # Those of old policies are no reason: they wait for nobody.
        feed(assembler, episode_of(10, actor='old', episode=e, first_seq=10 * e, policy_sha=OLD))
        feed(assembler, episode_of(10, episode=e, first_seq=10 * e))
    with pytest.raises(UserError, match='episodes_per_update to at most 5') as error:
        assembler.take(8, 8, only_new)
    assert '\n' not in str(error.value)
    assert assembler.take(5, 8, only_new).episodes == 5


@pytest.mark.parametrize('far', [10**15, MAX_GAP + 9])
def test_one_absurd_number_makes_no_duplicates_of_what_follows(assembler, far):
    feed(assembler, [*episode_of(2), decision(0, seq=far, episode=5)])
    for e in range(1, 4):
        feed(assembler, episode_of(2, episode=e, first_seq=2 * e))
        # The same once more: two that are far away in a row would be believed.
        assembler.add(decision(0, seq=far + e, episode=5))
    assert assembler.counts['invalid'] == 4 and assembler.counts['duplicates'] == 0
    rollout = assembler.take(1, 9, every_version)
    assert rollout.observations[:, 1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(('first', 'then'), [(0, 10**6), (10**15, 0)])
def test_numbers_that_go_on_far_away_are_believed_from_the_second_on(assembler, first, then):
    """After hours without the network, or where the first record was the absurd one."""
    feed(assembler, episode_of(2, first_seq=first))
    for e in (1, 2):
        feed(assembler, episode_of(3, episode=e, first_seq=then + 3 * e))
    assert assembler.counts['invalid'] == 1 and assembler.counts['duplicates'] == 0
    rollout = assembler.take(1, 9, every_version)
    assert rollout.observations[:, 1].tolist() == [0, 0, 2, 2, 2]


def spoil(changes):
    """Return three episodes of three decisions of which none can be used."""
    decisions = [d for e in range(3) for d in episode_of(3, episode=e, first_seq=3 * e)]
    return [replace(d, **changes) for d in decisions]


@pytest.mark.parametrize(
    ('decisions', 'why'),
    [
        (spoil({'policy_sha': OLD}), {'stale': 9}),
        (spoil({'interrupted': True}), {'interrupted': 9}),
        # Nobody ever tells of an end.
        (spoil({'interrupted': True, 'terminated': False}), {'interrupted': 9}),
        (spoil({'terminated': False})[:6], {'incomplete': 3}),  # the last may still end
        (spoil({'reward': np.nan}), {'invalid': 9}),
        (spoil({'seq': 7}), {'duplicates': 8}),
        ([d for d in spoil({}) if d.step != 1], {'lost': 6}),
        (spoil({'step': 1}), {'incomplete': 9}),
    ],
)
def test_what_nothing_can_be_learned_from_is_counted_until_something_can(assembler, decisions, why):
    feed(assembler, decisions)
    assert assembler.take(1, 9, only_new) is None
    got = +assembler.unusable
    assert got.items() >= why.items() and got.total() <= 9, got
    feed(assembler, episode_of(2, episode=10, first_seq=20))
    assert assembler.take(2, 9, only_new) is None  # it is too few, but usable
    assert not +assembler.unusable


@pytest.mark.parametrize('first_step', [0, 1])
def test_an_episode_without_end_does_not_fill_the_memory(spec, first_step):
    assembler = ReplayAssembler(spec, max_waiting_decisions=20)
    seen = []
    for k in range(first_step, 200):
        d = decision(k)
        seen.append(weakref.ref(d))
        assembler.add(d)
    del d
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 20


def test_the_actor_silent_for_longest_is_forgotten(assembler):
    for i in range(MAX_ACTORS + 1):
        feed(assembler, episode_of(2, actor=f'arm{i}')[:1])
    for i in (1, 0):
        feed(assembler, episode_of(2, actor=f'arm{i}')[1:])
    # arm0 was forgotten, so that its episode has lost its beginning; arm1 was not.
    assert assembler.ready_episodes == 1
    assert assembler.take(1, 1, every_version).observations[0, 0] == sum(map(ord, 'arm1'))


def test_an_episode_that_goes_on_after_its_end_is_not_believed(assembler):
    feed(assembler, [*episode_of(2), decision(2, seq=2), decision(3, seq=3, last=True)])
    assert assembler.ready_episodes == 1
    assert steps_of(assembler.take(1, 9, every_version)) == [0, 1]


@st.composite
def streams(draw):
    """Episodes of two actors, interleaved; each decision lost, sent once or repeated."""
    sent, lengths = {}, {}
    for actor in ('left', 'right'):
        seq, sent[actor] = 0, []
        for e in range(draw(st.integers(1, 5))):
            length = lengths[actor, e] = draw(st.integers(1, 4))
            sent[actor] += episode_of(length, episode=e, first_seq=seq, actor=actor)
            seq += length
    arriving = []
    while any(sent.values()):
        actor = draw(st.sampled_from([a for a in sent if sent[a]]))
        d = sent[actor].pop(0)
        arriving += [d] * draw(st.sampled_from([0, 1, 1, 1, 2]))
        if arriving and draw(st.integers(0, 9)) == 0:
            arriving.append(draw(st.sampled_from(arriving)))  # an old one again, out of order
    return arriving, lengths


@given(streams())
def test_no_rollout_has_a_hole_and_every_whole_episode_is_used(spec, stream):
    arriving, lengths = stream
    assembler = ReplayAssembler(spec)
    arrived = {(d.actor, d.episode, d.step) for d in arriving}
    whole = {
        (actor, e)
        for (actor, e), length in lengths.items()
        if all((actor, e, k) in arrived for k in range(length))
    }
    used = set()
    names = {sum(map(ord, a)): a for a in ('left', 'right')}
    for one in arriving:
        rollout = feed(assembler, [one]).take(1, 1, every_version)
        if rollout is None:
            continue
        actor, e = names[int(rollout.observations[0, 0])], int(rollout.observations[0, 1])
        assert (rollout.observations[:, :2] == rollout.observations[0, :2]).all()
        assert steps_of(rollout) == list(range(lengths[actor, e]))
        assert rollout.last.tolist() == [False] * (lengths[actor, e] - 1) + [True]
        assert (actor, e) not in used
        used.add((actor, e))
    assert used == whole
