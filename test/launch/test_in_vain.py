# SPDX-License-Identifier: Apache-2.0
"""A file that sets what a launch file sets too is told of; one that adds something is not."""

import pytest
import yaml

from dipod_ros.cli.main import main
from dipod_ros.resources import resource
from dipod_ros.ros.launch_runner.in_vain import set_in_vain
from dipod_ros.ros.launch_runner.plan import plan

ARM7 = resource('config/robots/arm7.yaml')


@pytest.fixture
def warnings(tmp_path):
    """Return a function: what is said of the nodes of robot.launch.yaml with this params_file."""

    def say(blocks, **given):
        file = tmp_path / 'mine.yaml'
        file.write_text(blocks if isinstance(blocks, str) else yaml.safe_dump(blocks))
        arguments = {'robot': str(ARM7), 'checkpoint': 'reach_flow', 'params_file': str(file)}
        nodes = plan(resource('launch/robot.launch.yaml'), arguments | given).nodes
        return [line for node in nodes for line in set_in_vain(node)]

    return say


def to_all(**params):
    return {'/**': {'ros__parameters': params}}


def test_what_an_argument_replaces_is_named_with_both_values(warnings):
    assert warnings(to_all(engine='torch', threads=2)) == [
        'policy_server: mine.yaml sets engine to torch, the launch file sets it to auto: give it '
        'as an argument of the launch file'
    ]
    assert warnings(to_all(engine='torch'), engine='torch') == []
    assert warnings(to_all(beta=0.5)) == []
    (line,) = warnings(to_all(beta=0.5, student='final'), trainer='true')
    assert line.startswith('trainer: mine.yaml sets beta to 0.5, the launch file sets it to 0.1')


@pytest.mark.parametrize(
    ('pattern', 'ns', 'told'),
    [
        ('/**', '', True),
        ('/**/policy_server', '', True),
        ('/**/policy_server', 'left', True),
        ('/policy_server', '', True),
        ('policy_server', '', True),
        ('/*', '', True),
        ('/*/policy_server', 'left', True),
        ('/left/**', 'left', True),
        ('/policy_server', 'left', False),
        ('/*', 'left', False),
        ('/**/trainer', '', False),
        ('/right/**', 'left', False),
    ],
)
def test_only_what_is_said_to_the_node_counts(warnings, pattern, ns, told):
    said = {pattern: {'ros__parameters': {'ramp_in_s': 5.0}}}
    assert bool(warnings(said, ns=ns)) == told
    if pattern == '/left/**':
        nested = {'left': {'**': {'ros__parameters': {'ramp_in_s': 5.0}}}}
        assert bool(warnings(nested, ns=ns)) == told


def test_one_file_may_replace_what_another_says(warnings):
    assert warnings(to_all(control_period_s=0.02, limits={'velocity': [1.0] * 7})) == []
    assert warnings('') == warnings('[1, 2') == warnings('- a') == []


@pytest.mark.parametrize('words', [[], ['trainer:=true']])
def test_the_shipped_files_set_nothing_in_vain_and_name_what_is_not_theirs(words, capsys):
    settings = resource('config/policy_server.yaml')
    given = ['up', '--dry-run', 'robot', f'robot:={ARM7}', 'checkpoint:=reach_flow', *words]
    assert main([*given, f'params_file:={settings}']) == 0
    assert capsys.readouterr().err == ''
    arguments = dict(w.split(':=') for w in given[3:] + words)
    for node in plan(resource('launch/robot.launch.yaml'), arguments).nodes:
        text = resource(f'config/{node.name}.yaml').read_text()
        comment = text[: text.index('/**:')].replace('\n#', '').replace(',', '').replace('.', '')
        own = [name for params in node.params if isinstance(params, dict) for name in params]
        held = yaml.safe_load(text)['/**']['ros__parameters']
        assert len(own) > 5 and not set(own) & set(held)
        assert [name for name in own if name not in comment.split()] == []


def test_dipod_up_warns(tmp_path, capsys):
    mine = tmp_path / 'mine.yaml'
    mine.write_text('/**: {ros__parameters: {seed: 4}}')
    assert main(['up', '--dry-run', 'sim', f'params_file:={mine}']) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(':')[1] for line in lines] == [' mujoco_sim', ' policy_server']
    assert all(line.startswith('warning: ') and 'sets seed to 4' in line for line in lines)
