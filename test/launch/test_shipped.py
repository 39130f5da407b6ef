# SPDX-License-Identifier: Apache-2.0
"""The launch files of this package: what they run, and that the nodes understand it."""

import dataclasses
import importlib

import pytest
import yaml

from dipod_ros.nodes._trainer_params import STUDENT_MODES
from dipod_ros.resources import resource, share_dir
from dipod_ros.ros.launch_runner.arguments import declared_arguments
from dipod_ros.ros.launch_runner.plan import plan
from dipod_ros.ros.launch_runner.text import LaunchError
from dipod_ros.serving.engines.select import CHOICES as ENGINES
from dipod_ros.serving.loop import INTERFACES

FILES = sorted(p.name for p in (share_dir() / 'launch').glob('*'))
ARM7 = str(resource('config/robots/arm7.yaml'))
NEEDED = {
    'robot.launch.yaml': {'robot': ARM7, 'checkpoint': 'reach_flow'},
    'record.launch.yaml': {'robot': ARM7, 'policy': 'reach_flow'},
}


def planned(name, **given):
    path = resource(f'launch/{name}')
    return {n.label: n for n in plan(path, {**NEEDED.get(name, {}), **given}).nodes}


def values(node):
    merged = {}
    for params in node.params:
        if isinstance(params, dict):
            merged |= params
    return merged


def files(node):
    return [p.name for p in node.params if not isinstance(p, dict)]


def test_there_are_those_that_the_documentation_names():
    names = ['online', 'record', 'robot', 'sim']
    assert [f'{name}.launch.yaml' for name in names] == FILES
    text = resource('docs/launch.md').read_text()
    assert [name for name in FILES if f'| `{name}` |' not in text] == []


@pytest.mark.parametrize('name', FILES)
def test_every_argument_is_described(name):
    declared = declared_arguments(resource(f'launch/{name}'), NEEDED.get(name))
    assert len(declared) > 10
    for argument in declared:
        assert len(argument.description) > 15, argument.name


@pytest.mark.parametrize(
    ('argument', 'allowed'),
    [('student', STUDENT_MODES), ('engine', ENGINES), ('interface', INTERFACES)],
)
def test_arguments_offer_what_the_nodes_take(argument, allowed):
    declared = declared_arguments(resource('launch/robot.launch.yaml'), NEEDED['robot.launch.yaml'])
    assert [a.choices for a in declared if a.name == argument] == [allowed]


def test_the_recorder_is_offered_every_source_of_commands():
    from dipod_ros.nodes._recorder_params import COMMAND_SOURCES

    path = resource('launch/record.launch.yaml')
    declared = declared_arguments(path, NEEDED['record.launch.yaml'])
    assert [a.choices for a in declared if a.name == 'command_source'] == [COMMAND_SOURCES]
    with pytest.raises(LaunchError, match='give policy:='):
        plan(path, {'robot': ARM7})


def test_each_file_runs_what_its_name_says():
    assert list(planned('sim.launch.yaml')) == ['mujoco_sim', 'policy_server']
    assert list(planned('online.launch.yaml')) == ['mujoco_sim', 'policy_server', 'trainer']
    assert list(planned('robot.launch.yaml')) == ['policy_server']
    assert list(planned('robot.launch.yaml', trainer='true')) == ['policy_server', 'trainer']
    assert list(planned('sim.launch.yaml', server='false', worlds='2')) == ['mujoco_sim']
    assert list(planned('record.launch.yaml')) == ['recorder']


def test_a_robot_needs_its_own_limits_and_a_checkpoint():
    path = resource('launch/robot.launch.yaml')
    with pytest.raises(LaunchError, match='give robot:='):
        plan(path, {'checkpoint': 'reach_flow'})
    with pytest.raises(LaunchError, match='give checkpoint:='):
        plan(path, {'robot': ARM7})


