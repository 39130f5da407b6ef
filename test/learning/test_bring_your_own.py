# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/bring_your_own.md: plain arrays become demonstrations, own weights act."""

import importlib.util
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')

from dipod_ros.cli.main import main  # noqa: E402
from dipod_ros.learning.demonstrations.dataset import Demonstrations  # noqa: E402
from dipod_ros.policy.flow import load_policy  # noqa: E402
from dipod_ros.serving.engines.base import check_golden  # noqa: E402
from dipod_ros.serving.engines.select import EngineFactory  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / 'docs'
EXAMPLES = DOCS / 'examples'
DT = 0.04
ROBOT = {
    'robot': 'two_joints',
    'joints': ['a', 'b'],
    'limits': {
        'position_lower': [-2.0, -2.0],
        'position_upper': [2.0, 2.0],
        'velocity': [1.5, 1.5],
        'acceleration': [8.0, 8.0],
    },
    'control_period_s': DT,
}
POLICY = """
task: pick
horizon: 6
streams:
- {name: q, source: joint_position, topic: joint_states}
- {name: command, source: command}
- {name: goal, source: point, topic: goal}
- {name: wrist, source: image, topic: wrist/image_raw, size: 4, image: {width: 24, height: 16}}
"""


def motion(t, faster=1.0):
    """Return commanded positions at times [T], as [T, 2]."""
    return np.stack([0.6 * np.sin(faster * t), -0.4 * np.sin(0.8 * faster * t)], axis=-1)


def write_episode(path, rate_hz=30.0, lag_s=0.05, faster=1.0, success=True):
    """Write what a recorder at another rate than ours would have."""
    t = np.arange(0, 3, 1 / rate_hz)
    pictures = np.zeros((len(t), 40, 60, 3), np.uint8)
    pictures[..., 0] = np.arange(len(t))[:, None, None]  # red says which sample it is
    np.savez(
        path,
        time_s=100 + t,
        joint_position=motion(t - lag_s, faster),
        command=motion(t, faster),
        goal=np.stack([t, 0 * t, 0 * t], axis=1),
        wrist=pictures,
        success=success,
    )
    return path


def run(name, *arguments):
    """Run an example as its user does."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def files(tmp_path):
    (tmp_path / 'robot.yaml').write_text(yaml.safe_dump({'/**': {'ros__parameters': ROBOT}}))
    (tmp_path / 'pick.yaml').write_text(POLICY)
    return ['--robot', tmp_path / 'robot.yaml', '--policy', tmp_path / 'pick.yaml']


def test_arrays_of_another_rate_become_demonstrations_that_are_cloned(files, tmp_path):
    out = tmp_path / 'demos.safetensors'
    episodes = [
        write_episode(tmp_path / '0.npz'),
        write_episode(tmp_path / '1.npz', faster=5.0),  # 3 rad/s
        write_episode(tmp_path / '2.npz', success=False),
    ]
    code, said, error = run('convert_episodes.py', *files, '--out', out, *episodes)
    assert code == 0, error
    assert '1.npz is left out: no policy within the limits can repeat it: a moves at' in said
    made = Demonstrations.load(out)
    assert made.success.tolist() == [True, False]
    first = made.episodes == 0
    assert np.count_nonzero(first) > 50 and np.count_nonzero(~first) > 50
    q, command, goal, features = np.split(made.observations[first], [2, 4, 7], axis=1)
    t = np.arange(len(q)) * DT  # nothing was cut at its begin: it moves at once
    np.testing.assert_allclose(q, motion(t - 0.05), atol=2e-3)
    np.testing.assert_allclose(command, motion(t + DT / 2), atol=2e-3)
    # The newest sample of then: never one of the future.
    late = t - goal[:, 0]
    assert late.min() > -1e-6 and late.max() < 1 / 30 + 1e-6
    np.testing.assert_array_equal(
        made.images['wrist'][first][:, 0, 0, 0], np.round(goal[:, 0] * 30)
    )
    assert not features.any()
    reached = command[:, None] + np.cumsum(made.actions[first], axis=1)
    ahead = (np.arange(6) + 1.5) * DT
    np.testing.assert_allclose(reached, motion(t[:, None] + ahead), atol=4e-3)

    cloned = ['pretrain', str(out), '--out', str(tmp_path / 'flow'), '--only-success']
    assert main([*cloned, '--steps', '3', '--batch', '8']) == 0
    policy = load_policy(tmp_path / 'flow')
    noise = np.zeros((1, policy.spec.noise_size), np.float32)
    assert np.isfinite(policy.act(made.observations[:1], noise)).all()


def test_what_cannot_be_converted_is_one_line(files, tmp_path):
    slow = write_episode(tmp_path / '0.npz', faster=5.0)
    code, _, error = run('convert_episodes.py', *files, '--out', tmp_path / 'x', slow)
    assert (code, error) == (1, 'error: no episode is left\n')
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'goal': None}, "has no ['goal']; it has"),
        ({'goal': np.zeros((3, 3))}, 'must be equally long'),
        ({'time_s': np.zeros(90)}, 'time_s must increase'),
        ({'joint_position': np.zeros((90, 7))}, 'joint_position is [T, 7], the robot has 2 joints'),
        ({'command': np.zeros((90, 7))}, 'command is [T, 7], the robot has 2 joints'),
        ({'command': np.zeros(90)}, 'command is [T], the robot has 2 joints'),
        ({'joint_position': np.full((90, 2), np.nan)}, '0.npz: joint_position holds NaN'),
        ({'command': np.full((90, 2), np.inf)}, '0.npz: command holds NaN, or what else'),
        ({'goal': np.full((90, 3), 'x')}, '0.npz: goal holds NaN, or what else'),
        ({'goal': np.zeros((90, 2))}, 'goal has 2 numbers per sample, the policy file says 3'),
    ],
)
def test_arrays_that_do_not_fit_are_named(files, tmp_path, change, reason):
    path = write_episode(tmp_path / '0.npz')
    arrays = dict(np.load(path)) | change
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    code, _, error = run('convert_episodes.py', *files, '--out', tmp_path / 'x', path)
    assert code == 1 and error.startswith('error: ') and reason in error


def claim(path, shape):
    """Write an array whose header claims a shape that its file does not hold."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {'descr': '<f8', 'fortran_order': False, 'shape': shape}
    )
    with zipfile.ZipFile(path, 'w') as arrays:
        arrays.writestr('time_s.npy', file.getvalue() + bytes(8))


