# SPDX-License-Identifier: Apache-2.0
"""The policy server's states: what fails half-way leaves nothing behind and says why."""

import json
import sys
import threading
import time

import pytest

rclpy = pytest.importorskip('rclpy')

from checkpoints import make_limits, make_policy, make_spec, save_checkpoint  # noqa: E402
from eyes import make_camera_policy  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.nodes import _policy_server_parts as parts  # noqa: E402
from dipod_ros.nodes import policy_server  # noqa: E402
from dipod_ros.nodes._trainer_params import TrainerParams, open_run  # noqa: E402
from dipod_ros.nodes.policy_server import PolicyServer  # noqa: E402
from dipod_ros.policy.spec import Stream  # noqa: E402
from dipod_ros.ros.lifecycle import OK  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
LIMITS = make_limits()
TORQUES = {
    'interface': 'effort',
    'command_rate_hz': 100.0,
    'limits.effort': [5.0, 5.0, 5.0],
    'effort.kp': [10.0],
    'effort.kd': [1.0],
    'effort.gravity_compensation': True,  # and no mjcf to compute it from
}


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a server in this process, by default unconfigured."""
    save_checkpoint(tmp_path / 'first', seed=0)
    nodes = []

    def begin(*arguments, **parameters):
        given = {
            'checkpoint': 'first',
            'model_dirs': [str(tmp_path)],
            'joints': list(LIMITS.joints),
            'seed': 1,
            'autostart': False,
            **{f'limits.{k}': v for k, v in LIMITS.to_params().items()},
            **parameters,
        }
        arguments = ['--ros-args', *arguments]
        for name, value in given.items():
            arguments += ['-p', f'{name}:={json.dumps(value)}']
        rclpy.init(args=arguments)
        nodes.append(PolicyServer())
        return nodes[-1]

    yield begin
    for node in nodes:
        node.close()
        node.destroy_node()
    rclpy.try_shutdown()


def helpers():
    """Return how many threads of the server are alive."""
    return sum(t.name in ('hot_swap', 'shadow') for t in threading.enumerate())


def status(server):
    return server._reports.now()


def nothing_is_left(server, subscriptions):
    assert server._state_machine.current_state[1] == 'unconfigured'
    assert status(server)['state'] == 'unconfigured' and status(server)['active'] is None
    assert helpers() == 0
    assert len(list(server.subscriptions)) == subscriptions


def test_an_output_that_cannot_be_made_leaves_nothing_and_every_retry_says_why(make):
    server = make(**TORQUES)
    before = len(list(server.subscriptions))
    for _ in range(3):
        assert server.trigger_configure() != OK
        assert 'effort.gravity_compensation needs mjcf' in status(server)['error']
        nothing_is_left(server, before)


def test_streams_that_cannot_be_heard_leave_nothing_and_say_why(make, tmp_path, monkeypatch):
    make_camera_policy().save(tmp_path / 'eyed')
    without_opencv(monkeypatch)
    server = make(checkpoint='eyed')
    before = len(list(server.subscriptions))
    # Its encoder needs OpenCV as well: let that one be there.
    monkeypatch.setattr(server._loader, '_eyes', lambda checkpoint: None)
    for _ in range(2):
        assert server.trigger_configure() != OK
        assert 'cannot listen to front/image_raw' in status(server)['error']
        nothing_is_left(server, before)


def test_a_bug_while_configuring_is_told_as_it_is_and_the_next_try_may_succeed(make, monkeypatch):
    server = make()
    before = len(list(server.subscriptions))

    def stumble(*_):
        raise RuntimeError('one line\nand another')

    monkeypatch.setattr(policy_server, 'SensorInput', stumble)
    assert server.trigger_configure() != OK
    assert status(server)['error'] == 'on_configure failed: RuntimeError: one line'
    nothing_is_left(server, before)
    monkeypatch.undo()
    assert server.trigger_configure() == OK
    assert status(server)['error'] == '' and status(server)['state'] == 'inactive'
    assert server.trigger_cleanup() == OK
    nothing_is_left(server, before)


def test_a_start_of_its_own_accord_that_fails_of_a_bug_says_so(make, monkeypatch):
    monkeypatch.setattr(parts, 'CommandOutput', lambda *_: 1 / 0)
    with pytest.raises(UserError, match='^on_configure failed: ZeroDivisionError: division by'):
        make(autostart=True)
    assert helpers() == 0


@pytest.mark.parametrize('parameter', ['controller', 'trainer_topic'])
def test_a_parameter_that_names_no_topic_is_the_users_mistake(make, parameter):
    with pytest.raises(UserError, match=f"{parameter} is 'my arm', which is no name of a ROS"):
        make(**{parameter: 'my arm'})


@pytest.mark.parametrize('name', ['', ' ', '/'])
def test_no_parameter_lets_checkpoints_come_from_everywhere(make, name):
    """An empty name, of a launch argument left empty, would be the working directory."""
    with pytest.raises(UserError, match='model_dirs'):
        make(model_dirs=[name])
    for given in ({'model_dirs': (name,)}, {'run_dir': name}):
        with pytest.raises(UserError, match=next(iter(given))):
            open_run(TrainerParams(checkpoint='reach_flow', **given))


@pytest.mark.parametrize('given', [[0.0], [0.2], [0.01, 0.01], [-0.01, 0.01, 0.01]])
def test_bounds_of_stillness_that_make_no_sense_are_the_users_mistake(make, given):
    with pytest.raises(UserError, match='still_rad must be'):
        make(still_rad=given)


def test_stillness_is_judged_joint_by_joint(make):
    assert make(still_rad=[0.01, 0.01, 0.0005])._loop_config.still_rad == (0.01, 0.01, 0.0005)


@pytest.mark.parametrize(
    ('interface', 'stays'),
    [('trajectory', True), ('position', True), ('velocity', False), ('effort', False)],
)
def test_only_positions_stay_in_force_while_nothing_is_sent(make, interface, stays):
    torques = TORQUES | {'effort.gravity_compensation': False}
    more = torques if interface == 'effort' else {'interface': interface}
    if interface == 'velocity':
        more['command_rate_hz'] = 100.0
    assert make(**more)._loop_config.command_stays == stays


def without_opencv(monkeypatch):
    for name in ('dipod_ros.nodes._policy_server_camera', 'dipod_ros.serving.picture'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr('dipod_ros.nodes._policy_server_camera', raising=False)
    monkeypatch.setitem(sys.modules, 'cv2', None)


@pytest.mark.parametrize('how', ['checkpoint', 'shadow_checkpoint', 'at_once', 'approval'])
@pytest.mark.parametrize(('name', 'why'), [('eyed', 'cv2'), ('far', 'topic name')])
def test_a_policy_that_cannot_be_heard_is_refused_while_another_goes_on(
    make, tmp_path, monkeypatch, how, name, why
):
    if name == 'eyed':
        manifest = make_camera_policy().save(tmp_path / name)
        without_opencv(monkeypatch)
    else:  # with the namespace in front of it this topic is longer than any may be
        far = Stream('far', 'vector', 2, 'x' * 195)
        manifest = make_policy(1, streams=(*make_spec().streams, far)).save(tmp_path / name)
    asked = how in ('checkpoint', 'shadow_checkpoint')
    server = make(
        '-r', f'__ns:=/{"n" * 80}', follow_trainer=not asked, promotion='at_once' if asked else how
    )
    assert server.trigger_configure() == OK
    if asked:
        server.set_parameters([Parameter(how, value=name)])
    else:
        text = json.dumps({'path': str(manifest.path), 'sha256': manifest.sha256})
        server._requests._on_announcement(String(data=text))
    error = status(server)['error']
    assert 'cannot listen to' in error and why in error and name in error
    now = status(server)
    assert now['active']['name'] == 'first' and now['state'] == 'inactive'
    assert now['requested'] is now['candidate'] is now['shadow'] is None


def test_each_configure_acts_under_another_name(make):
    server = make(actor='left_arm')
    assert status(server)['actor'] == 'left_arm'
    names = []
    for _ in range(2):
        assert server.trigger_configure() == OK
        names.append(status(server)['actor'])
        assert server._parts.agent.name == names[-1]
        assert server.trigger_cleanup() == OK
    assert names[0] != names[1] and all(n.startswith('left_arm-') for n in names)


@pytest.mark.parametrize('lockstep', [False, True])
def test_waiting_between_episodes_is_refused_in_lockstep_when_it_is_set(make, lockstep):
    server = make(lockstep=lockstep)
    (result,) = server.set_parameters([Parameter('hold_between_episodes', value=True)])
    assert result.successful is not lockstep
    assert ('is for real time' in result.reason) is lockstep
    assert server.get_parameter('hold_between_episodes').value is not lockstep
    assert server.set_parameters([Parameter('hold_between_episodes', value=False)])[0].successful


def test_problems_of_an_activation_end_with_it(make):
    server = make(sole_commander=False)
    assert server.trigger_configure() == OK
    for _ in range(2):
        assert server.trigger_activate() == OK
        assert server._notices.active == []
        wait_for(lambda: any('joint_states' in text for text in server._notices.active))
        assert server.trigger_deactivate() == OK
        assert server._notices.active == []


def wait_for(condition, seconds=60.0):
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)
