# SPDX-License-Identifier: Apache-2.0
"""The same files in ROS 2's own launch give the same nodes; runs only where launch is installed."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dipod_ros.resources import resource, share_dir
from dipod_ros.ros.launch_runner.plan import plan

if importlib.util.find_spec('launch_ros') is None or importlib.util.find_spec('launch') is None:
    pytest.skip('ROS 2 launch is not installed (it is not on PyPI)', allow_module_level=True)

ARM7 = str(resource('config/robots/arm7.yaml'))

# Instead of a node: writes down how it was called, with the contents of parameter files.
RECORDER = """
import json, os, sys
sys.path[:0] = {path!r}
import yaml
words = sys.argv[1:]
for i, word in enumerate(words):
    if word == '--params-file':
        words[i + 1] = yaml.safe_load(open(words[i + 1]))
found = {{'program': os.path.basename(sys.argv[0]), 'words': words,
          'range': os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE'), 'e': os.environ.get('E')}}
with open(os.path.join({folder!r}, str(os.getpid())), 'w') as file:
    json.dump(found, file)
"""

LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
path, *arguments = sys.argv[1:]
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    AnyLaunchDescriptionSource(path), launch_arguments=[a.split(':=') for a in arguments])]))
sys.exit(service.run())
"""

GENERAL = """
launch:
- arg: {name: a, default: 'false'}
- arg: {name: b, default: 'x $(var a)'}
- let: {name: c, value: $(var b)!}
- let: {name: small, value: '1e-3'}
- let: {name: seven, value: '7'}
- group:
    unless: $(var a)
    children:
    - push_ros_namespace: {namespace: outer}
    - let: {name: c, value: inner}
    - group:
      - push-ros-namespace: {namespace: inner}
      - node: {pkg: toy, exec: run, name: one, args: "--c=$(var c) 'and more'"}
    - node: {pkg: toy, exec: run, name: two, namespace: /top}
- node:
    pkg: toy
    exec: run
    name: $(env NAME_THAT_IS_NOT_SET three)
    namespace: low
    env: [{name: E, value: $(var c)}]
    param:
    - {name: text, value: $(var c)}
    - {name: number, value: $(var small), type: float}
    - {name: small, value: $(var small)}
    - {name: guess, value: $(var seven)}
    - {name: word, value: $(var seven), type: str}
    - {name: literal, value: '7'}
    - {name: empty, value: ''}
    - {name: items, value: [$(var a), 'true'], type: list_of_str}
    - {name: numbers, value: [$(var seven), 8]}
    - {name: g, param: [{name: x, value: true}, {name: y, value: [1, 2]}]}
- node: {pkg: toy, exec: run, if: $(var a), param: [{name: only, value: 1.5}]}
"""


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Run a file with launch, plan it with the runner, and assert that they agree."""
    prefix, records = tmp_path / 'install', tmp_path / 'records'
    records.mkdir()
    saved = tmp_path / 'saved'
    saved.mkdir()
    for package, executables in {
        'toy': ('run',),
        'dipod_ros': ('mujoco_sim', 'policy_server', 'trainer'),
    }.items():
        index = prefix / 'share/ament_index/resource_index/packages'
        index.mkdir(parents=True, exist_ok=True)
        (index / package).touch()
        folder = prefix / 'lib' / package
        folder.mkdir(parents=True)
        for name in executables:
            text = RECORDER.format(path=[str(Path(yaml.__file__).parents[1])], folder=str(records))
            (folder / name).write_text(f'#!{sys.executable} -S\n{text}')
            (folder / name).chmod(0o755)
    (prefix / 'share/dipod_ros').symlink_to(share_dir())
    monkeypatch.setenv(
        'AMENT_PREFIX_PATH',
        f'{prefix}{os.pathsep}{os.environ.get("AMENT_PREFIX_PATH", sys.prefix)}',
    )
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))

    def run(path, **given):
        words = [f'{name}:={value}' for name, value in given.items()]
        done = subprocess.run(
            [sys.executable, '-c', LAUNCH, str(path), *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        theirs = [json.loads(p.read_text()) for p in records.iterdir()]
        ours = [record(node, saved) for node in plan(Path(path), given).nodes]
        key = json.dumps
        assert sorted(map(normal, theirs), key=key) == sorted(map(normal, ours), key=key)
        return theirs

    return run


def record(node, folder):
    """Return what the recorder would write down for a node of the runner's."""

    def save(params):
        path = folder / f'{len(list(folder.iterdir()))}.yaml'
        path.write_text(yaml.safe_dump(params))
        return path

    words = node.command(save)[len(node.program) :]
    for i, word in enumerate(words):
        if word == '--params-file':
            words[i + 1] = yaml.safe_load(Path(words[i + 1]).read_text())
    return {
        'program': node.program[-1].rsplit('.', 1)[-1].rsplit('/', 1)[-1],
        'words': words,
        'range': node.environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE')
        or os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE'),
        'e': node.environment.get('E'),
    }


def normal(found):
    """Merge parameters as ROS would; launch writes one file per value, the runner one for all."""
    words, params = [], {}
    for word in found['words']:
        if isinstance(word, dict):
            for target, body in word.items():
                params.setdefault(target, {}).update(body['ros__parameters'])
        elif word != '--params-file':
            words.append(word)
    return {**found, 'words': words, 'params': params}


@pytest.mark.parametrize('given', [{}, {'a': 'true'}, {'a': '0', 'b': 'y z'}], ids=str)
def test_everything_that_the_runner_supports(compare, tmp_path, given):
    path = tmp_path / 'general.launch.yaml'
    path.write_text(GENERAL)
    assert compare(path, **given)


@pytest.mark.parametrize(
    ('name', 'given'),
    [
        ('sim', ''),
        ('sim', 'lockstep:=true task:=reach seed:=4'),
        ('sim', 'worlds:=2 server:=false'),
        ('online', ''),
        ('online', 'ns:=left run_dir:=/tmp/somewhere beta:=0 discovery_range:=SUBNET'),
        ('online', 'ns:=/left/arm lockstep:=false follow_trainer:=false'),
        ('robot', f'robot:={ARM7} checkpoint:=reach_flow'),
        ('robot', f'robot:={ARM7} checkpoint:=reach_flow trainer:=true replay_topic:=/replay'),
    ],
)
def test_the_files_of_this_package(compare, name, given):
    arguments = dict(word.split(':=') for word in shlex.split(given))
    found = compare(resource(f'launch/{name}.launch.yaml'), **arguments)
    assert {f['range'] for f in found} == {arguments.get('discovery_range', 'LOCALHOST')}
