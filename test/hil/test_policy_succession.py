# SPDX-License-Identifier: Apache-2.0
"""Reload, rollback, alarm, shadow and promotion of the policy server, as a process on the wire."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from checkpoints import (  # noqa: E402
    HORIZON,
    JOINTS,
    PERIOD_S,
    make_limits,
    make_policy,
    save_fragile_checkpoint,
)
from harness import DT_NS, TIMEOUT_S, Robot, Server, make_context  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from dipod_ros.ros import qos  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CHUNK_NS = HORIZON * DT_NS
START = np.array([0.1, 0.2, 0.3])
LIMITS = make_limits()


class Arm(Robot):
    """A lockstep robot that counts its observations and hears what the shadow says."""

    def __init__(self, context):
        super().__init__(context, JOINTS)
        self.shadows = []
        self.count = 0
        self.create_subscription(String, 'policy_server/shadow', self._on_shadow, qos.STATE)

    def _on_shadow(self, msg):
        self._add(self.shadows, json.loads(msg.data))

    def go_on(self, count=1):
        """Have that many observations answered; return the last answer."""
        for _ in range(count):
            first = self.count == 0
            self.answered = self.answer(
                self.count * CHUNK_NS, START, episode=-1 if first else 0, reset=first
            )
            self.count += 1
        return self.answered

    def swap_to(self, name):
        assert self.set_parameter('checkpoint', name).successful
        self.wait_status(swap='ready')
        self.go_on()
        self.wait_acting(name)

    def wait_acting(self, name):
        self.wait(lambda: self.status['active']['name'] == name and not self.status['requested'])
        return self.status


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server in lockstep and the robot it serves."""
    context, robots, servers = make_context(), [], []
    for seed, name in enumerate(('first', 'second', 'third')):
        save(tmp_path / name, seed)
    save_fragile_checkpoint(tmp_path / 'fragile')

    def begin(**parameters):
        robots.append(Arm(context))
        given = {'checkpoint': 'first', 'lockstep': True, 'promotion_latency_s': 100.0}
        servers.append(Server(tmp_path, LIMITS, **(given | parameters)))
        try:
            robots[-1].wait_status(state='active')
            robots[-1].wait_connected()
        except AssertionError:
            print(servers[-1].log)
            raise
        return robots[-1], servers[-1]

    yield begin
    for server in servers:
        assert server.stop() == 0
        print(server.log)
        assert 'Traceback' not in server.log
    for robot in robots:
        robot.close()
    context.try_shutdown()


def save(path, seed, **more):
    """Write a policy whose chunks are within the limits."""
    return make_policy(seed, step_rad=0.002).save(path, version=seed, **more)


