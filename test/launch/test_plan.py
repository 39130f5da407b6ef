# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import yaml

from dipod_ros.ros.launch_runner.arguments import declared_arguments
from dipod_ros.ros.launch_runner.plan import plan
from dipod_ros.ros.launch_runner.text import LaunchError


@pytest.fixture(autouse=True)
def run(workspace):
    workspace.node('run', 'pass')


def nodes(workspace, text, **given):
    return plan(workspace.file(text), given).nodes


def names(workspace, text, **given):
    return [n.label for n in nodes(workspace, text, **given)]


def test_defaults_build_on_earlier_arguments(workspace):
    text = """
        launch:
        - arg: {name: task, default: reach}
        - arg: {name: model, default: $(var task)_flow}
        - node: {pkg: toy, exec: run, name: $(var model)}
    """
    assert names(workspace, text) == ['reach_flow']
    assert names(workspace, text, task='push') == ['push_flow']
    assert names(workspace, text, model='mine') == ['mine']


def test_a_required_argument_is_asked_for(workspace):
    text = 'launch:\n- arg: {name: robot, description: the file}'
    with pytest.raises(LaunchError, match=r'give robot:=VALUE \(the file\)'):
        nodes(workspace, text)


def test_a_misspelt_argument_is_refused(workspace):
    text = 'launch:\n- arg: {name: robot, default: a}'
    with pytest.raises(LaunchError, match="no argument 'robto', did you mean robot"):
        nodes(workspace, text, robto='x')


def test_choices_are_kept(workspace):
    text = 'launch:\n- arg: {name: a, default: x, choice: [{value: x}, {value: y}]}'
    assert nodes(workspace, text, a='y') == ()
    with pytest.raises(LaunchError, match="'z' is not one of x, y"):
        nodes(workspace, text, a='z')


def test_conditions_choose_nodes(workspace):
    text = """
        launch:
        - arg: {name: a, default: 'false'}
        - node: {pkg: toy, exec: run, name: with_a, if: $(var a)}
        - node: {pkg: toy, exec: run, name: without_a, unless: $(var a)}
        - group:
            if: $(var a)
            children:
            - node: {pkg: toy, exec: run, name: in_group}
    """
    assert names(workspace, text) == ['without_a']
    assert names(workspace, text, a='true') == ['with_a', 'in_group']
    with pytest.raises(LaunchError, match='node with_a: a condition must be true'):
        names(workspace, text, a='perhaps')


def test_namespaces_and_variables_end_with_their_group(workspace):
    text = """
        launch:
        - let: {name: v, value: outside}
        - group:
          - push_ros_namespace: {namespace: left}
          - let: {name: v, value: inside}
          - group:
            - push-ros-namespace: {namespace: hand}
            - node: {pkg: toy, exec: run, name: a}
          - node: {pkg: toy, exec: run, name: $(var v)}
          - node: {pkg: toy, exec: run, name: c, namespace: sub}
          - node: {pkg: toy, exec: run, name: d, namespace: /top}
        - node: {pkg: toy, exec: run, name: $(var v)}
    """
    found = [(n.label, n.namespace) for n in nodes(workspace, text)]
    assert found == [
        ('left/hand/a', '/left/hand'),
        ('left/inside', '/left'),
        ('left/sub/c', '/left/sub'),
        ('top/d', '/top'),
        ('outside', None),
    ]


def test_an_empty_namespace_is_the_root(workspace):
    text = """
        launch:
        - push_ros_namespace: {namespace: ''}
        - node: {pkg: toy, exec: run, name: a}
    """
    (node,) = nodes(workspace, text)
    assert (node.label, node.namespace) == ('a', '/')


@pytest.mark.parametrize('bad', ['a b', '1st', 'a//b', 'ä'])
def test_a_namespace_that_ros_would_refuse_is_refused(workspace, bad):
    text = """
        launch:
        - arg: {name: ns}
        - push_ros_namespace: {namespace: $(var ns)}
    """
    with pytest.raises(LaunchError, match='is no namespace'):
        nodes(workspace, text, ns=bad)


def test_an_include_sees_and_sets_the_variables_around_it(workspace):
    workspace.file(
        """
        launch:
        - arg: {name: a, default: own}
        - arg: {name: b, default: own}
        - arg: {name: c, default: own}
        - node: {pkg: toy, exec: run, name: $(var a)_$(var b)_$(var c)}
        - let: {name: told, value: inner}
        """,
        'inner.launch.yaml',
    )
    text = """
        launch:
        - arg: {name: a, default: outer}
        - include: {file: $(dirname)/inner.launch.yaml, arg: [{name: b, value: given}]}
        - node: {pkg: toy, exec: run, name: $(var told)}
    """
    assert names(workspace, text) == ['outer_given_own', 'inner']
    assert names(workspace, text, c='x') == ['outer_given_x', 'inner']
    declared = declared_arguments(workspace.file(text))
    assert [(a.name, a.default) for a in declared] == [('a', 'outer'), ('c', 'own')]
    with pytest.raises(LaunchError, match="no argument 'b'"):
        names(workspace, text, b='mine')


