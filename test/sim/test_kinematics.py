# SPDX-License-Identifier: Apache-2.0
"""The batched kinematics agree with MuJoCo's, one pose at a time."""

import mujoco
import numpy as np
import pytest
import yaml

from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.resources import resource
from dipod_ros.sim.demonstrator import resolved_rate, solve_poses
from dipod_ros.sim.kinematics import SerialChain
from dipod_ros.sim.robot import RobotConfig, RobotError, load_robot
from dipod_ros.sim.world import compile_world

SLIDER = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <worldbody>
    <body pos="0.1 0.2 0.3" euler="0.3 0.2 0.1">
      <joint name="slide" type="slide" axis="1 2 0" range="-1 1"/><geom size="0.1"/>
      <body pos="0.3 0 0.1">
        <joint name="a" axis="0 1 1" pos="0.05 0 0.02" range="-2 2" ref="0.3"/>
        <joint name="b" axis="1 0 0" range="-2 2"/>
        <geom size="0.1"/><site name="tip" pos="0.1 0.2 0.3" euler="1 0 0"/></body></body>
  </worldbody>
  <actuator><position name="s" joint="slide" kp="1"/><position name="a" joint="a" kp="1"/>
    <position name="b" joint="b" kp="1"/></actuator>
</mujoco>
"""


def _slider(tmp_path) -> RobotConfig:
    path = tmp_path / 'slider.xml'
    path.write_text(SLIDER)
    names = ['slide', 'a', 'b']
    return RobotConfig.from_params(
        {
            'robot': 'slider',
            'mjcf': str(path),
            'joints': names,
            'actuators': ['s', 'a', 'b'],
            'home': [0.0, 0.0, 0.0],
            'tip_site': 'tip',
            'limits': {
                'position_lower': [-1.0] * 3,
                'position_upper': [1.0] * 3,
                'velocity': [1.0] * 3,
                'acceleration': [1.0] * 3,
            },
        }
    )


@pytest.mark.parametrize('which', ['arm7', 'slider'])
def test_forward_and_jacobian_agree_with_mujoco(which, tmp_path):
    robot = load_robot('arm7') if which == 'arm7' else _slider(tmp_path)
    world = compile_world(robot)
    chain = SerialChain(world)
    rng = np.random.default_rng(0)
    poses = rng.uniform(robot.limits.lower, robot.limits.upper, (20, robot.size))
    position, rotation, jacobian = chain.jacobian(poses)
    assert np.array_equal(position, chain.forward(poses))
    data = mujoco.MjData(world.model)
    for i, pose in enumerate(poses):
        data.qpos[world.qpos_index] = pose
        mujoco.mj_kinematics(world.model, data)
        mujoco.mj_comPos(world.model, data)
        linear, angular = np.zeros((2, 3, world.model.nv))
        mujoco.mj_jacSite(world.model, data, linear, angular, world.tip_id)
        expected = np.concatenate([linear, angular])[:, world.qvel_index]
        np.testing.assert_allclose(position[i], data.site_xpos[world.tip_id], atol=1e-12)
        np.testing.assert_allclose(rotation[i].ravel(), data.site_xmat[world.tip_id], atol=1e-12)
        np.testing.assert_allclose(jacobian[i], expected, atol=1e-12)


def test_poses_are_solved_to_a_millimetre_with_the_peg_down():
    world = compile_world(load_robot('arm7'))
    chain = SerialChain(world)
    rng = np.random.default_rng(1)
    targets = rng.uniform([0.38, -0.3, 0.1], [0.6, 0.3, 0.4], (50, 3))
    q = solve_poses(chain, world.robot.home, targets)
    tip, rotation, _ = chain.jacobian(q)
    assert np.linalg.norm(tip - targets, axis=1).max() < 1e-3
    assert rotation[:, 2, 2].max() < -0.99
    assert np.all((q > world.robot.limits.lower) & (q < world.robot.limits.upper))


def test_posture_does_not_move_the_tip():
    """The pull towards home lives in the null space of the tip's motion."""
    world = compile_world(load_robot('arm7'))
    chain = SerialChain(world)
    rng = np.random.default_rng(2)
    q = world.robot.home + rng.normal(size=(10, 7)) * 0.2
    step = resolved_rate(chain, q, np.zeros((10, 3)), 0.0, 1e-3 * (world.robot.home - q), 1e-6)
    assert np.abs(step).max() > 1e-5
    assert np.linalg.norm(chain.forward(q + step) - chain.forward(q), axis=1).max() < 1e-6


def test_the_kinematics_in_the_robot_file_are_those_of_the_model():
    tree = yaml.safe_load(resource('config/robots/arm7.yaml').read_text())
    given = tree['/**']['ros__parameters']['kinematics']
    robot = load_robot('arm7')
    chain = SerialChain(compile_world(robot))
    arm = TipKinematics.from_params(robot.joints, *given.values(), 'tip')
    for mine, model in zip((arm.axes, arm.origins, arm.tip), chain.screws(), strict=True):
        np.testing.assert_allclose(mine, model, atol=1e-6)
    rng = np.random.default_rng(0)
    for q in rng.uniform(robot.limits.lower, robot.limits.upper, (20, robot.size)):
        np.testing.assert_allclose(arm.forward(q), chain.forward(q[None])[0], atol=1e-6)


def test_a_chain_with_a_slider_has_no_screws(tmp_path):
    with pytest.raises(RobotError, match='hinge'):
        SerialChain(compile_world(_slider(tmp_path))).screws()
