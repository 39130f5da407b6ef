# SPDX-License-Identifier: Apache-2.0
"""Where the tool is, by the model, agrees with the robot that is simulated."""

import mujoco
import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.resources import resource
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.tool_position import ToolPosition

URDF = """
<robot name="crane">
  <link name="base"/>
  <link name="mast"><visual><geometry><mesh filename="package://nowhere/mast.stl"/></geometry>
    </visual></link>
  <link name="trolley"/><link name="tool0"/>
  <joint name="turn" type="revolute"><parent link="base"/><child link="mast"/>
    <origin xyz="0 0 0.1"/><axis xyz="0 0 1"/>
    <limit lower="-2" upper="2" effort="1" velocity="1"/></joint>
  <joint name="roll" type="prismatic"><parent link="mast"/><child link="trolley"/>
    <origin xyz="0.2 0 0"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.5" effort="1" velocity="1"/></joint>
  <joint name="fixed" type="fixed"><parent link="trolley"/><child link="tool0"/>
    <origin xyz="0 0 -0.3"/></joint>
</robot>
"""


@pytest.mark.parametrize(('robot', 'name'), [('arm7', 'tip'), ('arm2', 'hand'), ('arm7', 'link5')])
def test_it_agrees_with_mujoco_and_never_moves_further_than_its_reach(robot, name):
    robot = load_robot(robot)
    tool = ToolPosition(f'sim/{robot.mjcf.name}', name, robot.joints)
    rng = np.random.default_rng(0)
    q = rng.uniform(robot.limits.lower, robot.limits.upper, (200, robot.size))
    found = tool(q)
    model = mujoco.MjModel.from_xml_path(str(robot.mjcf))
    data = mujoco.MjData(model)
    for position, where in zip(q[:20], found, strict=False):
        for joint, value in zip(robot.joints, position, strict=True):
            data.joint(joint).qpos[0] = value
        mujoco.mj_forward(model, data)
        there = data.body(name).xpos if name == 'link5' else data.site(name).xpos
        np.testing.assert_allclose(where, there, atol=1e-12)
    step = rng.uniform(-1, 1, q.shape) * rng.choice([0.01, 0.3, 2.0], (200, 1))
    moved = np.linalg.norm(tool(q + step) - found, axis=1)
    assert np.all(moved <= np.abs(step) @ tool.reach + 1e-12)


def test_a_urdf_without_its_meshes_will_do(tmp_path):
    path = tmp_path / 'crane.urdf'
    path.write_text(URDF)
    tool = ToolPosition(str(path), 'tool0', ['roll', 'turn'])
    at = tool(np.array([[0.0, 0.0], [0.5, np.pi / 2]]))
    np.testing.assert_allclose(at, [[0.2, 0.0, -0.2], [0.0, 0.7, -0.2]], atol=1e-12)
    assert tool.reach[0] == 1.0
    assert tool.reach[1] >= 0.7


@pytest.mark.parametrize(
    ('model', 'name', 'joints', 'text'),
    [
        ('sim/nothing.xml', 'hand', ['shoulder'], 'is no file'),
        ('sim', 'hand', ['shoulder'], 'is no file'),
        ('README.md', 'hand', ['shoulder'], 'is not XML'),
        ('sim/arm2.xml', 'claw', ['shoulder'], "'claw' is no site .*hand.* no body .*lower"),
        ('sim/arm2.xml', 'hand', ['shoulder', 'wrist'], "no hinge or slide .'wrist'.*elbow"),
        ('sim/arm2.xml', 'upper', ['elbow'], 'moved by none'),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(model, name, joints, text):
    with pytest.raises(UserError, match=text) as error:
        ToolPosition(str(resource(model)) if model == 'README.md' else model, name, joints)
    assert '\n' not in str(error.value)
