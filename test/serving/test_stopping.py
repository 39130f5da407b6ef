# SPDX-License-Identifier: Apache-2.0
"""However long the arm needs to stop, the server waits for it, and listens to it meanwhile."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import HORIZON, make_limits
from worlds import DT, START, World, assert_smooth, settled

from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving import safety
from dipod_ros.serving.realtime import RealTimeLoop


def slow_to_stop(seconds, lower=None, upper=None):
    limits = make_limits()
    return JointLimits(
        limits.joints,
        limits.lower if lower is None else lower,
        limits.upper if upper is None else upper,
        limits.velocity,
        limits.velocity / seconds,
    )


@pytest.mark.parametrize('seconds', [0.2, 8.0])
def test_it_says_how_long_a_stop_takes(make_bench, seconds):
    wide = np.array([-100.0, 100.0])[:, None] * np.ones(3)
    limits = slow_to_stop(seconds, *wide)
    world = settled(World(make_bench(RealTimeLoop, limits=limits, interface='position')))
    world.run(round(1.5 * seconds / DT) + 10)
    speed = (world.setpoints[-1] - world.setpoints[-2]) / DT
    assert np.all(speed > 0.3 * limits.velocity)
    world.loop.stop()
    took = 0
    while not world.loop.stopped:
        world.period()
        took += 1
    assert took * DT <= world.loop.stopping_s < seconds + 0.3
    assert_smooth(world.setpoints, limits)


class TestThreads:
    """The threads themselves, in real time."""

    @pytest.fixture
    def clock(self):
        return time.monotonic

    def test_stopping_waits_for_the_arm_and_listens_to_it(self, make_bench, monkeypatch):
        pytest.importorskip('rclpy')
        from dipod_ros.nodes import _policy_server_threads as threads

        monkeypatch.setattr(threads, 'HANGS_S', 0.3)
        bench = make_bench(RealTimeLoop, limits=slow_to_stop(1.5), interface='position')
        bench.engine.chunk = np.full((HORIZON, 3), 0.03)
        sent, heard = [], []

        def sense():
            now_s = time.monotonic()
            if not heard or now_s - heard[-1] > 0.01:
                heard.append(now_s)
                bench.sense(round(now_s * 1e9), START if not sent else sent[-1])

        server = threads.ServerThreads(
            bench.loop,
            SimpleNamespace(send=lambda command, loop: sent.append(command.setpoint)),
            SimpleNamespace(send=lambda records: None),
            lambda reason: None,
            lambda loop: None,
            SimpleNamespace(raise_this_thread=lambda: None),
            sense,
        )
        server.start()
        end = time.monotonic() + 20.0
        while (len(sent) < 2 or np.min(sent[-1] - sent[-2]) < 0.5 * 1.2 * DT) and len(sent) < 100:
            assert time.monotonic() < end
            sense()
            time.sleep(0.002)
        before = len(heard)
        assert server.stop()
        np.testing.assert_array_equal(sent[-1], sent[-2])
        assert len(heard) > before + 10
        assert bench.safety.counts[safety.STALE] == 0
