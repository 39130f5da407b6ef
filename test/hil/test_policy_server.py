# SPDX-License-Identifier: Apache-2.0
"""The policy server as a process against a robot played by the test: what the wire sees."""

import os
import signal
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
    save_checkpoint,
    save_fragile_checkpoint,
    save_lying_checkpoint,
)
from harness import DT_NS, TIMEOUT_S, Robot, Server, make_context  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from dipod_ros.ros import messages  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CHUNK_NS = HORIZON * DT_NS
START = np.array([0.1, 0.2, 0.3])
LIMITS = make_limits()
BOX = {
    'workspace__model': 'sim/arm2.xml',
    'workspace__tool': 'hand',
    'workspace__lower': [-0.1, -0.45, 0.0],
    'workspace__upper': [0.6, 0.45, 0.3],
}


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server and the robot it serves."""
    context, robots, servers = make_context(), [], []
    save_checkpoint(tmp_path / 'first', seed=0)
    save_checkpoint(tmp_path / 'second', seed=1)

    def begin(robot_joints=JOINTS, active=True, **parameters):
        robots.append(Robot(context, robot_joints))
        servers.append(Server(tmp_path, LIMITS, **{'checkpoint': 'first', **parameters}))
        try:
            if active:
                robots[-1].wait_status(state='active')
                robots[-1].wait_connected()
        except AssertionError:
            print(servers[-1].log)
            raise
        return robots[-1], servers[-1]

    yield begin
    for server in servers:
        code = server.stop()
        print(server.log)
        assert code is not None
    for robot in robots:
        robot.close()
    context.try_shutdown()


@pytest.fixture
def lockstep(start):
    """Return a server that waits in lockstep for the first observation."""
    return start(lockstep=True)


def legal(trajectory, before=None):
    """Check the knots of a trajectory against the limits; returns nothing."""
    p, v = trajectory.positions, trajectory.velocities
    assert np.isfinite(p).all() and np.isfinite(v).all()
    assert np.all(p >= LIMITS.lower - 1e-9) and np.all(p <= LIMITS.upper + 1e-9)
    assert np.all(np.abs(v) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(v, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)
    np.testing.assert_allclose(v[-1], 0.0, atol=1e-12)


def first_answer(robot, position=START):
    return robot.answer(0, position, episode=-1, reset=True)


class RealTimeRobot:
    """Moves the robot's clock in real time and follows what it is told."""

    def __init__(self, robot):
        self.robot = robot
        self.position = START.copy()
        self.began = time.monotonic()

    @property
    def stamp_ns(self):
        return 1_000_000_000 + round((time.monotonic() - self.began) * 1e9)

    def live(self, seconds, until=lambda: False, goal=True, joints=True):
        """Publish at 100 Hz until something happens or time is over; return whether it did."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stamp = self.stamp_ns
            if goal:
                self.robot.say_goal(stamp)
            if joints:
                if self.robot.commands:
                    self.position = self.robot.commands[-1][0]
                self.robot.say_joints(stamp, self.position)
            if until():
                return True
            time.sleep(0.01)  # the rate of the sensor, not a synchronisation
        return until()


def test_lockstep_answers_with_a_legal_trajectory_that_starts_at_the_arm(lockstep):
    robot, _ = lockstep
    first = first_answer(robot)
    legal(first)
    assert first.stamp_ns == 0
    assert len(first.times_s) >= HORIZON
    np.testing.assert_allclose(first.times_s, PERIOD_S * np.arange(1, len(first.times_s) + 1))
    # The first knot is half a step away from where the arm rests.
    np.testing.assert_allclose(first.positions[0], START, atol=0.01)
    second = robot.answer(CHUNK_NS, first.positions[HORIZON - 1])
    legal(second)
    step = second.positions[0] - first.positions[HORIZON - 1]
    bend = np.abs(step / PERIOD_S - first.velocities[HORIZON - 1])
    assert np.all(bend <= LIMITS.acceleration * PERIOD_S + 1e-9)


def test_the_same_observation_again_gets_the_same_message_again(lockstep):
    robot, _ = lockstep
    first = first_answer(robot)
    again = first_answer(robot)
    np.testing.assert_array_equal(again.positions, first.positions)
    robot.answer(CHUNK_NS, START)
    robot.answer(2 * CHUNK_NS, START)
    robot.wait(lambda: len(robot.records) >= 2)
    assert [r.seq for r in robot.records[:2]] == [0, 1]


def test_records_tell_what_was_seen_sampled_and_executed(lockstep):
    robot, _ = lockstep
    first = first_answer(robot)
    robot.answer(CHUNK_NS, START, reward=0.5)
    robot.answer(2 * CHUNK_NS, START, reward=1.5, success=True, terminated=True, reset=True)
    robot.answer(3 * CHUNK_NS, START, episode=1)
    robot.wait(lambda: len(robot.records) >= 3)
    one, two, three = robot.records[:3]
    assert [(r.episode, r.step, r.reward) for r in (one, two)] == [(0, 0, 0.5), (0, 1, 1.5)]
    assert two.terminated and two.success and not one.terminated
    assert (three.episode, three.step) == (1, 0)
    assert one.policy_sha == robot.status['active']['sha256']
    assert one.actor == two.actor and one.actor.startswith('/policy_server-')
    np.testing.assert_allclose(one.observation[:3], START, rtol=1e-6)
    # What it says it sampled is what the policy gives for what it says it saw.
    expected = make_policy(0).act(one.observation[None], one.noise[None])[0]
    np.testing.assert_allclose(one.chunk, expected, atol=1e-6)
    middle = (one.executed[1:] + one.executed[:-1]) / 2
    np.testing.assert_allclose(first.positions[1:HORIZON], middle, atol=1e-6)
    assert 0 < one.latency_s < TIMEOUT_S
    assert not one.interrupted


def test_the_same_seed_gives_the_same_run(start):
    runs = []
    for _ in range(2):
        robot, server = start(lockstep=True, seed=11)
        first_answer(robot)
        runs.append(robot.answer(CHUNK_NS, START))
        server.stop()
        robot.close()
    np.testing.assert_array_equal(runs[0].positions, runs[1].positions)


def test_joints_in_another_order_and_among_others_are_mapped_by_name(start):
    robot, _ = start(robot_joints=('gripper', 'elbow', 'base', 'shoulder'), lockstep=True)
    robot._index.joints = JOINTS
    scattered = np.array([9.0, START[2], START[0], START[1]])
    first = first_answer(robot, scattered)
    np.testing.assert_allclose(first.positions[0], START, atol=0.01)


def test_a_policy_trained_in_another_joint_order_drives_the_right_joints(start, tmp_path):
    order = JOINTS[::-1]
    save_checkpoint(tmp_path / 'mirrored', seed=3, joints=order, limits=make_limits(order))
    robot, _ = start(lockstep=True, checkpoint='mirrored')
    answers = [first_answer(robot), robot.answer(CHUNK_NS, START)]
    robot.wait(lambda: robot.records)
    record = robot.records[0]
    np.testing.assert_allclose(record.observation[:3], START[::-1], rtol=1e-6)
    middle = (record.executed[1:, ::-1] + record.executed[:-1, ::-1]) / 2
    np.testing.assert_allclose(answers[0].positions[1:HORIZON], middle, atol=1e-6)


def test_inactive_never_commands(start):
    robot, _ = start(active=False, lockstep=True, autostart=False)
    robot.wait_status(state='unconfigured')

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return robot.call('change_state', ChangeState, request).success

    assert change(Transition.TRANSITION_CONFIGURE)
    robot.wait_status(state='inactive')
    robot.wait_connected()
    robot.observe(0, START, episode=-1, reset=True)
    # Round trips through the same executor, after the observation: it had its chance.
    for _ in range(3):
        assert robot.call('get_state', GetState).current_state.label == 'inactive'
        robot.observe(0, START, episode=-1, reset=True)
    assert robot.trajectories == []
    assert change(Transition.TRANSITION_ACTIVATE)
    robot.wait_status(state='active')
    first_answer(robot)
    assert change(Transition.TRANSITION_DEACTIVATE)
    robot.wait_status(state='inactive')
    count = len(robot.trajectories)
    for k in range(1, 4):
        robot.observe(k * CHUNK_NS, START)
        robot.call('get_state', GetState)
    assert len(robot.trajectories) == count
    assert change(Transition.TRANSITION_ACTIVATE)
    robot.answer(9 * CHUNK_NS, START)
    assert change(Transition.TRANSITION_DEACTIVATE)
    assert change(Transition.TRANSITION_CLEANUP)
    robot.wait_status(state='unconfigured', active=None)


def test_a_good_checkpoint_swaps_while_running(lockstep, tmp_path):
    robot, _ = lockstep
    before = robot.status['active']['sha256']
    first_answer(robot)
    assert robot.set_parameter('checkpoint', 'second').successful
    robot.wait_status(swap='ready')
    assert robot.status['active']['sha256'] == before
    assert robot.status['requested']['name'] == 'second'
    robot.answer(CHUNK_NS, START)
    status = robot.wait_status(swaps=1)
    assert status['active']['name'] == 'second' and status['active']['version'] == 1
    assert status['requested'] is None and status['error'] == ''
    robot.answer(2 * CHUNK_NS, START)
    robot.wait(lambda: len(robot.records) >= 2)
    shas = [r.policy_sha for r in robot.records[:2]]
    assert shas == [before, status['active']['sha256']]
    assert not any(r.interrupted for r in robot.records)
    record = robot.records[1]
    expected = make_policy(1).act(record.observation[None], record.noise[None])[0]
    np.testing.assert_allclose(record.chunk, expected, atol=1e-6)


@pytest.mark.parametrize(
    ('value', 'reason'),
    [('nobody', 'models at hand'), ('', 'empty'), ('/etc', 'outside the model folders')],
)
def test_a_bad_value_is_refused_with_the_reason_and_nothing_changes(lockstep, value, reason):
    robot, _ = lockstep
    first_answer(robot)
    before = dict(robot.status)
    result = robot.set_parameter('checkpoint', value)
    assert not result.successful
    assert reason in result.reason and '\n' not in result.reason
    robot.answer(CHUNK_NS, START)
    assert robot.status == before


def test_a_checkpoint_that_lies_is_built_found_out_and_never_acts(lockstep, tmp_path):
    robot, server = lockstep
    save_lying_checkpoint(tmp_path / 'liar')
    first_answer(robot)
    assert robot.set_parameter('checkpoint', 'liar').successful
    status = robot.wait_status(swap='failed')
    assert 'golden check failed' in status['error']
    assert status['active']['name'] == 'first'
    robot.answer(CHUNK_NS, START)
    assert robot.status['swaps'] == 0
    assert robot.set_parameter('checkpoint', 'second').successful
    robot.wait_status(swap='ready', error='')


def test_a_corrupt_checkpoint_is_found_out_while_the_old_one_acts(lockstep, tmp_path):
    robot, _ = lockstep
    weights = save_checkpoint(tmp_path / 'third', seed=3).path / 'policy.safetensors'
    weights.write_bytes(weights.read_bytes()[:-4] + b'\0\0\0\0')
    first_answer(robot)
    assert robot.set_parameter('checkpoint', 'third').successful
    status = robot.wait_status(swap='failed')
    assert 'corrupt' in status['error']
    robot.answer(CHUNK_NS, START)
    assert robot.status['active']['name'] == 'first'


def test_the_trainer_is_followed_only_when_asked_to(lockstep, tmp_path):
    robot, _ = lockstep
    manifest = save_checkpoint(tmp_path / 'run' / 'v7', seed=7)
    robot.announce_checkpoint(manifest)
    first_answer(robot)
    assert robot.status['requested'] is None and robot.status['swap'] == 'idle'
    assert robot.set_parameter('follow_trainer', True).successful
    robot.wait_status(swap='ready')
    robot.answer(CHUNK_NS, START)
    status = robot.wait_status(swaps=1)
    assert status['active']['sha256'] == manifest.sha256
    later = save_checkpoint(tmp_path / 'run' / 'v8', seed=8)
    robot.announce_checkpoint(later)
    robot.wait_status(swap='ready')
    robot.answer(2 * CHUNK_NS, START)
    assert robot.wait_status(swaps=2)['active']['version'] == 8


def test_an_announcement_with_another_sha_is_refused(start, tmp_path):
    robot, _ = start(lockstep=True, follow_trainer=True)
    manifest = save_checkpoint(tmp_path / 'v7', seed=7)
    save_checkpoint(tmp_path / 'v8', seed=8)
    from dataclasses import replace

    robot.announce_checkpoint(replace(manifest, path=tmp_path / 'v8'))
    robot.wait(lambda: 'announced was' in robot.status.get('error', ''))
    first_answer(robot)
    assert robot.status['active']['name'] == 'first'


def test_the_estop_latches_and_needs_a_reset(lockstep):
    robot, _ = lockstep
    moving = first_answer(robot)
    robot.estop.publish(Bool(data=True))
    robot.wait_status(estop=True)
    assert robot.status['estop_reason'] == 'topic estop'
    stop = robot.answer(CHUNK_NS, moving.positions[HORIZON - 1])
    legal(stop)
    robot.estop.publish(Bool(data=False))  # letting go of the button changes nothing
    held = robot.answer(2 * CHUNK_NS, stop.positions[-1])
    np.testing.assert_allclose(np.ptp(held.positions, axis=0), 0.0, atol=1e-12)
    assert robot.call('reset_estop').success
    robot.wait_status(estop=False)
    again = robot.answer(3 * CHUNK_NS, held.positions[-1])
    assert np.max(np.ptp(again.positions, axis=0)) > 1e-3
    assert robot.call('estop').success
    robot.wait_status(estop=True, estop_reason='service ~/estop')


def test_it_starts_slowly_and_says_so_in_records_and_diagnostics(start):
    robot, _ = start(lockstep=True, ramp_in_s=2 * HORIZON * PERIOD_S)
    trajectories = [first_answer(robot)]
    for k in range(1, 5):
        trajectories.append(robot.answer(k * CHUNK_NS, START))
    for trajectory in trajectories:
        legal(trajectory)
    # The scale of the last step of the first chunk is a tenth and 5 / 12 of the rest.
    scale = 0.1 + 0.9 * (HORIZON - 1) / (2 * HORIZON)
    assert np.all(np.abs(trajectories[0].velocities) <= scale * LIMITS.velocity + 1e-9)
    robot.wait(lambda: len(robot.records) >= 4)
    assert robot.records[0].interrupted
    assert not robot.records[3].interrupted
    # Once a second, so the first report may still be from within the ramp.
    robot.wait(lambda: robot.diagnostics.get('safety', ({}, {}))[1].get('speed scale') == '1')
    assert int(robot.diagnostics['safety'][1]['ramp']) >= 1


def test_numbers_that_are_not_finite_never_reach_the_wire(start, tmp_path):
    save_fragile_checkpoint(tmp_path / 'fragile')
    robot, _ = start(lockstep=True, checkpoint='fragile')
    for k in range(3):
        trajectory = robot.answer(k * CHUNK_NS, START, episode=k and 0 or -1, reset=k == 0)
        legal(trajectory)
        np.testing.assert_allclose(trajectory.positions, np.tile(START, (1, 1)))
    robot.wait(lambda: len(robot.records) >= 2)
    assert all(r.interrupted for r in robot.records)
    robot.wait(
        lambda: robot.diagnostics.get('safety', (0, {'not_finite': '0'}))[1]['not_finite'] == '3'
    )


def test_a_sensor_that_says_nan_is_not_believed(lockstep):
    robot, _ = lockstep
    robot.say_outcome(0, -1, reset=True)
    robot.say_goal(0, (np.nan, 0.0, 0.0))
    robot.say_joints(0, START)
    robot.wait(lambda: 'not finite' in str(robot.diagnostics.get('streams')) or robot.trajectories)
    assert robot.trajectories == []
    first_answer(robot)


def test_position_commands_in_lockstep_answer_every_observation(start):
    robot, _ = start(lockstep=True, interface='position')
    setpoints = []
    for k in range(2 * HORIZON):
        before = len(robot.commands)
        robot.observe(k * DT_NS, START, episode=0 if k else -1, reset=k == 0)
        robot.wait(lambda n=before: len(robot.commands) > n)
        position, stamp = robot.commands[-1]
        assert stamp == k * DT_NS
        setpoints.append(position)
    path = np.concatenate([[START, START], setpoints])
    speed = np.diff(path, axis=0) / PERIOD_S
    assert np.all(np.abs(speed) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)


def test_in_real_time_a_stale_stream_holds_the_arm_and_it_recovers(start):
    robot, server = start(interface='position')
    world = RealTimeRobot(robot)
    assert world.live(TIMEOUT_S, until=lambda: len(robot.commands) > 20)
    # The goal falls silent; the arm must come to rest although joint states go on.
    assert world.live(
        TIMEOUT_S,
        goal=False,
        until=lambda: len({tuple(c[0]) for c in robot.commands[-5:]}) == 1,
    )
    assert 'goal' in server.log
    held = robot.commands[-1][0]
    count = len(robot.commands)
    assert world.live(TIMEOUT_S, goal=False, until=lambda: len(robot.commands) > count + 5)
    np.testing.assert_array_equal(robot.commands[-1][0], held)
    assert world.live(TIMEOUT_S, until=lambda: np.any(robot.commands[-1][0] != held))
    assert server.log.count('nothing new on goal') == 1
    path = np.array([c[0] for c in robot.commands])
    speed = np.diff(path, axis=0) / PERIOD_S
    assert np.all(np.abs(speed) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)


def streams_say(robot, text):
    return text in str(robot.diagnostics.get('streams'))


def test_in_real_time_faults_of_the_robot_are_named_hold_the_arm_and_pass(start):
    """A joint that is missing, then stamps of another time."""
    robot, server = start(interface='position')
    world = RealTimeRobot(robot)
    assert world.live(TIMEOUT_S, until=lambda: len(robot.commands) > 20)
    say_joints, say_goal = robot.say_joints, robot.say_goal
    partly = messages.JointStateWriter(JOINTS[:2])

    def lose_a_joint(stamp, position):
        robot._joint_states.publish(partly.message(stamp, position[:2], np.zeros(2)))

    def late_by(seconds):
        return lambda stamp: say_goal(stamp - round(seconds * 1e9))

    for name, faulty, right, text in (
        ('say_joints', lose_a_joint, say_joints, f"joints ['{JOINTS[2]}'] are not among"),
        ('say_goal', late_by(5.0), say_goal, "stamps are behind the robot's clock"),
        ('say_goal', late_by(-5.0), say_goal, "stamps are ahead of the robot's clock"),
    ):
        setattr(robot, name, faulty)
        assert world.live(TIMEOUT_S, until=lambda t=text: streams_say(robot, t)), text
        assert world.live(
            TIMEOUT_S, until=lambda: len({tuple(c[0]) for c in robot.commands[-5:]}) == 1
        )
        held = robot.commands[-1][0]
        setattr(robot, name, right)
        assert world.live(TIMEOUT_S, until=lambda h=held: np.any(robot.commands[-1][0] != h))
        assert 1 <= server.log.count(text) <= 2  # once per stream of that topic
    path = np.array([c[0] for c in robot.commands])
    speed = np.diff(path, axis=0) / PERIOD_S
    assert np.all(np.abs(speed) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)


def test_in_real_time_an_outcome_of_another_time_is_named_and_stops_nothing(start):
    robot, server = start(interface='trajectory')
    world = RealTimeRobot(robot)
    assert world.live(TIMEOUT_S, until=lambda: len(robot.trajectories) > 3)
    count = len(robot.trajectories)
    hour_ns = 3600 * 1_000_000_000
    robot.say_outcome(world.stamp_ns + hour_ns, terminated=True, reset=True)
    text = "outcomes are refused: their stamps are ahead of the robot's clock"
    assert world.live(TIMEOUT_S, until=lambda: streams_say(robot, text))
    assert world.live(TIMEOUT_S, until=lambda: len(robot.trajectories) > count + 5)
    robot.say_outcome(world.stamp_ns)
    assert world.live(TIMEOUT_S, until=lambda: not streams_say(robot, text))
    assert server.log.count('outcomes are refused') == 1
    assert all(r.interrupted for r in robot.records[:2])  # nobody judged them


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
def test_an_arm_outside_its_limits_is_not_moved_and_the_joint_is_named(start, interface):
    robot, _ = start(interface=interface)
    world = RealTimeRobot(robot)
    world.position = START + [0.0, LIMITS.upper[1] - START[1] + 0.3, 0.0]
    text = f'joint {JOINTS[1]} at {world.position[1]:.3f} is outside {LIMITS.upper[1]:.3f}'
    assert world.live(TIMEOUT_S, until=lambda: streams_say(robot, text))
    assert robot.commands == [] and robot.trajectories == []
    world.position = START.copy()
    heard = robot.commands if interface == 'position' else robot.trajectories
    assert world.live(TIMEOUT_S, until=lambda: len(heard) > 3)
    first = heard[0][0] if interface == 'position' else heard[0].positions[0]
    np.testing.assert_allclose(first, START, atol=0.01)


def test_resets_while_a_real_arm_moves_brake_it_within_its_limits(start):
    """Anybody may publish them."""
    robot, _ = start(interface='position')
    world, began = RealTimeRobot(robot), []
    assert world.live(TIMEOUT_S, until=lambda: len(robot.commands) > 20)
    for episode in range(6):
        moving = lambda: np.any(robot.commands[-1][0] != robot.commands[-2][0])  # noqa: E731
        assert world.live(TIMEOUT_S, until=moving)
        world.live(0.3)
        robot.say_outcome(world.stamp_ns, episode, truncated=True, reset=True)
        began.append(len(robot.commands))
        assert world.live(TIMEOUT_S, until=lambda: not moving())  # noqa: B023
    world.live(1.0)
    assert {r.episode for r in robot.records} >= set(range(6))
    path = np.array([c[0] for c in robot.commands])
    speed = np.diff(path, axis=0) / PERIOD_S
    assert np.all(np.abs(speed) <= LIMITS.velocity + 1e-9)
    assert np.all(np.abs(np.diff(speed, axis=0)) <= LIMITS.acceleration * PERIOD_S + 1e-9)
    fast = np.abs(speed).max(axis=1)
    assert max(fast[b - 2] for b in began) > 0.2  # some came in full motion


def test_a_robot_whose_joints_have_other_names_is_told_which(start):
    robot, _ = start(robot_joints=('j1', 'j2', 'j3'))
    world = RealTimeRobot(robot)
    assert world.live(
        TIMEOUT_S, until=lambda: streams_say(robot, "other joints: ['j1', 'j2', 'j3']")
    )
    assert robot.trajectories == []


def test_a_controller_that_is_not_there_is_noticed_once_and_so_is_its_arrival(start):
    robot, server = start(active=False, controller='elsewhere', lockstep=True)
    robot.wait_status(state='active')
    robot.wait(lambda: streams_say(robot, 'nobody listens on /elsewhere/joint_trajectory'))
    robot.create_subscription(JointTrajectory, 'elsewhere/joint_trajectory', lambda msg: None, 10)
    robot.wait(lambda: not streams_say(robot, 'nobody listens'))
    assert server.log.count('nobody listens') == 1
    assert server.log.count('somebody listens') == 1


def test_cores_and_priority_of_the_process(start):
    """The priority may be forbidden here: one warning then, and it acts all the same."""
    core = min(os.sched_getaffinity(0))
    robot, server = start(interface='position', cpu_affinity=[core], realtime_priority=5)
    world = RealTimeRobot(robot)
    assert world.live(TIMEOUT_S, until=lambda: len(robot.commands) > 10)
    threads = [int(t.name) for t in Path(f'/proc/{server.process.pid}/task').iterdir()]
    assert len(threads) > 2
    assert all(os.sched_getaffinity(t) == {core} for t in threads)
    urgent = [t for t in threads if os.sched_getscheduler(t) & ~os.SCHED_RESET_ON_FORK]
    robot.wait(lambda: 'scheduling' in robot.diagnostics.get('decisions', (0, {}))[1])
    if server.log.count('realtime_priority'):
        assert server.log.count('realtime_priority') == 1
        assert urgent == []
        assert robot.diagnostics['decisions'][1]['scheduling'] == 'ordinary'
    else:
        assert len(urgent) == 2
        assert robot.diagnostics['decisions'][1]['scheduling'] == 'SCHED_FIFO 5'


def test_in_real_time_trajectories_join_on_one_grid_of_the_robots_clock(start):
    robot, _ = start()
    world = RealTimeRobot(robot)
    assert world.live(TIMEOUT_S, until=lambda: len(robot.trajectories) > 8)
    knots = {}
    for trajectory in robot.trajectories:
        legal(trajectory)
        due = trajectory.stamp_ns + np.round(trajectory.times_s * 1e9).astype(np.int64)
        shift = (due - due[0]) % DT_NS
        assert np.all((shift < 2000) | (shift > DT_NS - 2000))
        for ns, position in zip(due, trajectory.positions, strict=True):
            knots.setdefault(round(ns / DT_NS * 100), []).append((trajectory.stamp_ns, position))
    phases = {key % 100 for key in knots}
    assert len(phases) == 1, 'knots of later trajectories are shifted in time'
    # Where two trajectories overlap before the newer one begins, they say the same.
    for older, newer in zip(robot.trajectories, robot.trajectories[1:], strict=False):
        at = {
            round((older.stamp_ns + t * 1e9) / 1e6): p
            for t, p in zip(older.times_s, older.positions, strict=True)
        }
        first = round((newer.stamp_ns + newer.times_s[0] * 1e9) / 1e6)
        if first in at:
            np.testing.assert_allclose(newer.positions[0], at[first], atol=1e-9)


@pytest.mark.parametrize('interface', ['position', 'trajectory'])
def test_a_server_told_to_end_leaves_the_arm_at_rest(start, interface):
    robot, server = start(interface=interface)
    world = RealTimeRobot(robot)
    heard = robot.commands if interface == 'position' else robot.trajectories
    assert world.live(TIMEOUT_S, until=lambda: len(heard) > (20 if interface == 'position' else 3))
    server.process.send_signal(signal.SIGTERM)
    assert world.live(TIMEOUT_S, until=lambda: server.process.poll() is not None)
    assert server.process.returncode == 0
    if interface == 'position':
        np.testing.assert_array_equal(robot.commands[-1][0], robot.commands[-2][0])
    else:
        legal(robot.trajectories[-1])
    assert 'Traceback' not in server.log


@pytest.mark.parametrize(
    ('parameters', 'reason'),
    [
        ({'limits__velocity': None}, 'limits.velocity'),
        ({'joints': None}, 'joints'),
        ({'checkpoint': 'nobody'}, 'nobody'),
        ({'checkpoint': None}, 'checkpoint is empty'),
        ({'engine': 'abacus'}, 'auto | onnx | torch | openvino'),
        ({'control_period_s': 0.01}, 'control_period_s'),
        ({'interface': 'telepathy'}, 'trajectory | position'),
        ({'seam': 'glue'}, 'replace | ensemble | rtc'),
        ({'ensemble_decay': -1.0}, 'ensemble_decay'),
        ({'kinematics__tip': [0.1, 0.0, 0.2]}, 'kinematics.axes needs 9'),
        ({'workspace__model': 'sim/arm2.xml'}, 'workspace.tool, workspace.lower'),
        (BOX | {'workspace__upper': [0.6, -0.5, 0.3]}, 'is not below workspace.upper'),
        (BOX, "no hinge or slide ['base']"),
    ],
)
def test_it_does_not_start_without_what_it_needs_and_says_so_in_one_line(start, parameters, reason):
    _, server = start(active=False, **{'lockstep': True, **parameters})
    assert server.process.wait(TIMEOUT_S) == 2
    last = server.log.strip().splitlines()[-1]
    assert last.startswith('policy_server: ') and reason in last
    assert 'Traceback' not in server.log


def test_ctrl_c_ends_it_at_once_with_exit_code_zero(lockstep):
    robot, server = lockstep
    first_answer(robot)
    assert server.stop(signal.SIGINT) == 0
    assert 'Traceback' not in server.log
    robot.wait(lambda: robot.records)  # the last decision is not lost
    assert robot.records[-1].interrupted
