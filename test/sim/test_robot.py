# SPDX-License-Identifier: Apache-2.0
"""Robots are described by config alone, and a description that does not fit says what to change."""

import numpy as np
import pytest
import yaml

from dipod_ros.errors import UserError
from dipod_ros.resources import resource
from dipod_ros.sim.robot import load_robot, robot_names
from dipod_ros.sim.tasks.registry import make_task
from dipod_ros.sim.world import compile_world

MJCF = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002"/>
  <worldbody>
    <body><joint name="a" axis="0 0 1" range="-1 1"/><geom size="0.1"/>
      <body pos="0.3 0 0"><joint name="b" axis="0 0 1" range="-1 1"/><geom size="0.1"/>
        <site name="hand"/></body></body>
  </worldbody>
  <actuator>
    <position name="pa" joint="a" kp="10"/> <position name="pb" joint="b" kp="10"/>
    <velocity name="vb" joint="b" kv="1"/>
  </actuator>
</mujoco>
"""


@pytest.fixture
def robot_file(tmp_path):
    """Write a robot file beside its MJCF; keywords replace parameters, None removes one."""
    (tmp_path / 'two.xml').write_text(MJCF)

    def write(**changes):
        params = {
            'robot': 'two',
            'mjcf': 'two.xml',
            'joints': ['a', 'b'],
            'actuators': ['pa', 'pb'],
            'home': [0.1, 0.2],
            'limits': {
                'position_lower': [-1.0, -1.0],
                'position_upper': [1.0, 1.0],
                'velocity': [1.0, 1.0],
                'acceleration': [5.0, 5.0],
            },
            'control_period_s': 0.02,
            **changes,
        }
        params = {k: v for k, v in params.items() if v is not None}
        path = tmp_path / 'two.yaml'
        path.write_text(yaml.safe_dump({'/**': {'ros__parameters': params}}))
        return path

    return write


def test_every_shipped_robot_loads_and_compiles():
    assert set(robot_names()) >= {'arm7', 'arm2'}
    for name in robot_names():
        world = compile_world(load_robot(name))
        assert world.robot.name == name
        assert world.substeps >= 1


def test_arm7_has_the_published_reach():
    """With all joints at zero the flange is where the published link lengths put it."""
    world = compile_world(load_robot('arm7'))
    task = make_task('none', 'arm7')
    tip = task.chain.forward(np.zeros((1, 7)))[0]
    peg = 0.15
    assert tip == pytest.approx([0.088, 0, 0.333 + 0.316 + 0.384 - 0.107 - peg], abs=1e-12)
    assert world.robot.limits.velocity.tolist() == [2.175] * 4 + [2.61] * 3


def test_limits_in_the_file_are_radians_whatever_the_mjcf_uses():
    world = compile_world(load_robot('arm2'))  # its MJCF is in degrees
    shoulder = world.model.joint('shoulder')
    assert shoulder.range == pytest.approx(np.radians([-120, 120]))


def test_actuators_are_mapped_by_name():
    world = compile_world(load_robot('arm2'))  # its MJCF lists the elbow's actuator first
    names = [world.model.actuator(i).name for i in world.actuator_index]
    assert names == ['shoulder_servo', 'elbow_servo']


def test_the_effort_of_the_robot_file_limits_the_actuators():
    world = compile_world(load_robot('arm7'))
    ranges = world.model.actuator_forcerange[world.actuator_index]
    assert ranges[:, 1].tolist() == [87.0] * 4 + [12.0] * 3
    assert ranges[:, 0].tolist() == [-87.0] * 4 + [-12.0] * 3


def test_another_robot_needs_a_file_only(robot_file):
    robot = load_robot(robot_file(tip_site='hand'))
    task = make_task('none', robot)
    assert task.world.substeps == 10
    assert [s.name for s in task.streams()] == ['joint_position', 'command', 'tip']


def test_a_task_with_a_goal_needs_a_tip(robot_file):
    with pytest.raises(UserError, match='task reach needs a tip: set tip_site'):
        make_task('reach', load_robot(robot_file()))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'robot': None}, 'gives no `robot`'),
        ({'joints': None}, 'gives no `joints`'),
        ({'limits': None}, 'gives no `limits`'),
        ({'mjcf': 'gone.xml'}, 'no MJCF at .*gone.xml'),
        ({'actuators': ['pa']}, 'actuators has 1 values for 2 joints'),
        ({'home': [0.0, 2.0]}, 'outside the position limits'),
        ({'home': 'here'}, 'could not convert'),
        ({'control_period_s': -1.0}, 'control_period_s must be above 0'),
        ({'joints': ['a', 'a']}, 'distinct'),
        ({'joints': ['a', 'c']}, r"no hinge or slide joint \['c'\].*\['a', 'b'\]"),
        ({'actuators': ['pb', 'pa']}, 'actuator pb drives b, not a'),
        ({'actuators': ['pa', 'vb']}, 'actuator vb is not a <position> actuator'),
        ({'actuators': ['pa', 'x']}, r"no actuator \['x'\]"),
        ({'tip_site': 'nose'}, r"no site 'nose'.*\['hand'\]"),
        ({'controller': 'my arm'}, "controller is 'my arm', which is no name of a ROS topic"),
        ({'control_period_s': 0.005}, 'not a whole number of the timestep'),
        (
            {
                'limits': {
                    'position_lower': [-2.0, -1.0],
                    'position_upper': [1.0, 1.0],
                    'velocity': [1.0, 1.0],
                    'acceleration': [5.0, 5.0],
                }
            },
            r'limits \[-2, 1\] of a go beyond its range \[-1, 1\]',
        ),
    ],
)
def test_a_file_that_does_not_fit_says_why_in_one_line(robot_file, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        compile_world(load_robot(robot_file(**changes)))
    assert '\n' not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"unknown robot 'arm9': use one of \['arm2', 'arm7'\]"):
        load_robot('arm9')
    with pytest.raises(UserError, match='cannot read robot file'):
        load_robot(tmp_path / 'none.yaml')
    broken = tmp_path / 'broken.yaml'
    broken.write_text('a: [1')
    with pytest.raises(UserError, match='is not YAML') as caught:
        load_robot(broken)
    assert '\n' not in str(caught.value)
    broken.write_text('a: 1')
    with pytest.raises(UserError, match='no `/\\*\\*: ros__parameters:` block'):
        load_robot(broken)


def test_a_broken_mjcf_is_one_line(robot_file, tmp_path):
    path = robot_file()
    (tmp_path / 'two.xml').write_text('<mujoco><worldbody><geom/></worldbody></mujoco>')
    with pytest.raises(UserError, match='no hinge or slide joint'):
        compile_world(load_robot(path))
    (tmp_path / 'two.xml').write_text('<mujoco><nonsense/></mujoco>')
    with pytest.raises(UserError, match='MuJoCo cannot read') as caught:
        compile_world(load_robot(path))
    assert '\n' not in str(caught.value)


def test_a_scene_does_not_collide_with_names_of_the_robot():
    """Scenes have a `floor` and a `goal`; so may a robot's MJCF."""
    world = compile_world(load_robot('arm2'), resource('sim/scenes/reach.xml'))
    names = [world.model.geom(i).name for i in range(world.model.ngeom)]
    assert 'floor' in names and 'task/floor' in names
    assert world.camera_id('top') != world.camera_id('front')
    with pytest.raises(UserError, match=r"no camera 'back'; this world has \['top', 'front'\]"):
        world.camera_id('back')
