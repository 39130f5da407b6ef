# SPDX-License-Identifier: Apache-2.0
"""A parameter table declares, checks and documents itself."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')

from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.nodes import _parameters  # noqa: E402
from dipod_ros.nodes._mujoco_sim_params import MujocoSimParams  # noqa: E402
from dipod_ros.nodes._policy_server_params import PolicyServerParams  # noqa: E402
from dipod_ros.nodes._recorder_params import RecorderParams  # noqa: E402
from dipod_ros.nodes._trainer_params import TrainerParams, open_run  # noqa: E402
from dipod_ros.ros import params, unknown_parameters  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Limits:
    velocity: tuple[float, ...] = params.param((), 'largest speed', unit='rad/s')


@dataclass(frozen=True)
class Table:
    rate_hz: float = params.param(50.0, 'how often', low=1.0, high=100.0)
    mode: str = params.param('calm', 'how', choices=('calm', 'brisk'), read_only=False)
    steps: int = params.param(2, 'how many', low=1)
    verbose: bool = params.param(False, 'say more')
    joints: tuple[str, ...] = params.param((), 'names')
    limits: Limits = params.group(Limits)


@pytest.fixture
def make_node(ros):
    nodes = []

    def make(*arguments):
        cli = ['--ros-args']
        for argument in arguments:
            cli += ['-p', argument]
        nodes.append(Node('table', context=ros, cli_args=cli))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_defaults_fill_the_table(make_node):
    assert params.declare(make_node(), Table) == Table()


def test_overrides_reach_nested_fields(make_node):
    node = make_node('rate_hz:=40.0', 'joints:=[a, b]', 'limits.velocity:=[1.0, 2.5]')
    table = params.declare(node, Table)
    assert table.rate_hz == 40.0
    assert table.joints == ('a', 'b')
    assert table.limits.velocity == (1.0, 2.5)


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('rate_hz:=40', 'rate_hz must be a number written with a decimal point'),
        ('rate_hz:=400.0', 'rate_hz must be within 1..100, got 400.0'),
        ('mode:=angry', 'mode must be one of calm | brisk, got angry'),
        ('steps:=0', 'steps must be within 1.., got 0'),
        ('limits.velocity:=[1, 2]', 'limits.velocity must be a list of numbers'),
        ('joints:=[1, 2]', 'joints must be a list of strings'),
        ('rate_hz:=.nan', 'rate_hz must be within 1..100, got nan'),
        ('rate_hz:=.inf', 'rate_hz must be within 1..100, got inf'),
        ('limits.velocity:=[1.0, .nan]', 'limits.velocity must hold finite numbers'),
        ('limits.velocity:=[.inf]', 'limits.velocity must hold finite numbers'),
    ],
)
def test_a_bad_value_is_one_line_that_says_what_to_write(make_node, argument, message):
    with pytest.raises(UserError) as caught:
        params.declare(make_node(argument), Table)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('table', _parameters.TABLES, ids=lambda t: t.__name__)
@pytest.mark.parametrize(
    ('argument', 'hint'),
    [
        ('promotoin:=shadow', 'promotoin: did you mean promotion?'),
        ('hold_between_episode:=true', 'did you mean hold_between_episodes?'),
        ('ramp_in:=3.0', 'did you mean ramp_in_s?'),
        ('limits.velocty:=[1.0]', 'did you mean limits.velocity?'),
        ('limits.jerk:=[1.0]', 'unknown parameter limits.jerk'),
        ('limit.velocity:=[1.0]', 'did you mean limits.velocity?'),
        ('workspace.frame:=base', 'unknown parameter workspace.frame'),
        ('effort.kpp:=[1.0]', 'did you mean effort.kp?'),
    ],
)
def test_a_misspelt_parameter_of_any_node_ends_the_start_of_every_node(
    make_node, table, argument, hint
):
    with pytest.raises(UserError) as caught:
        _parameters.read_parameters(make_node(argument), table)
    assert hint in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('table', _parameters.TABLES, ids=lambda t: t.__name__)
def test_what_is_meant_for_another_node_does_not_end_the_start(make_node, monkeypatch, table):
    warned = []
    node = make_node(
        'use_sim_time:=false', 'mjcf:=arm.xml', 'promotion:=shadow', 'epochs:=3',
        'qos_overrides./outcome.subscription.depth:=3', 'update_rate:=100',
    )  # fmt: skip
    logger = node.get_logger()
    monkeypatch.setattr(logger, 'warning', warned.append)
    monkeypatch.setattr(node, 'get_logger', lambda: logger)
    _parameters.read_parameters(node, table)
    assert len(warned) == 1 and 'update_rate' in warned[0]


@pytest.mark.parametrize(
    'name',
    [
        *('camera.fps', 'camera', 'controllers', 'interfaces', 'tasks', 'world', 'joint', 'limits'),
        *('effort.gains', 'kinematics.solver', 'joint_limits.velocity', 'limits_file'),
    ],
)
def test_names_that_other_nodes_use_do_not_end_the_start(make_node, monkeypatch, name):
    warned = []
    node = make_node(f'{name}:=7')
    monkeypatch.setattr(node, 'get_logger', lambda: SimpleNamespace(warning=warned.append))
    unknown_parameters.refuse_unknown(node, _parameters.known())
    (text,) = warned
    assert f'parameter {name} is unknown here and ignored' in text
    assert ('did you mean controller?' in text) == (name == 'controllers')


@pytest.mark.parametrize(
    'file',
    [f for part in ('config', 'sim') for f in sorted((ROOT / part).rglob('*.yaml'))],
    ids=lambda f: f.name,
)
def test_every_file_of_ours_is_known_to_every_node(ros, monkeypatch, file):
    arguments = ['--ros-args', '--params-file', str(file)]
    node = Node('mujoco_sim', context=ros, cli_args=arguments)
    try:
        given = node._parameter_overrides
        monkeypatch.setattr(node, 'get_logger', None)  # a warning is a failure
        unknown_parameters.refuse_unknown(node, _parameters.known())
    finally:
        node.destroy_node()
    assert given


def test_a_number_that_is_none_is_refused_while_running_too(make_node):
    @dataclass(frozen=True)
    class Loose:
        share: float = params.param(0.5, 'how much', low=0.0, high=1.0, read_only=False)

    node = make_node()
    params.declare(node, Loose)
    result = node.set_parameters([Parameter('share', value=float('nan'))])[0]
    assert not result.successful and 'share' in result.reason
    assert node.get_parameter('share').value == 0.5


def test_every_number_of_every_node_has_bounds():
    tables = (MujocoSimParams, PolicyServerParams, RecorderParams, TrainerParams)
    for entry in (e for table in tables for e in params.entries(table)):
        if entry.kind is float:
            assert None not in (entry.low, entry.high), entry.name
            assert entry.low <= entry.default <= entry.high, entry.name


def test_only_what_is_not_read_only_changes_while_running(make_node):
    node = make_node()
    params.declare(node, Table)
    fixed, changed, refused = (
        node.set_parameters([p])[0]
        for p in (
            Parameter('rate_hz', value=10.0),
            Parameter('mode', value='brisk'),
            Parameter('mode', value='angry'),
        )
    )
    assert not fixed.successful
    assert changed.successful and not refused.successful
    assert 'calm' in refused.reason
    assert node.get_parameter('mode').value == 'brisk'


def test_descriptors_tell_ros2_param_describe_what_the_table_says(make_node):
    node = make_node()
    params.declare(node, Table)
    descriptor = node.describe_parameter('rate_hz')
    assert descriptor.description == 'how often'
    assert descriptor.floating_point_range[0].to_value == 100.0
    assert node.describe_parameter('limits.velocity').description == 'largest speed [rad/s]'


def test_markdown_has_one_row_per_parameter():
    rows = params.markdown(Table).splitlines()[2:]
    names = [row.split('`')[1] for row in rows]
    assert names == ['rate_hz', 'mode', 'steps', 'verbose', 'joints', 'limits.velocity']
    assert 'calm \\| brisk' in rows[1]


def test_a_field_without_description_is_a_mistake_of_the_programmer():
    @dataclass(frozen=True)
    class Bad:
        x: int = 3

    with pytest.raises(TypeError, match='Bad.x'):
        list(params.entries(Bad))


@pytest.mark.parametrize('dense', [False, True])
def test_a_dense_reward_is_learned_from_with_values_anew(tmp_path, dense):
    learned = TrainerParams(
        checkpoint='reach_flow', run_dir=str(tmp_path), nice=0, dense_reward=dense
    )
    run = open_run(learned)
    run.close()
    config = run.learner.config
    assert (config.algorithm.advantage_clip > 0, config.critic.refresh) == (dense, dense)