def test_one_task_and_one_seed_reach_every_node():
    nodes = planned('online.launch.yaml', task='reach', seed='3', beta='0.1', run_dir='there')
    sim, server, trainer = (values(n) for n in nodes.values())
    assert sim['task'] == 'reach'
    assert server['checkpoint'] == trainer['checkpoint'] == 'reach_flow'
    assert sim['seed'] == server['seed'] == trainer['seed'] == 3
    assert sim['lockstep'] is server['lockstep'] is True
    assert server['follow_trainer'] is True
    assert (trainer['beta'], trainer['run_dir']) == (0.1, 'there')
    # The server takes checkpoints only from folders that it knows.
    assert 'there' in server['model_dirs']


def test_a_robot_explores_anew_at_every_start_and_a_simulation_repeats():
    robot = planned('robot.launch.yaml', trainer='true')
    assert {values(n)['seed'] for n in robot.values()} == {-1}
    assert {values(n)['seed'] for n in planned('online.launch.yaml').values()} == {0}


def test_the_simulator_alone_runs_in_real_time_and_follows_nobody():
    sim, server = (values(n) for n in planned('sim.launch.yaml').values())
    assert sim['lockstep'] is server['lockstep'] is False
    assert sim['real_time_factor'] == 1.0
    assert server['follow_trainer'] is False


def test_a_namespace_moves_everything():
    nodes = planned('online.launch.yaml', ns='left')
    assert list(nodes) == ['left/mujoco_sim', 'left/policy_server', 'left/trainer']


def test_robots_can_share_one_trainer():
    given = {'replay_topic': '/replay', 'trainer_topic': '/trainer/checkpoint'}
    nodes = planned('robot.launch.yaml', ns='left', trainer='true', **given)
    server, trainer = nodes.values()
    assert ('replay', '/replay') in server.remaps
    assert values(server)['trainer_topic'] == '/trainer/checkpoint'
    assert ('replay', '/replay') in trainer.remaps
    assert ('~/checkpoint', '/trainer/checkpoint') in trainer.remaps


@pytest.mark.parametrize('name', FILES)
def test_the_network_sees_nothing_unless_asked(name):
    for node in planned(name).values():
        assert node.environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    for node in planned(name, discovery_range='SUBNET').values():
        assert node.environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'SUBNET'
    with pytest.raises(LaunchError, match='is not one of LOCALHOST'):
        planned(name, discovery_range='EVERYWHERE')


def test_parameter_files_reach_the_nodes_in_order_of_weight(tmp_path):
    mine = tmp_path / 'mine.yaml'
    mine.write_text('/**: {ros__parameters: {epochs: 1}}')
    nodes = planned('online.launch.yaml', params_file=str(mine))
    assert files(nodes['mujoco_sim']) == ['arm7.yaml', 'mine.yaml']
    assert files(nodes['policy_server']) == ['arm7.yaml', 'mine.yaml']
    assert files(nodes['trainer']) == ['trainer.yaml', 'mine.yaml']


@pytest.mark.ros
@pytest.mark.parametrize('name', FILES)
def test_every_parameter_is_one_that_the_node_declares(name):
    tables = {
        'mujoco_sim': ('mujoco_sim', 'MujocoSimParams'),
        'policy_server': ('_policy_server_params', 'PolicyServerParams'),
        'trainer': ('trainer', 'TrainerParams'),
        'recorder': ('_recorder_params', 'RecorderParams'),
    }
    kinds = {'bool': bool, 'int': int, 'float': float, 'str': str, 'tuple[str, ...]': list}
    for label, node in planned(name, **({'trainer': 'true'} if 'robot' in name else {})).items():
        module, table = tables[label]
        module = importlib.import_module(f'dipod_ros.nodes.{module}')
        fields = {f.name: f for f in dataclasses.fields(getattr(module, table))}
        for parameter, value in values(node).items():
            assert type(value) is kinds[fields[parameter].type], f'{label} {parameter}'


def test_files_hold_only_actions_that_humble_has_too():
    # Humble's front end knows neither on_exit nor equals, so a file with them would not load.
    for name in FILES:
        text = resource(f'launch/{name}').read_text()
        assert 'on_exit' not in text
        assert '$(equals' not in text
        assert set(yaml.safe_load(text)) == {'launch'}