@pytest.mark.parametrize(
    'spoil',
    [
        lambda path: claim(path, (10**15,)),
        lambda path: claim(path, (3,)),
        lambda path: path.write_bytes(b'PK\x03\x04'),
        lambda path: path.write_bytes(b''),
        lambda path: np.save(path.open('wb'), np.zeros(3)),
        lambda path: np.savez(path, time_s=np.array([{}], dtype=object)),
        lambda path: path.unlink(),
    ],
)
def test_a_file_that_is_no_npz_of_arrays_is_one_line(files, tmp_path, spoil):
    path = tmp_path / '0.npz'
    write_episode(path)
    spoil(path)
    code, _, error = run('convert_episodes.py', *files, '--out', tmp_path / 'x', path)
    assert code == 1 and 'cannot be read as an .npz of arrays' in error
    assert error.startswith('error: ') and error.count('\n') == 1


def test_a_flow_of_the_other_convention_acts_as_its_own_code_would(tmp_path):
    spec = importlib.util.spec_from_file_location('own_flow', EXAMPLES / 'own_flow.py')
    own = importlib.util.module_from_spec(spec)
    sys.modules['own_flow'] = own  # where dataclasses look
    spec.loader.exec_module(own)
    made = own.train(steps=40)
    policy = own.to_policy(made, own.make_spec())
    rng = np.random.default_rng(1)
    observation = rng.uniform(-1, 1, size=(16, 4)).astype(np.float32)
    noise = rng.standard_normal((16, 10)).astype(np.float32)

    # Their own sampler: from noise at s=0 to the action at s=1, five midpoint steps.
    o = (torch.from_numpy(observation) - made.o_mean) / made.o_std
    x, h = torch.from_numpy(noise), 1 / 5
    with torch.no_grad():
        for k in range(5):
            s = torch.full((16,), k * h)
            middle = x + h / 2 * made.net(x, s, o)
            x = x + h * made.net(middle, s + h / 2, o)
    chunk = (x * made.a_std + made.a_mean).reshape(16, 5, 2).numpy()
    np.testing.assert_allclose(policy.act(observation, noise), chunk, atol=1e-6)

    manifest = policy.save(tmp_path / 'own')
    from dipod_ros.policy import checkpoint

    check_golden(EngineFactory('onnx').build(checkpoint.load(tmp_path / 'own')), manifest.golden)


def test_the_loop_of_the_page_learns_in_an_external_environment(tmp_path, monkeypatch):
    page = (DOCS / 'bring_your_own.md').read_text()
    loop = next(b for b in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if 'make_env' in b)
    from dipod_ros.learning.bench.starts import external_spec
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.sim.external.registry import make_env

    torch.manual_seed(0)
    spec = external_spec(make_env('hopper', num_envs=1))
    FlowPolicy(spec).save(tmp_path / 'runs/starts/hopper/flow')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(loop.replace('range(10)', 'range(2)'), names)  # the first update fits the critic alone
    assert names['learner'].version == 1
    assert np.isfinite(list(names['metrics'].values())).all()
    assert (tmp_path / 'runs/ft/checkpoints/v000001').is_dir()
