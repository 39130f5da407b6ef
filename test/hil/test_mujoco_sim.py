# SPDX-License-Identifier: Apache-2.0
"""The simulator as a process: lockstep, real time, services, and what it refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
sys.path.insert(0, str(Path(__file__).resolve().parent))

import rclpy  # noqa: E402
from sim_harness import Commander, Simulator  # noqa: E402

from dipod_ros.policy.limits import spline_knots  # noqa: E402
from dipod_ros.resources import resource  # noqa: E402
from dipod_ros.ros import messages  # noqa: E402
from dipod_ros.sim.robot import load_robot  # noqa: E402
from dipod_ros.sim.vector_env import ChunkVectorEnv  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
ROBOT = load_robot('arm7')
DT_NS = 40_000_000
H = 5
CHUNK_NS = H * DT_NS
T0 = DT_NS  # the first stamp; 0 means "from now on" in a trajectory
T1 = T0 + CHUNK_NS


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a simulator and somebody who commands it."""
    context = rclpy.Context()
    rclpy.init(context=context)
    commanders, simulators = [], []

    def begin(robot='arm7', **parameters):
        config = load_robot(robot)
        worlds = parameters.get('worlds', 1)
        commanders.append(Commander(context, config.joints, worlds, config.controller))
        simulators.append(Simulator(tmp_path, robot, **parameters))
        try:
            commanders[-1].wait_connected()
        except AssertionError:
            print(simulators[-1].log)
            raise
        return commanders[-1], simulators[-1]

    yield begin
    for simulator in simulators:
        code = simulator.stop()
        print(simulator.log)
        assert code == 0
    for commander in commanders:
        commander.close()
    context.try_shutdown()


@pytest.fixture
def lockstep(start):
    """Return a simulator in lockstep whose first observation has arrived."""
    commander, simulator = start(lockstep=True, lockstep_resend_s=0.1)
    commander.wait_stamp(T0)
    return commander, simulator


def hold(position, points=H):
    """Return a trajectory that stays at `position`."""
    return np.tile(position, (points, 1))


def test_the_first_observation_is_complete_and_begins_episode_0(lockstep):
    commander, _ = lockstep
    world = commander.worlds[0]
    commander.wait(lambda: world.outcomes and world.tips and world.goals)
    first = world.outcomes[0]
    assert (first.stamp_ns, first.reset, first.episode_now) == (T0, True, 0)
    assert not first.terminated and not first.truncated and first.reward == 0
    env = ChunkVectorEnv('pillar_reach', 1, seed=0)
    msg = world.joints[0]
    assert tuple(msg.name) == ROBOT.joints
    assert np.array_equal(msg.position, env.episodes.worlds.joint_position[0])
    assert len(msg.velocity) == len(msg.effort) == 7
    for name, heard in (('tip', world.tips), ('goal', world.goals)):
        assert messages.stamp_ns(heard[0].header.stamp) == T0
        np.testing.assert_allclose(messages.read_point(heard[0]), env.episodes.points()[name][0])


def _drive(commander, env, expert, decisions):
    """Let the env's executed chunks drive the simulator; return joint positions of both."""
    seen, expected = [], []
    for k in range(decisions):
        before = env.command[0]
        chunk = expert.chunk(env.command, env.episodes.points())
        _, _, terminated, _, info = env.step(chunk)
        positions, velocities = spline_knots(before, info['executed'][0], 0.04)
        commander.follow(T0 + k * CHUNK_NS, positions, velocities)
        seen.append(commander.wait_stamp(T1 + k * CHUNK_NS))
        expected.append(env.episodes.worlds.joint_position[0])
    return np.array(seen), np.array(expected)


