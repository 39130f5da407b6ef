# SPDX-License-Identifier: Apache-2.0
"""The policy that docs/examples/own_flow.py saves moves a simulated arm to where it was taught."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import Robot, Server, make_context  # noqa: E402
from sim_harness import Simulator  # noqa: E402

from dipod_ros.sim.robot import load_robot  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
EXAMPLE = Path(__file__).resolve().parents[2] / 'docs/examples/own_flow.py'
TARGET = (0.9, -0.5)


def test_a_flow_of_somebody_elses_training_is_served(tmp_path):
    command = [sys.executable, str(EXAMPLE), '--out', str(tmp_path / 'own')]
    subprocess.run(command, check=True, timeout=200)
    context, robot = make_context(), load_robot('arm2')
    listener = Robot(context, robot.joints, robot.controller)
    server = Server(
        tmp_path,
        robot.limits,
        checkpoint='own',
        lockstep=True,
        control_period_s=robot.control_period_s,
        controller=robot.controller,
        exports=True,  # as everybody's first start does
    )
    simulator = None
    try:
        listener.wait_status(state='active')
        simulator = Simulator(tmp_path, 'arm2', task='none', lockstep=True)
        listener.wait(lambda: len(listener.records) >= 60)
        begin, end = listener.records[0].observation[:2], listener.records[59].observation[:2]
        np.testing.assert_allclose(begin, robot.home, atol=0.05)
        np.testing.assert_allclose(end, TARGET, atol=0.08)
    finally:
        for node in (simulator, server):
            if node is not None:
                print(node.stop(), node.log)
        listener.close()
        context.try_shutdown()
