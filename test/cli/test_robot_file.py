# SPDX-License-Identifier: Apache-2.0
"""`dipod robot-file`: a URDF becomes a robot file that the policy server acts with."""

import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from dipod_ros.cli.main import main
from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.policy.limits import JointLimits
from dipod_ros.resources import resource
from dipod_ros.sim.kinematics import SerialChain
from dipod_ros.sim.robot import load_robot
from dipod_ros.sim.world import compile_world

LIMIT = '<limit lower="{}" upper="{}" velocity="{}" effort="{}"/>'


def joint(name, child, parent, *, kind='revolute', inside='', xyz='0 0 0', rpy='0 0 0', axis=None):
    axis = f'<axis xyz="{axis}"/>' if axis else ''
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{xyz}" rpy="{rpy}"/>{axis}{inside}</joint>'
    )


def urdf(*joints):
    return '<robot name="x"><link name="base"/>' + ''.join(joints) + '</robot>'


TWO = (
    joint('a', 'one', 'base', axis='0 0 2', inside=LIMIT.format(-1, 2, 3, 40)),
    joint('b', 'two', 'one', xyz='1 0 0.5', axis='0 1 0', inside=LIMIT.format(-2, 1, 1.5, 20)),
    joint('end', 'tool', 'two', kind='fixed', xyz='0.5 0 0'),
)


@pytest.fixture
def make(tmp_path, capsys):
    """Return a function that runs the command; it returns exit code, parameters and messages."""

    def run(*joints, limits=None, **options):
        source, out = tmp_path / 'arm.urdf', tmp_path / 'arm.yaml'
        source.write_text(joints[0] if joints and joints[0].startswith('<?') else urdf(*joints))
        options = {'tip': 'tool', 'out': out} | options
        if limits is not None:
            file = tmp_path / 'limits.yaml'
            file.write_text(limits)
            options['joint-limits'] = file
        words = [w for k, v in options.items() for w in (f'--{k}', str(v)) if w]
        code = main(['robot-file', str(source), *words])
        read = capsys.readouterr()
        params = None
        if code == 0:
            params = yaml.safe_load(out.read_text())['/**']['ros__parameters']
        return code, params, read.out + read.err

    return run


def turned_arm7(rng):
    """Return a URDF of arm7 whose link frames point anywhere."""
    robot = load_robot('arm7')
    axes, origins, tip = SerialChain(compile_world(robot)).screws()
    frame, at, parent, joints = np.eye(3), np.zeros(3), 'base', []
    limits = robot.limits
    words = lambda v: ' '.join(repr(float(x)) for x in v)  # noqa: E731
    for i, name in enumerate(robot.joints):
        turned = Rotation.random(random_state=rng).as_matrix()
        rpy = Rotation.from_matrix(frame.T @ turned).as_euler('xyz')
        inside = LIMIT.format(limits.lower[i], limits.upper[i], limits.velocity[i], robot.effort[i])
        joints.append(
            joint(name, f'link{i}', parent, inside=inside, xyz=words(frame.T @ (origins[i] - at)),
                  rpy=words(rpy), axis=words(turned.T @ axes[i]))
        )  # fmt: skip
        frame, at, parent = turned, origins[i], f'link{i}'
    joints.append(joint('end', 'tool', parent, kind='fixed', xyz=words(frame.T @ (tip - at))))
    return joints


def accelerations(robot):
    entries = zip(robot.joints, robot.limits.acceleration, strict=True)
    return yaml.safe_dump({'joint_limits': {j: {'max_acceleration': float(a)} for j, a in entries}})