def test_lockstep_is_deterministic_and_agrees_with_the_env(start):
    """Two processes and the vectorised env go through the same episodes, resets included."""
    runs = []
    for _ in range(2):
        commander, simulator = start(
            lockstep=True,
            lockstep_resend_s=0.1,
            seed=5,
            allow_nonzero_velocity_at_trajectory_end=True,
        )
        commander.wait_stamp(T0)
        env = ChunkVectorEnv('pillar_reach', 1, seed=5)
        seen, expected = _drive(
            commander, env, env.task.demonstrator(1, np.random.default_rng(0)), 30
        )
        np.testing.assert_allclose(seen, expected, atol=1e-8)
        runs.append(seen)
        ended = [o for o in commander.worlds[0].outcomes if o.terminated]
        assert ended and all(o.reset for o in ended)
        assert commander.wait_status(commands=30)['limit_violations'] == 0
        assert simulator.stop() == 0
        commander.close()
    assert np.array_equal(*runs)


def test_only_the_answer_to_the_present_observation_counts(lockstep):
    commander, _ = lockstep
    q = commander.wait_stamp(T0)
    commander.follow(T0 + DT_NS, hold(q))
    assert commander.wait_status(ignored_commands=1)['ticks'] == 0
    commander.follow(T0, hold(q))
    commander.wait_stamp(T1)
    commander.follow(T0, hold(q))  # the same answer once more
    assert commander.wait_status(ignored_commands=2)['ticks'] == H


def test_an_unanswered_observation_is_published_again(lockstep):
    commander, _ = lockstep
    world = commander.worlds[0]
    commander.wait(lambda: world.stamps().count(T0) >= 3)
    commander.wait(lambda: [o.stamp_ns for o in world.outcomes].count(T0) >= 3)
    copies = [m for m in world.joints if messages.stamp_ns(m.header.stamp) == T0]
    assert all(m == copies[0] for m in copies)
    commander.wait(lambda: commander.status and commander.status[-1]['resends'] >= 2)
    assert commander.status[-1]['waiting_worlds'] == [0]


def test_an_episode_ends_and_the_next_begins_at_the_same_stamp(lockstep):
    commander, _ = lockstep
    world = commander.worlds[0]
    q = commander.wait_stamp(T0)
    decisions = 14
    for k in range(decisions):
        commander.follow(T0 + k * CHUNK_NS, hold(q))
        now = commander.wait_stamp(T1 + k * CHUNK_NS)
    end = commander.wait(lambda: next((o for o in world.outcomes if o.terminated), None))
    assert end.stamp_ns == T0 + decisions * CHUNK_NS and end.reset and end.episode == 0
    assert not end.success and not end.truncated and end.reward == 0
    assert not np.allclose(now, q)  # the new episode's start
    figures = commander.wait_status(episodes=1)
    assert figures['successes'] == 0 and figures['ticks'] == decisions * H


def test_position_commands_take_one_period_each(lockstep):
    commander, _ = lockstep
    q = commander.wait_stamp(T0)
    commander.go_to(q + 1e-3, T0)
    commander.wait_stamp(T0 + DT_NS)
    commander.go_to(q + 3e-3, T0 + DT_NS)
    commander.wait_stamp(T0 + 2 * DT_NS)
    commander.go_to(q[:5], T0 + 2 * DT_NS)
    assert '5 commands for 7 joints' in commander.wait_status(rejected_commands=1)['last_rejection']
    outcomes = commander.worlds[0].outcomes
    assert outcomes[-1].stamp_ns == T0 + 2 * DT_NS  # one per answer


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'joint_names': [*ROBOT.joints[:-1], 'thumb']}, "['joint7'] are not among them"),
        ({'velocities': np.full((H, 7), 0.01)}, 'the last point of the trajectory moves'),
        ({'positions': np.full((H, 7), np.nan)}, 'not finite'),
    ],
)
def test_trajectories_that_a_controller_refuses_are_refused(lockstep, changes, reason):
    commander, simulator = lockstep
    q = commander.wait_stamp(T0)
    commander.follow(T0, **{'positions': hold(q), **changes})
    figures = commander.wait_status(rejected_commands=1)
    assert reason in figures['last_rejection'] and figures['ticks'] == 0
    assert f'command rejected: {figures["last_rejection"]}' in simulator.log
    commander.follow(T0, hold(q))  # the world still waits for a good answer
    commander.wait_stamp(T1)


