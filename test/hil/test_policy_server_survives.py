# SPDX-License-Identifier: Apache-2.0
"""What the policy server outlives: requests that cannot be met, and being configured again."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import (  # noqa: E402
    HORIZON,
    JOINTS,
    make_limits,
    make_policy,
    make_spec,
    save_checkpoint,
    save_fragile_checkpoint,
)
from harness import DT_NS, Robot, Server, make_context  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from dipod_ros.learning.replay import ReplayAssembler  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CHUNK_NS = HORIZON * DT_NS
START = np.array([0.1, 0.2, 0.3])
LIMITS = make_limits()


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server in lockstep and the robot it serves."""
    context, robots, servers = make_context(), [], []
    make_policy(0, step_rad=0.002).save(tmp_path / 'first')

    def begin(**parameters):
        robots.append(Robot(context, JOINTS))
        given = {'checkpoint': 'first', 'lockstep': True, **parameters}
        servers.append(Server(tmp_path, LIMITS, **given))
        robots[-1].wait_status(state='active')
        robots[-1].wait_connected()
        return robots[-1]

    yield begin
    for server in servers:
        assert server.stop() == 0
        print(server.log)
        assert 'Traceback' not in server.log
    for robot in robots:
        robot.close()
    context.try_shutdown()


def change(robot, *transitions):
    """Ask for transitions in order; return whether each was done."""
    requests = [ChangeState.Request(transition=Transition(id=t)) for t in transitions]
    return [robot.call('change_state', ChangeState, r).success for r in requests]


def spoiled(folder, name, **changes):
    """Write a checkpoint with another manifest than it was saved with; return what it says."""
    manifest = save_checkpoint(folder / name)
    file = folder / name / 'manifest.yaml'
    data = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        data[key] = value(data[key])
    file.write_text(yaml.safe_dump(data))
    return manifest


def test_requests_that_cannot_be_met_are_answered_and_end_nothing(start, tmp_path):
    def spoken(spec):
        streams = [s | {'topic': 'goal point!'} if s['name'] == 'goal' else s
                   for s in spec['streams']]  # fmt: skip
        return spec | {'streams': streams}

    bad = {
        'endless': spoiled(tmp_path, 'endless', version=lambda _: float('inf')),
        'huge': spoiled(
            tmp_path, 'huge', golden=lambda g: g | {'chunk': [[10**400] * 3 for _ in range(6)]}
        ),
        'spoken': spoiled(tmp_path, 'spoken', spec=spoken),
    }
    reasons = {'endless': 'infinity', 'huge': 'int too large', 'spoken': 'no name of a ROS topic'}
    robot = start(follow_trainer=True)
    robot.answer(0, START, episode=-1, reset=True)
    for name, reason in reasons.items():
        for parameter in ('checkpoint', 'shadow_checkpoint'):
            result = robot.set_parameter(parameter, name)
            assert not result.successful and reason in result.reason
    for name, manifest in bad.items():
        robot.announce_checkpoint(manifest)
        robot.wait(lambda r=reasons[name]: r in robot.status['error'])
    odd = tmp_path / os.fsdecode(b'\x80x')  # json has a way to write it
    odd.mkdir()
    robot.announce_checkpoint(replace(bad['endless'], path=odd))
    robot.wait(lambda: 'no name in UTF-8' in robot.status['error'])
    robot.announce.publish(String(data='[' * 100_000))
    # The last one before it was heard, and messages of one writer come in order.
    other = save_checkpoint(tmp_path / 'other', seed=3)
    robot.announce_checkpoint(replace(other, sha256='0' * 64))
    robot.wait(lambda: 'announced was' in robot.status['error'])
    again, deeper = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_CLEANUP
    assert change(robot, again, deeper, 200) == [False] * 3
    robot.answer(CHUNK_NS, START)
    assert robot.status['state'] == 'active' and robot.status['active']['name'] == 'first'
    robot.announce_checkpoint(other)
    robot.wait_status(swap='ready', error='')


@pytest.mark.parametrize('active', [True, False])
def test_outcomes_that_cannot_be_end_nothing(start, active):
    robot = start()
    if not active:
        assert change(robot, Transition.TRANSITION_DEACTIVATE) == [True]
    for stamp_s, episode in ((1e300, 0.0), (-1e300, 0.0), (0.0, 1e300), (float('nan'), 0.0)):
        robot.say_numbers(stamp_s, episode, 0.0, 0.0, 1.0, 0.0, 1.0)
    if not active:
        assert change(robot, Transition.TRANSITION_ACTIVATE) == [True]
        robot.wait_connected()
    robot.answer(0, START, episode=-1, reset=True)  # of the same writer: those before were read
    robot.answer(CHUNK_NS, START)
    robot.wait(lambda: robot.records)
    assert robot.records[0].episode == 0 and not robot.records[0].terminated


def test_decisions_after_a_cleanup_are_new_ones_with_the_same_noise(start):
    robot = start(actor='left_arm', seed=5)
    runs, stamp = [], 0
    for episode in (0, 1):
        before = len(robot.records)
        robot.answer(stamp, START, episode=episode - 1, reset=True)
        for k in (1, 2):
            robot.answer(stamp + k * CHUNK_NS, START, episode=episode)
        robot.observe(
            stamp + 3 * CHUNK_NS, START, episode=episode, success=True, terminated=True, reset=True
        )
        robot.wait(lambda n=before + 3: len(robot.records) >= n)
        runs.append(robot.records[before : before + 3])
        stamp += 10 * CHUNK_NS
        if episode == 0:
            steps = (
                Transition.TRANSITION_DEACTIVATE,
                Transition.TRANSITION_CLEANUP,
                Transition.TRANSITION_CONFIGURE,
                Transition.TRANSITION_ACTIVATE,
            )
            assert change(robot, *steps) == [True] * 4
            robot.wait_connected()
    first, second = runs
    assert [r.seq for r in first] == [r.seq for r in second] == [0, 1, 2]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.noise, other.noise)
    actors = {r.actor for r in first}, {r.actor for r in second}
    assert all(len(a) == 1 for a in actors) and actors[0] != actors[1]
    assert all(r.actor.startswith('left_arm-') for r in first + second)
    assembler = ReplayAssembler(make_spec())  # of a trainer that ran all the time
    for record in robot.records:
        assembler.add(record)
    assert assembler.counts['duplicates'] == assembler.counts['lost'] == 0
    assert assembler.counts['episodes'] == 2


def test_the_first_policy_after_a_cleanup_is_watched_by_nobody(start, tmp_path):
    save_fragile_checkpoint(tmp_path / 'fragile')
    robot = start(alarm_window=10)
    robot.answer(0, START, episode=-1, reset=True)
    robot.answer(CHUNK_NS, START)
    steps = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
    assert change(robot, *steps) == [True] * 2
    assert robot.set_parameter('checkpoint', 'fragile').successful
    steps = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    assert change(robot, *steps) == [True] * 2
    robot.wait_connected()
    robot.answer(10 * CHUNK_NS, START, episode=-1, reset=True)
    robot.answer(11 * CHUNK_NS, START)
    # A swap is watched as ever, against the policy that began.
    assert robot.set_parameter('checkpoint', 'first').successful
    robot.wait_status(swap='ready')
    robot.answer(12 * CHUNK_NS, START)
    status = robot.wait_status(swaps=1)
    assert status['active']['name'] == 'first'
    assert status['alarm'] == '' and status['rejected'] == []
    heard = [json.dumps(s) for s in robot.statuses]
    assert not any('is rejected' in text for text in heard)