def test_a_file_that_includes_itself_is_refused(workspace):
    path = workspace.file('launch:\n- include: {file: $(dirname)/a.launch.yaml}')
    with pytest.raises(LaunchError, match='includes nest deeper'):
        plan(path, {})


def test_arguments_behind_conditions_are_declared_too(workspace):
    text = """
        launch:
        - arg: {name: a, default: 'false', description: first}
        - group:
            if: $(var a)
            children:
            - arg: {name: b}
    """
    found = declared_arguments(workspace.file(text))
    assert [(x.name, x.default, x.conditional) for x in found] == [
        ('a', 'false', False),
        ('b', None, True),
    ]
    assert nodes(workspace, text, b='given in vain') == ()


def test_the_command_is_that_of_launch_ros(workspace):
    params = workspace.root / 'p.yaml'
    params.write_text('{}')
    text = f"""
        launch:
        - arg: {{name: level, default: info}}
        - arg: {{name: two, default: '2'}}
        - node:
            pkg: toy
            exec: run
            name: n
            namespace: left
            args: --own 'a b'
            ros_args: --log-level $(var level)
            env: [{{name: E, value: $(var level)}}]
            param:
            - {{name: early, value: 1}}
            - from: {params}
            - {{name: x, value: $(var level)}}
            - {{name: r, value: $(var two), type: float}}
            - {{name: literal, value: '2'}}
            - {{name: l, value: [$(var level), b], type: list_of_str}}
            - {{name: a, param: [{{name: b, value: true}}, {{name: c, value: [1, 2]}}]}}
            - {{name: a, param: [{{name: d, value: 0.5}}]}}
            remap: [{{from: joint_states, to: /joint_states}}]
    """
    (node,) = nodes(workspace, text)
    saved = []

    def save(values):
        saved.append(values)
        return f'saved{len(saved)}.yaml'

    assert node.command(save) == [
        str(workspace.prefix / 'lib/toy/run'),
        *('--own', 'a b', '--ros-args', '--log-level', 'info', '--ros-args'),
        *('-r', '__node:=n', '-r', '__ns:=/left'),
        *('--params-file', 'saved1.yaml'),
        *('--params-file', str(params)),
        *('--params-file', 'saved2.yaml'),
        *('-r', 'joint_states:=/joint_states'),
    ]
    assert saved == [
        {'/left/n': {'ros__parameters': {'early': 1}}},
        {
            '/left/n': {
                'ros__parameters': {
                    'x': 'info',
                    'r': 2.0,
                    'literal': '2',
                    'l': ['info', 'b'],
                    'a.b': True,
                    'a.c': [1, 2],
                    'a.d': 0.5,
                }
            }
        },
    ]
    assert yaml.safe_load(yaml.safe_dump(saved)) == saved
    assert node.environment == {'E': 'info'}
    assert '-p a.d:=0.5 -r joint_states' in node.describe()


def test_values_of_a_node_without_full_name_go_to_all(workspace):
    text = """
        launch:
        - node: {pkg: toy, exec: run, param: [{name: x, value: 1}]}
    """
    (node,) = nodes(workspace, text)
    saved = []
    assert node.command(lambda v: saved.append(v) or 'p') == [
        str(workspace.prefix / 'lib/toy/run'),
        *('--ros-args', '--params-file', 'p'),
    ]
    assert list(saved[0]) == ['/**']


def test_nodes_of_this_package_need_no_index(workspace, monkeypatch):
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    text = 'launch:\n- node: {pkg: dipod_ros, exec: policy_server}'
    (node,) = nodes(workspace, text)
    assert node.program == (sys.executable, '-m', 'dipod_ros.nodes.policy_server')


@pytest.mark.parametrize(
    ('node', 'says'),
    [
        ('pkg: toy, exec: walk', "no executable 'walk' of package 'toy': searched"),
        ('pkg: other, exec: run', "package 'other'"),
        ('pkg: dipod_ros, exec: walk', 'it has mujoco_sim, policy_server, recorder, trainer'),
        ('pkg: toy, exec: run, name: a/b', 'is no node name'),
        ('pkg: toy, exec: run, param: [{from: no.yaml}]', 'no.yaml does not exist'),
        ('pkg: toy, exec: run, param: [{name: p, value: x, type: int}]', "parameter p: 'x' is no"),
        ('pkg: toy, exec: run, param: [{name: p, value: 1, type: float}]', 'p: 1 is no float'),
    ],
)
def test_a_node_that_cannot_start_is_refused_before_any_starts(workspace, node, says):
    with pytest.raises(LaunchError, match=says):
        nodes(workspace, f'launch:\n- node: {{{node}}}')


def test_equal_labels_are_told_apart(workspace):
    text = """
        launch:
        - node: {pkg: toy, exec: run}
        - node: {pkg: toy, exec: run}
    """
    assert names(workspace, text) == ['run-1', 'run-2']


def test_patience_comes_from_the_variables_of_launch(workspace):
    path = workspace.file("launch:\n- let: {name: sigterm_timeout, value: '7'}")
    assert plan(path, {}).sigterm_timeout_s == 7.0
    assert plan(path, {}).sigkill_timeout_s == 5.0