def test_violations_are_seen_whoever_commands(lockstep):
    commander, simulator = lockstep
    q = commander.wait_stamp(T0)
    commander.follow(T0, hold(q + [0.5, 0, 0, 0, 0, 0, 0]))
    commander.wait_stamp(T1)
    figures = commander.wait_status(limit_violations=1)
    assert 'velocity of joint1' in figures['last_violation']
    assert 'acceleration of joint1' in figures['last_violation']
    assert 'command violates limits' in simulator.log
    status = commander.wait(
        lambda: next((s for m in commander.diagnostics for s in m.status if s.level != b'\0'), None)
    )
    assert status.name == 'mujoco_sim: simulation' and 'joint1' in status.message
    assert {v.key: v.value for v in status.values}['limit_violations'] == '1'


def test_worlds_advance_together(start):
    commander, sim = start(lockstep=True, lockstep_resend_s=0.1, worlds=3)
    starts = [commander.wait_stamp(T0, i) for i in range(3)]
    assert not np.allclose(starts[0], starts[1])
    for i in (0, 2):
        commander.follow(T0, hold(starts[i]), world=i)
    commander.wait_status(waiting_worlds=[1])
    assert commander.status[-1]['ticks'] == 0
    # Those who answered are not asked again.
    count = len(commander.worlds[1].joints)
    before = len(commander.worlds[0].joints)
    commander.wait(lambda: len(commander.worlds[1].joints) > count + 1)
    assert len(commander.worlds[0].joints) == before
    commander.follow(T0, hold(starts[1]), world=1)
    for i in range(3):
        commander.wait_stamp(T1, i)
    assert 'dipod up robot ns:=world0' in sim.log


def test_reset_begins_the_next_episode_and_time_goes_on(lockstep):
    commander, _ = lockstep
    q = commander.wait_stamp(T0)
    commander.follow(T0, hold(q))
    commander.wait_stamp(T1)
    answer = commander.call('reset')
    assert answer.success and answer.message == 'episodes [1] began'
    now = commander.wait_stamp(T1 + DT_NS)
    cut = commander.wait(
        lambda: next((o for o in commander.worlds[0].outcomes if o.truncated), None)
    )
    assert (cut.stamp_ns, cut.episode, cut.reset) == (T1 + DT_NS, 0, True)
    env = ChunkVectorEnv('pillar_reach', 1, seed=0)
    env.reset()  # its second episode
    assert np.array_equal(now, env.episodes.worlds.joint_position[0])
    commander.follow(T1, hold(q))  # an answer to what was before the reset
    commander.wait_status(ignored_commands=1)
    assert commander.clock == sorted(commander.clock)


def test_a_paused_world_moves_by_steps_only(lockstep):
    commander, _ = lockstep
    q = commander.wait_stamp(T0)
    assert not commander.call('step').success  # not paused
    assert commander.pause(True).message == 'paused'
    commander.follow(T0, hold(q))
    assert commander.wait_status(commands=1, paused=True)['ticks'] == 0
    assert commander.call('step').message == 'time is 0.240 s'
    commander.wait_stamp(T1)
    commander.follow(T1, hold(q))
    commander.wait_status(commands=2)
    assert commander.pause(False).message == 'running'
    commander.wait_stamp(T1 + CHUNK_NS)  # the answer given while it was paused is executed now


def test_real_time_goes_by_itself_and_follows_trajectories(start):
    commander, _ = start(task='none', real_time_factor=4.0)
    world = commander.worlds[0]
    commander.wait(lambda: world.joints)
    q = world.index.positions(world.joints[0])
    commander.follow(0, hold(q + 0.02, 10))  # a stamp of 0 is "from now on"
    commander.wait_status(commands=1)
    commander.wait(lambda: np.abs(world.index.positions(world.joints[-1]) - q - 0.02).max() < 2e-3)
    assert set(np.diff(world.stamps())) == {DT_NS}
    assert commander.clock == sorted(commander.clock)
    commander.follow(1, hold(q))
    assert 'ends in the past' in commander.wait_status(rejected_commands=1)['last_rejection']
    judged = commander.wait(lambda: [o.stamp_ns for o in world.outcomes][:4])
    assert set(np.diff(judged)) <= {CHUNK_NS}


