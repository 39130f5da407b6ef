# SPDX-License-Identifier: Apache-2.0
import pytest

from dipod_ros.ros.launch_runner.file import read_launch_file
from dipod_ros.ros.launch_runner.text import LaunchError

NODE = '- node: {pkg: toy, exec: run, name: n'

REFUSED = {
    # action or key: what the error names
    'nodes: []': '`launch:` and nothing else',
    'launch: {node: 1}': 'expected a list of actions',
    'launch: [- x': 'is no YAML',
    'launch:\n- timer: {period: 1}': "unknown action 'timer'; supported: arg, let, node",
    'launch:\n- {arg: {name: a}, let: {}}': 'one key',
    f'launch:\n{NODE}, respawn: "true"}}': "node n: unsupported key 'respawn'; supported: args",
    f'launch:\n{NODE}, on_exit: restart}}': 'can only be shutdown',
    f'launch:\n{NODE}, output: log}}': 'can only be screen or both',
    f'launch:\n{NODE}, if: true}}': 'write "true" in quotes',
    f'launch:\n{NODE}, if: "1", unless: "1"}}': 'exclude each other',
    f'launch:\n{NODE}, param: [{{value: 1}}]}}': "either 'from' or 'name'",
    f'launch:\n{NODE}, param: [{{name: a}}]}}': "either 'value'",
    f'launch:\n{NODE}, param: [{{name: a, value: 1, type: long}}]}}': "unknown type 'long'",
    f'launch:\n{NODE}, param: [{{name: a, value: {{b: 1}}}}]}}': 'neither a scalar nor a list',
    f'launch:\n{NODE}, param: {{name: a}}}}': 'list of mappings',
    f'launch:\n{NODE}, remap: [{{from: a}}]}}': "key 'to' is missing",
    f'launch:\n{NODE}, name: $(anon x)}}': "key 'name': unknown substitution",
    'launch:\n- node: {exec: run}': "key 'pkg' is missing",
    'launch:\n- arg: {name: a, default: 1}': 'write "1" in quotes',
    'launch:\n- group: {actions: []}': "unsupported key 'actions'",
    'launch:\n- group: [{reset: {}}]': "unknown action 'reset'",
    'launch:\n- include: {file: a, let: []}': "unsupported key 'let'",
}


@pytest.mark.parametrize('text', REFUSED)
def test_what_the_runner_cannot_run_is_refused_by_name(workspace, text):
    with pytest.raises(LaunchError) as caught:
        read_launch_file(workspace.file(text))
    assert REFUSED[text] in str(caught.value)
    assert 'a.launch.yaml' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_it_is_refused_behind_a_condition_that_does_not_hold(workspace):
    path = workspace.file('launch:\n- group: {if: "false", children: [{shell: {}}]}')
    with pytest.raises(LaunchError, match="unknown action 'shell'"):
        read_launch_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LaunchError, match='no.launch.yaml: No such file'):
        read_launch_file(tmp_path / 'no.launch.yaml')