def test_a_urdf_of_arm7_gives_its_robot_file(make):
    robot = load_robot('arm7')
    given = turned_arm7(np.random.RandomState(0))
    code, params, _ = make(*given, limits=accelerations(robot), name='arm7')
    assert code == 0
    limits = JointLimits.from_params(params['joints'], params['limits'])
    for name in ('lower', 'upper', 'velocity', 'acceleration'):
        np.testing.assert_array_equal(getattr(limits, name), getattr(robot.limits, name))
    assert params['limits']['effort'] == robot.effort.tolist()
    kinematics = TipKinematics.from_params(params['joints'], *params['kinematics'].values(), 'tip')
    shipped = yaml.safe_load(resource('config/robots/arm7.yaml').read_text())['/**'][
        'ros__parameters'
    ]['kinematics']
    theirs = TipKinematics.from_params(params['joints'], *shipped.values(), 'tip')
    for q in np.random.default_rng(0).uniform(limits.lower, limits.upper, (20, 7)):
        np.testing.assert_allclose(kinematics.forward(q), theirs.forward(q), atol=2e-5)


@pytest.mark.ros
@pytest.mark.timeout(180)
def test_the_policy_server_acts_with_it(make, tmp_path):
    pytest.importorskip('rclpy')
    robot = load_robot('arm7')
    code, _, said = make(*turned_arm7(np.random.RandomState(1)), limits=accelerations(robot))
    assert code == 0, said
    command = [sys.executable, '-m', 'dipod_ros.nodes.policy_server', '--ros-args']
    command += ['--params-file', str(tmp_path / 'arm.yaml'), '-p', 'checkpoint:=reach_student']
    log = tmp_path / 'log'
    with log.open('w') as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + 120
            while 'active: acting in real time on' not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        finally:
            process.terminate()
    assert process.returncode == 0