def test_episodes_end_in_real_time_too(start):
    commander, _ = start(task='reach', real_time_factor=10.0)
    world = commander.worlds[0]
    # Two, with everything between them: the first thing that is heard may be the end of an episode.
    commander.wait(lambda: sum(o.terminated for o in world.outcomes) >= 2)
    assert all(o.reset and not o.success for o in world.outcomes if o.terminated)
    assert set(np.diff([o.stamp_ns for o in world.outcomes])) == {CHUNK_NS}


def test_a_reset_world_ignores_what_was_meant_for_the_arm_before(start):
    commander, _ = start(real_time_factor=0.02)  # slow: what follows falls into one period
    world = commander.worlds[0]
    commander.wait(lambda: world.joints)
    old = world.stamps()[-1]
    commander.call('reset')
    commander.wait(lambda: any(o.truncated for o in world.outcomes))
    q = world.index.positions(world.joints[-1])
    commander.follow(old, hold(q + 0.3, 100))
    commander.wait_status(ignored_commands=1)
    commander.go_to(q + 0.3)
    figures = commander.wait_status(ignored_commands=2)
    assert figures['limit_violations'] == 0 and figures['commands'] == 0


def test_the_lossy_scenario_loses_every_third_sample(start):
    lossy = resource('sim/scenarios/lossy_joint_states.yaml')
    commander, _ = start(task='none', real_time_factor=4.0, params_files=[lossy])
    world = commander.worlds[0]
    commander.wait(lambda: len(world.joints) >= 8)
    assert set(np.diff(world.stamps())) == {DT_NS, 2 * DT_NS}


def test_the_late_scenario_brings_samples_two_periods_late(start):
    late = resource('sim/scenarios/late_joint_states.yaml')
    commander, _ = start(task='none', real_time_factor=4.0, params_files=[late])
    world = commander.worlds[0]
    commander.wait(lambda: len(world.joints) >= 4)
    assert set(np.diff(world.stamps())) == {DT_NS}
    assert commander.pause(True).success
    now_ns = T0 + commander.wait_status(paused=True)['ticks'] * DT_NS
    for _ in range(2):
        assert now_ns not in world.stamps()
        assert commander.call('step').success
    commander.wait_stamp(now_ns)
    commander.wait(lambda: commander.clock[-1:] == [now_ns + 2 * DT_NS])
    assert world.stamps()[-1] == now_ns


def test_an_inactive_controller_leaves_commands_alone_and_begins_again_at_the_arm(start):
    commander, _ = start(task='none', faults__controller_inactive_s=[0.0, 8.0])
    world = commander.worlds[0]
    commander.wait(lambda: world.joints)
    q = world.index.positions(world.joints[0])
    commander.follow(0, hold(q + 0.02, 10))
    figures = commander.wait_status(ignored_commands=1)
    assert figures['commands'] == 0 and figures['inactive_controllers'] == [0]
    commander.wait_status(inactive_controllers=[])
    assert np.abs(world.index.positions(world.joints[-1]) - q).max() < 2e-3
    # What continues from where the arm would be by now is a jump, and is seen.
    commander.follow(0, hold(q + 0.3, 1))
    assert 'velocity of' in commander.wait_status(commands=1, limit_violations=1)['last_violation']


def test_the_scenario_of_an_inactive_controller_is_one_that_starts(start):
    scenario = resource('sim/scenarios/inactive_controller.yaml')
    commander, _ = start(task='none', real_time_factor=2.0, params_files=[scenario])
    commander.wait_status(inactive_controllers=[0])
    commander.wait_status(inactive_controllers=[])


