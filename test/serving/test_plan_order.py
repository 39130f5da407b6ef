# SPDX-License-Identifier: Apache-2.0
"""Two threads publish trajectories: the last one out is always the last one made."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import HORIZON, JOINTS

rclpy = pytest.importorskip('rclpy')

from rclpy.lifecycle import LifecycleNode  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from worlds import DT, START  # noqa: E402

from dipod_ros.nodes._policy_server_io import CommandOutput  # noqa: E402
from dipod_ros.nodes._policy_server_threads import ServerThreads  # noqa: E402
from dipod_ros.ros import messages  # noqa: E402
from dipod_ros.serving.decisions import Outcome  # noqa: E402
from dipod_ros.serving.realtime import RealTimeLoop  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
# How long something is waited for that must not happen.
IN_VAIN_S = 0.4


class Door:
    """A publisher in front of which one thread, once, can be kept waiting."""

    def __init__(self, publisher):
        self._publisher = publisher
        self._kept = ''  # name of the thread that is to wait
        self.waits, self._open = threading.Event(), threading.Event()
        self.came, self.published = [], []

    def keep(self, thread):
        self.waits.clear()
        self._open.clear()
        self._kept = thread

    def open(self):
        self._open.set()

    def publish(self, msg):
        self.came.append(msg)
        if threading.current_thread().name == self._kept:
            self._kept = ''
            self.waits.set()
            assert self._open.wait(30.0)
        self._publisher.publish(msg)
        self.published.append(msg)


class Running:
    """A server's loop, threads and output in real time, and an arm that tells where it is."""

    def __init__(self, bench, node):
        self.bench, self.loop = bench, bench.loop
        self._sign = 1.0  # there and back again, for ever
        bench.engine.chunk = self._chunk
        self.output = CommandOutput(node, JOINTS, 'arm', 'trajectory', DT, False)
        self.output.topic.open()
        self.door = self.output.topic._publisher = Door(self.output.topic._publisher)
        self.sensing = True
        self.failed = []
        self.server = ServerThreads(
            bench.loop,
            self.output,
            SimpleNamespace(send=lambda records: None),
            self.failed.append,
            lambda loop: None,
            SimpleNamespace(raise_this_thread=lambda: None),
            self.sense,
        )
        self._sensed_s = 0.0
        self.server.start()

    def _chunk(self, observation, noise):
        self._sign = -self._sign
        return np.full((HORIZON, 3), self._sign * 0.02)

    def sense(self):
        """Say where the arm is when that is due."""
        now_s = time.monotonic()
        if not self.sensing or now_s - self._sensed_s < 0.01:
            return
        self._sensed_s = now_s
        plan = self.loop.timeline.plan
        position = START if plan is None else plan.knot(self.loop.tick)
        self.bench.sense(round(now_s * 1e9), position)
        self.server.news()

    def wait(self, until, seconds=20.0):
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            self.sense()
            time.sleep(0.002)
        return until()

    def outcome(self, **more):
        self.loop.on_outcome(Outcome(time.monotonic_ns(), 0, **more))

    def stop_by(self, reason):
        """Do what the executor's thread does, or what it fails to do."""
        if reason == 'estop':
            self.loop.safety.estop.latch('test')
            self.server.hurry()
        elif reason == 'silence':
            self.sensing = False
        elif reason == 'end of an episode':
            self.outcome(terminated=True)
        elif reason == 'reset':
            self.outcome(reset=True)
        else:
            self.loop.stop()
            self.server.hurry()


@pytest.fixture
def clock():
    return time.monotonic


@pytest.fixture
def running(make_bench, ros):
    node = LifecycleNode('server', context=ros)
    bench = make_bench(RealTimeLoop, replan_steps=3, hold_between_episodes=True)
    running = Running(bench, node)
    assert running.wait(lambda: len(running.door.published) > 5)
    yield running
    running.door.open()
    running.sensing = True
    assert running.server.stop()
    assert running.failed == []
    running.output.topic._publisher = running.door._publisher
    running.output.topic.close()
    node.destroy_node()


@pytest.mark.parametrize('interface', ['trajectory', 'position'])
def test_a_command_of_before_a_reset_of_a_simulated_world_is_void(make_bench, interface):
    bench = make_bench(RealTimeLoop, interface=interface, reset_teleports=True)
    bench.engine.chunk = np.full((HORIZON, 3), 0.02)
    begun_s, command = time.monotonic(), None
    while command is None or command.plan.chunk_start is None:
        assert time.monotonic() < begun_s + 20
        bench.sense(time.monotonic_ns(), START)
        committed, decided = bench.loop.control(), bench.loop.step()
        command = decided[0] if decided and interface == 'trajectory' else committed
        time.sleep(0.005)
    assert not bench.loop.void(command)
    bench.loop.on_outcome(Outcome(time.monotonic_ns(), 0, reset=True))
    assert bench.loop.void(command)


def end_of(msg):
    trajectory = messages.read_trajectory(
        deserialize_message(msg, JointTrajectory), messages.JointIndex(JOINTS)
    )
    return trajectory.positions[-1]


STOPS = ['estop', 'silence', 'end of an episode', 'reset', 'deactivation']


@pytest.mark.parametrize('reason', STOPS)
def test_a_plan_that_was_made_before_a_stop_is_not_published_after_it(running, reason):
    """The thread that decides has made a plan, and gets no processor until the arm has to stop."""
    loop, door = running.loop, running.door
    door.keep('decisions')
    assert running.wait(door.waits.is_set)
    running.stop_by(reason)
    before = len(door.published)
    running.wait(lambda: len(door.published) > before, IN_VAIN_S)
    door.open()
    assert running.wait(lambda: loop.timeline.plan.chunk_start is None)
    stop = loop.timeline.plan
    running.wait(lambda: loop.timeline.plan is not stop, 0.2)  # a reset goes on when the arm stands
    assert len(door.published) == len(door.came)
    assert door.published == door.came
    if reason != 'reset':
        np.testing.assert_allclose(end_of(door.published[-1]), stop.motion.points[-1], atol=1e-12)


def test_a_stop_is_not_published_after_the_plan_that_follows_it(running):
    """The thread that commits has made a stop, and gets no processor until it is over."""
    loop, door = running.loop, running.door
    # Decisions are tried once per control period: stop in one that has not seen one yet.
    assert running.wait(lambda: loop.tick > loop.timeline.plan.start)
    door.keep('control')
    running.stop_by('estop')
    assert running.wait(door.waits.is_set)
    loop.safety.estop.reset()
    before = len(door.published)
    running.wait(lambda: len(door.published) > before, IN_VAIN_S)
    door.open()
    assert running.wait(lambda: len(door.published) > before + 3)
    assert door.published == door.came[: len(door.published)]


def test_who_hears_a_stop_does_not_wait_for_a_plan_that_is_being_published(running):
    loop, door = running.loop, running.door
    door.keep('decisions')
    assert running.wait(door.waits.is_set)

    def hear():
        running.bench.sense(time.monotonic_ns(), START)
        running.server.news()
        running.outcome(reward=1.0)
        loop.safety.estop.latch('test')
        running.server.hurry()
        loop.finished_records()

    executor = threading.Thread(target=hear)
    executor.start()
    executor.join(5.0)
    heard = not executor.is_alive()
    door.open()
    executor.join()
    assert heard
    assert running.wait(lambda: loop.course.at_rest)