def test_the_tightest_limit_counts_and_speeds_can_be_scaled(make):
    limits = """
/**:
  ros__parameters:
    joint_limits:
      a: {has_velocity_limits: true, max_velocity: 1.0, max_acceleration: 8.0, max_position: 5.0}
      b: {has_velocity_limits: false, max_velocity: 0.1, has_acceleration_limits: false,
          max_acceleration: 0.1, min_position: -0.5}
"""
    code, params, said = make(*TWO, limits=limits, acceleration=6, scale=0.5)
    assert code == 0 and 'a, b' in said
    block = params['limits']
    assert block['position_lower'] == [-1.0, -0.5] and block['position_upper'] == [2.0, 1.0]
    assert block['velocity'] == [0.5, 0.75] and block['acceleration'] == [4.0, 3.0]
    assert block['effort'] == [40.0, 20.0]
    assert params['kinematics'] == {
        'axes': [0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
        'origins': [0.0, 0.0, 0.0, 1.0, 0.0, 0.5],
        'tip': [1.5, 0.0, 0.5],
    }


def test_soft_limits_lie_inside(make):
    soft = '<safety_controller soft_lower_limit="-0.9" soft_upper_limit="3" k_velocity="1"/>'
    arm = (joint('a', 'tool', 'base', axis='0 0 1', inside=LIMIT.format(-1, 2, 3, 0) + soft),)
    code, params, _ = make(*arm, acceleration=5)
    assert code == 0
    assert (params['limits']['position_lower'], params['limits']['position_upper']) == ([-0.9], [2])
    assert 'effort' not in params['limits']  # 0 is no limit


def test_a_slider_has_no_kinematics(make):
    slider = joint('rail', 'one', 'base', kind='prismatic', axis='1 0 0',
                   inside=LIMIT.format(0, 1, 0.5, 9))  # fmt: skip
    code, params, _ = make(slider, *TWO[1:], acceleration=5)
    assert code == 0 and params['joints'] == ['rail', 'b'] and 'kinematics' not in params


CONTINUOUS = joint('a', 'tool', 'base', kind='continuous', axis='0 0 1',
                   inside='<limit velocity="3" effort="1"/>')  # fmt: skip
MIMIC = joint('a', 'tool', 'base', axis='0 0 1', inside='<mimic joint="b"/>')


@pytest.mark.parametrize(
    ('joints', 'options', 'what'),
    [
        (TWO, {}, 'joint a has no max_acceleration: give it in --joint-limits, or give --accel'),
        (TWO, {'tip': 'hand'}, "no link 'hand'; it has base, one, tool, two"),
        (TWO, {'base': 'hand'}, "no link 'hand'"),
        (TWO, {'tip': 'one', 'base': 'two'}, "'one' does not hang on 'two'"),
        (TWO, {'tip': 'base'}, 'no joint between base and tip moves'),
        (TWO, {'acceleration': -1}, '--acceleration must be above 0'),
        (TWO, {'acceleration': 'nan'}, '--acceleration must be a finite number'),
        (TWO, {'acceleration': 1, 'scale': 0}, '--scale must be above 0'),
        (TWO, {'acceleration': 1, 'scale': 3}, '--scale must be above 0 and at most 1, got 3'),
        (TWO, {'acceleration': 1, 'controller': 'a b'}, "--controller is 'a b', which is no name"),
        (TWO, {'acceleration': 1, 'out': 'arm.urdf'}, 'name a .yaml file'),
        (TWO, {'limits': 'a: 1', 'acceleration': 1}, 'no `joint_limits:` block'),
        (TWO, {'limits': 'a: !degrees 1'}, 'write plain numbers, angles in rad'),
        (TWO, {'limits': 'joint_limits: {a: {max_velocity: fast}}'}, 'max_velocity of a must be'),
        ((CONTINUOUS,), {'acceleration': 1}, 'joint a has no min_position (continuous)'),
        ((MIMIC,), {'acceleration': 1}, 'joint a mimics another joint'),
        ((joint('a', 'tool', 'base', kind='floating'),), {}, 'joint a is floating'),
        ((joint('a', 'tool', 'base', axis='0 0 0'),), {}, 'its axis has no direction'),
        ((joint('a', 'tool', 'base', xyz='0 x 0'),), {}, "joint 'a' cannot be read"),
        ((), {}, 'has no joints'),
        (('<?xml version="1.0"?><urdf/>',), {}, 'its root element is <urdf>'),
        (('<?xml version="1.0"?><robot',), {}, 'is not XML'),
        (('<?xml version="1.0"?><!DOCTYPE robot [<!ENTITY a "x">]><robot>&a;</robot>',), {},
         'remove its <!DOCTYPE'),
        ((joint('a', 'tool', 'ba&#10;se'),), {'acceleration': 1}, 'has a line break'),
        (TWO, {'limits': 'joint_limits: &a {a: 1}\nb: *a'}, 'write out what *a stands for'),
        (('<?xml version="1.0"?><robot xmlns:xacro="http://x"><xacro:arm/></robot>',), {}, 'xacro'),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(make, joints, options, what):
    code, _, said = make(*joints, **options)
    assert code == 2 and what in said


def test_a_loop_of_joints_is_no_chain(make):
    loop = (joint('a', 'one', 'two'), joint('b', 'two', 'one'), joint('c', 'tool', 'two'))
    code, _, said = make(*loop)
    assert code == 2 and 'loop' in said


def test_a_file_that_is_there_stays(make):
    assert make(*TWO, acceleration=5)[0] == 0
    code, _, said = make(*TWO, acceleration=9)
    assert code == 2 and '--overwrite' in said
    code, params, _ = make(*TWO, acceleration=9, overwrite='')
    assert code == 0 and params['limits']['acceleration'] == [9.0, 9.0]


def test_no_name_breaks_out_of_a_comment(make, tmp_path):
    """A robot file is read by ROS: what stands in a line of its own there, counts."""
    name = 'x\nother: {ros__parameters: {a: 1}}\n#'
    code, params, _ = make(*TWO, name=name, acceleration=1)
    assert code == 0 and params['robot'] == name
    assert list(yaml.safe_load((tmp_path / 'arm.yaml').read_text())) == ['/**']