def legal(trajectories):
    for t in trajectories:
        v = t.velocities
        assert np.all(t.positions >= LIMITS.lower - 1e-9)
        assert np.all(t.positions <= LIMITS.upper + 1e-9)
        assert np.all(np.abs(v) <= LIMITS.velocity + 1e-9)
        assert np.all(np.abs(np.diff(v, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)


def test_reload_and_rollback(start, tmp_path):
    robot, _ = start()
    robot.go_on()
    assert not robot.call('rollback').success
    answer = robot.call('reload')
    assert answer.success and 'acts already' in answer.message
    before = robot.status['active']['sha256']
    new = save(tmp_path / 'first', 7, overwrite=True)
    answer = robot.call('reload')
    assert answer.success and new.sha256[:12] in answer.message
    robot.wait_status(swap='ready')
    robot.go_on()
    status = robot.wait_status(swaps=1)
    assert status['active']['sha256'] == new.sha256
    assert status['previous']['sha256'] == before
    for swaps, sha in ((2, before), (3, new.sha256)):
        assert robot.call('rollback').success
        robot.go_on()
        assert robot.wait_status(swaps=swaps)['active']['sha256'] == sha
    robot.go_on(2)
    robot.wait(lambda: len(robot.records) >= 5)
    shas = [r.policy_sha for r in robot.records[:5]]
    assert shas == [before, new.sha256, before, new.sha256, new.sha256]
    assert not any(r.interrupted for r in robot.records[:5])
    legal(robot.trajectories)


def test_a_rollback_holds_the_trainer_off(start):
    robot, _ = start(follow_trainer=True)
    robot.go_on()
    second, third = (
        save(Path(robot.status['active']['path']).parent / n, s) for n, s in (('v8', 8), ('v9', 9))
    )
    robot.announce_checkpoint(second)
    robot.wait_status(swap='ready')
    robot.go_on()
    robot.wait_acting('v8')
    answer = robot.call('rollback')
    assert answer.success and 'wait for ~/approve' in answer.message
    robot.announce_checkpoint(third)
    robot.wait(lambda: robot.status['candidate'] and robot.status['candidate']['name'] == 'v9')
    assert 'wait for ~/approve' in robot.status['hold']
    assert robot.status['candidate']['promotion'] == 'approval'
    robot.go_on(3)
    assert robot.wait_acting('first')['candidate']['name'] == 'v9'
    assert robot.call('approve').success
    robot.wait_status(swap='ready', hold='', candidate=None)
    robot.go_on()
    robot.wait_acting('v9')
    assert not robot.call('approve').success and not robot.call('reject').success


def test_an_alarm_rolls_back_by_itself_and_says_why(start):
    robot, server = start(alarm_window=10)
    robot.go_on(3)
    assert robot.set_parameter('checkpoint', 'fragile').successful
    robot.wait_status(swap='ready')
    robot.go_on(2)
    robot.wait(lambda: robot.status['swaps'] == 2)
    status = robot.wait_acting('first')
    assert 'not finite' in status['alarm'] and 'back to first' in status['alarm']
    assert [r['reason'] for r in status['rejected']] == [
        'the policy gave numbers that are not finite'
    ]
    assert status['history'][-1]['source'] == 'alarm'
    assert 'back to first' in server.log
    robot.wait(
        lambda: (
            'policy' in robot.diagnostics
            and 'back to first' in robot.diagnostics['policy'][0].message
        )
    )
    robot.go_on(2)
    robot.wait(lambda: len(robot.records) >= 6)
    shas = [r.policy_sha[:6] for r in robot.records[:6]]
    good, bad = status['active']['sha256'][:6], status['rejected'][0]['sha256'][:6]
    assert shas == [good] * 3 + [bad] + [good] * 2
    assert [r.interrupted for r in robot.records[:6]] == [False] * 3 + [True] + [False] * 2
    assert not robot.call('rollback').success
    legal(robot.trajectories)
    robot.swap_to('second')
    assert robot.wait_status(alarm='')['rejected']


def test_a_shadow_is_published_and_commands_nothing(start):
    robot, _ = start()
    robot.go_on()
    assert not robot.set_parameter('shadow_checkpoint', '/etc').successful
    assert robot.set_parameter('shadow_checkpoint', 'second').successful
    robot.wait(lambda: robot.shadows and robot.shadows[-1]['state'] == 'running')
    robot.go_on(3)
    robot.wait(lambda: robot.shadows[-1]['compared'] == 3)
    said = robot.shadows[-1]
    assert (said['name'], said['role'], said['faults']) == ('second', 'shadow_checkpoint', 0)
    assert 0 < said['rms_rad'] < said['max_rad'] < 0.1
    assert said['latency_p99_ms'] >= said['latency_p50_ms'] > 0
    assert said['last']['number'] == 3
    robot.wait(lambda: robot.diagnostics.get('shadow', (0, {}))[1].get('compared') == '3')
    robot.wait(lambda: len(robot.records) >= 3)
    first = robot.status['active']['sha256']
    assert {r.policy_sha for r in robot.records} == {first} and robot.status['swaps'] == 0
    # The largest distance is that of the two policies on what was recorded.
    apart = []
    for r in robot.records[1:3]:
        chunks = [
            make_policy(s, step_rad=0.002).act(r.observation[None], r.noise[None]) for s in (0, 1)
        ]
        apart.append(np.max(np.abs(np.cumsum(chunks[0] - chunks[1], axis=1))))
    heard = {s['last']['number']: s['last']['max_rad'] for s in robot.shadows if s['last']}
    np.testing.assert_allclose([heard[1], heard[2]], apart, atol=1e-6)
    assert robot.set_parameter('shadow_checkpoint', '').successful
    robot.wait_status(shadow=None)


def test_promotion_by_the_shadow(start, tmp_path):
    robot, _ = start(
        follow_trainer=True,
        promotion='shadow',
        promotion_decisions=3,
        promotion_rms_rad=0.05,
    )
    robot.go_on()
    far = make_policy(8, step_rad=0.5).save(tmp_path / 'v8')
    robot.announce_checkpoint(far)
    robot.wait(lambda: (robot.status['shadow'] or {}).get('state') == 'running' or robot.shadows)
    robot.wait(lambda: robot.shadows)  # built
    robot.go_on(4)
    robot.wait(lambda: 'is refused' in robot.status['error'])
    assert 'rad (rms) away' in robot.status['error'] and robot.status['candidate'] is None
    assert robot.status['history'][-1]['result'] == 'refused'
    near = save(tmp_path / 'v9', 0)  # what acts, under another name
    robot.announce_checkpoint(near)
    robot.wait(lambda: robot.shadows[-1]['name'] == 'v9')
    robot.go_on(3)
    robot.wait_status(swap='ready')
    robot.go_on()
    status = robot.wait_acting('v9')
    assert status['history'][-1]['reason'] == 'passed 3 decisions in the shadow'
    assert status['error'] == ''


def test_in_real_time_rollbacks_and_a_shadow_leave_the_stream_within_limits(start):
    robot, _ = start(lockstep=False, interface='position', shadow_checkpoint='third')
    began = time.monotonic()

    def live(until):
        deadline = time.monotonic() + TIMEOUT_S
        while not until():
            assert time.monotonic() < deadline, 'waited in vain'
            stamp = 1_000_000_000 + round((time.monotonic() - began) * 1e9)
            robot.say_goal(stamp)
            robot.say_joints(stamp, robot.commands[-1][0] if robot.commands else START)
            time.sleep(0.01)  # the rate of the sensor, not a synchronisation

    def acts(name, swaps):
        live(lambda: robot.status['active']['name'] == name and robot.status['swaps'] == swaps)

    live(lambda: len(robot.commands) > 5)
    assert robot.set_parameter('checkpoint', 'second').successful
    acts('second', 1)
    for swaps, name in ((2, 'first'), (3, 'second'), (4, 'first')):
        assert robot.call('rollback').success
        acts(name, swaps)
    live(lambda: robot.shadows and robot.shadows[-1]['compared'] >= 3)
    path = np.array([c[0] for c in robot.commands])
    speed = np.diff(path, axis=0) / PERIOD_S
    assert np.all(np.abs(speed) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)


def test_services_before_configure_say_so(start):
    robot, _ = start_unconfigured(start)
    for service in ('reload', 'rollback', 'approve', 'reject'):
        answer = robot.call(service)
        assert not answer.success and 'not configured' in answer.message


def start_unconfigured(start):
    robot, server = start(autostart=True)
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    for number in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        request = ChangeState.Request(transition=Transition(id=number))
        assert robot.call('change_state', ChangeState, request).success
    robot.wait_status(state='unconfigured')
    return robot, server
