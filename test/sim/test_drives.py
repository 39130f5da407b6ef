# SPDX-License-Identifier: Apache-2.0
"""Drives of another kind do what their name says, and weight is what holds it."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.sim.batch import BatchWorlds
from dipod_ros.sim.gravity import GravityModel
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.world import compile_world

PENDULUM = """
<mujoco>
  <compiler autolimits="true"/>
  <worldbody>
    <body gravcomp="{gravcomp}">
      <joint name="a" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.02" mass="2"/>
      <body pos="0.5 0 0" gravcomp="{gravcomp}">
        <joint name="b" axis="0 1 0" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.02" mass="1"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def worlds_of(drive, max_timestep_s=None):
    robot = replace(load_robot('arm7'), drive=drive, max_timestep_s=max_timestep_s)
    return BatchWorlds(compile_world(robot), 1)


def test_velocity_drives_reach_the_velocity():
    worlds = worlds_of('velocity')
    wanted = np.array([0.2, -0.1, 0.1, 0.1, -0.2, 0.2, 0.3])
    worlds.advance(np.tile(wanted, (1, 80, 1)))
    np.testing.assert_allclose(worlds.joint_velocity[0], wanted, atol=0.02)


def test_effort_drives_give_the_torque_up_to_its_limit():
    worlds = worlds_of('effort')
    world = worlds.world
    torque = np.array([5.0, -100.0, 3.0, 0.0, 20.0, -1.0, 0.5])
    sensors = worlds.advance(np.tile(torque, (1, 1, 1)))
    given = sensors[0, -1, world.effort_index]
    np.testing.assert_allclose(given, [5.0, -87.0, 3.0, 0.0, 12.0, -1.0, 0.5])


def test_steps_are_short_enough_for_the_controllers():
    assert worlds_of('position').world.model.opt.timestep == 0.005
    assert worlds_of('position', 0.002).world.model.opt.timestep == 0.002
    assert worlds_of('position', 0.008).world.model.opt.timestep == 0.004
    assert worlds_of('position', 0.002).world.substeps == 20


def test_the_torques_of_the_gravity_model_hold_the_arm(tmp_path):
    path = tmp_path / 'arm.xml'
    path.write_text(PENDULUM.format(gravcomp=0))
    model, q = mujoco.MjModel.from_xml_path(str(path)), np.array([0.3, -0.7])
    torque = GravityModel(path, ['a', 'b'])(q)
    assert np.all(np.abs(torque) > 1)
    data = mujoco.MjData(model)
    data.qpos[:] = q
    data.qfrc_applied[:] = torque
    for _ in range(100):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, q, atol=1e-6)
    swapped = GravityModel(path, ['b', 'a'])(q[::-1])
    np.testing.assert_allclose(swapped, torque[::-1])


def test_what_the_model_compensates_is_not_compensated_twice(tmp_path):
    path = tmp_path / 'arm.xml'
    path.write_text(PENDULUM.format(gravcomp=1))
    np.testing.assert_allclose(GravityModel(path, ['a', 'b'])(np.array([0.3, -0.7])), 0, atol=1e-9)


def test_a_model_without_the_joints_is_refused(tmp_path):
    path = tmp_path / 'arm.xml'
    path.write_text(PENDULUM.format(gravcomp=0))
    with pytest.raises(UserError, match='gravity compensation'):
        GravityModel(path, ['a', 'c'])
    with pytest.raises(UserError, match='gravity compensation'):
        GravityModel(tmp_path / 'none.xml', ['a'])