def test_another_robot_by_its_file_alone(start):
    commander, _ = start('arm2', task='none', lockstep=True, lockstep_resend_s=0.1)
    period_ns = 20_000_000
    q = commander.wait_stamp(period_ns)
    assert q == pytest.approx([0.4, 0.8])
    for k in range(1, 41):
        commander.go_to(q, k * period_ns)
        commander.wait_stamp((k + 1) * period_ns)
    assert commander.wait_status(commands=40)['episodes'] == 0


@pytest.fixture
def gl():
    from dipod_ros.sim.gl import NoGL, offscreen_context

    try:
        offscreen_context(8, 8).free()
    except NoGL as error:
        pytest.skip(str(error))


def test_pictures_come_with_their_calibration(start, gl):
    commander, _ = start(real_time_factor=4.0, cameras=['front'], camera_width=64)
    world = commander.worlds[0]
    commander.wait(lambda: world.images and world.infos)
    image, info = world.images[-1], world.infos[-1]
    assert (image.encoding, image.width, image.height, image.step) == ('rgb8', 64, 96, 192)
    assert np.asarray(image.data).std() > 10
    assert info.k[0] == pytest.approx(48 / np.tan(np.radians(25)))
    assert (info.k[2], info.k[5], info.width, info.height) == (32.0, 48.0, 64, 96)


def test_an_episode_begins_with_a_picture_however_rare_they_are(start, gl):
    commander, _ = start(cameras=['front'], camera_every=100_000)
    world = commander.worlds[0]
    commander.wait(lambda: len(world.joints) >= 3)
    for _ in range(2):
        before = len(world.images)
        assert commander.call('reset').success
        commander.wait(lambda n=before: len(world.images) > n)
    commander.wait(lambda: len([o for o in world.outcomes if o.truncated]) == 2)
    begun = [o.stamp_ns for o in world.outcomes if o.truncated]
    assert [messages.stamp_ns(m.header.stamp) for m in world.images[-2:]] == begun


@pytest.mark.parametrize(
    ('robot', 'parameters', 'message'),
    [
        ('arm7', {'task': 'juggle'}, "unknown task 'juggle': use one of ['reach'"),
        ('arm2', {'task': 'reach'}, 'task reach needs a tip'),
        (None, {}, 'no robot: give its file with --params-file'),
        ('arm7', {'mjcf': 'gone.xml'}, 'robot arm7: no MJCF at'),
        ('arm7', {'cameras': ['side']}, "no camera 'side'; this world has ['front']"),
        ('arm7', {'joints': ['joint1', 'elbow']}, 'has 7 values for 2 joints'),
        ('arm7', {'worlds': 0}, 'worlds'),
        ('arm7', {'lockstep': True, 'camera_every': 2}, 'camera_every 2 would leave observations'),
        ('arm7', {'lockstep': True, 'faults__drop_joint_states': 3}, 'faults.drop_joint_states'),
        ('arm7', {'lockstep': True, 'faults__delay_joint_states': 1}, 'set lockstep to false'),
        ('arm7', {'lockstep': True, 'faults__controller_inactive_s': [1.0, 2.0]}, 'are for real'),
        ('arm7', {'faults__controller_inactive_s': [1.0]}, 'pairs of simulated times'),
        ('arm7', {'real_time_factor': 1}, 'real_time_factor'),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(tmp_path, robot, parameters, message):
    simulator = Simulator(tmp_path, robot, **parameters)
    assert simulator.exit_code() == 2
    lines = [line for line in simulator.log.splitlines() if line.strip()]
    assert 'Traceback' not in simulator.log
    assert len(lines) == 1 and message in lines[0], simulator.log


def test_the_parameters_are_documented_as_they_are():
    from dipod_ros.nodes._mujoco_sim_params import MujocoSimParams
    from dipod_ros.ros.params import markdown

    page = Path(__file__).resolve().parents[2] / 'docs/simulation.md'
    assert markdown(MujocoSimParams) in page.read_text()
