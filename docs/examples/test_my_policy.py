# SPDX-License-Identifier: Apache-2.0
"""A robot program's test: simulator and policy server as processes, N episodes, then the verdict.

pytest test_my_policy.py        # copy it; change the launch arguments and the thresholds
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

EPISODES, TIMEOUT_S = 200, 120.0
LAUNCH = ['task:=reach', 'checkpoint:=reach_student', 'lockstep:=true', 'seed:=0']
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Run the stack where nobody else hears it, and end it whatever happens."""
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    if 'ROS_DOMAIN_ID' not in os.environ:  # set it yourself where jobs share a machine
        monkeypatch.setenv('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))
    command = [sys.executable, '-m', 'dipod_ros.cli', 'up', 'sim.launch.yaml', *LAUNCH]
    log = tmp_path / 'nodes.log'
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    rclpy.init()
    yield process, log
    rclpy.shutdown()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, log.read_text()


def test_the_policy_stays_within_the_limits_and_arrives(stack):
    """Same seed, same run: in lockstep these figures repeat exactly."""
    process, log = stack
    node, figures = rclpy.create_node('judge'), {}
    node.create_subscription(
        String, 'mujoco_sim/status', lambda msg: figures.update(json.loads(msg.data)), LATCHED
    )
    deadline = time.monotonic() + TIMEOUT_S
    while figures.get('episodes', 0) < EPISODES:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    assert figures['limit_violations'] == 0, figures['last_violation']
    assert figures['rejected_commands'] == 0, figures['last_rejection']
    assert figures['successes'] >= 0.8 * figures['episodes'], figures
