# SPDX-License-Identifier: Apache-2.0
"""`dipod doctor`: what works on this machine, and how to get what does not.

Each check tries the real thing in a process of its own, so that a library that crashes while it
loads is a line of the report and not the end of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dipod_ros.cli.output import add_json_argument, write_json
from dipod_ros.errors import UserError

HELP = 'say what works on this machine, and how to get what is missing'

PROBE_TIMEOUT_S = 60.0
ROS_FROM_PYPI = 'pip install ros-jazzy-rclpy ros-jazzy-common-interfaces ros-jazzy-rmw-fastrtps-cpp'
OK, ABSENT, BROKEN = 'ok', 'absent', 'broken'


@dataclass(frozen=True)
class Check:
    """The answer to one question."""

    name: str
    status: str  # ok, absent, broken
    found: str
    advice: str = ''
    required: bool = True  # for the demo and the nodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report as it comes; 1 when something that the nodes need is missing."""
    checks = []
    for check in all_checks():
        checks.append(check)
        _print(check)
    missing = [c.name for c in checks if c.required and c.status != OK]
    optional = [c.name for c in checks if not c.required and c.status != OK]
    print()
    if missing:
        print(f'The nodes will not run here before this is mended: {", ".join(missing)}')
    else:
        without = f' (without: {", ".join(optional)})' if optional else ''
        print(f'Ready{without}. Try: dipod demo')
    if args.json:
        write_json(args.json, {'ready': not missing, 'checks': [asdict(c) for c in checks]})
    return 1 if missing else 0


def all_checks() -> Iterator[Check]:
    """Look at everything, one after the other."""
    yield _python()
    yield _data_files()
    yield from _ros()
    yield _environment()
    yield _ros2_command()
    yield _probed('MuJoCo', 'pip install mujoco', 'mujoco', lambda f: f['version'])
    yield _probed(
        'OpenGL',
        'only pictures need it: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6',
        'gl',
        lambda f: f'offscreen by {f["library"]}',
        required=False,
    )
    yield _probed('MP4 video', 'pip install opencv-python-headless', 'video', _cv2, required=False)
    yield _probed('torch', 'pip install torch', 'torch', _torch)
    yield _probed(
        'ONNX Runtime',
        'pip install onnxruntime onnx; without it the slower torch engine acts',
        'onnxruntime',
        lambda f: f'{f["version"]} with {", ".join(f["providers"])}',
        required=False,
    )
    yield _gpu()
    yield _probed(
        'TensorRT',
        'for NVIDIA GPUs: part of JetPack on a Jetson; elsewhere pip install tensorrt',
        ('version', 'tensorrt'),
        lambda f: f['version'],
        required=False,
    )
    yield from _engines()
    yield _writable()


def _engines() -> Iterator[Check]:
    """Say of each backend whether it loads, and how to get it here."""
    from dipod_ros.serving.engines.backends import BACKENDS

    for backend in BACKENDS.values():
        name, missing = f'engine {backend.name}', backend.missing()
        required = backend.name == 'torch'  # the one that always works
        if missing:
            yield Check(name, ABSENT, ', '.join(missing), backend.advice(), required)
            continue
        findings = probe('engine', backend.name)
        if 'error' in findings:
            yield Check(name, BROKEN, findings['error'], backend.advice(), required)
        else:
            yield Check(name, OK, ' or '.join(backend.precisions), required=required)


def probe(name: str, *arguments: str) -> dict[str, Any]:
    """Run one probe and return its findings; `error` is among them when it failed."""
    try:
        done = subprocess.run(
            _probe_command(name, *arguments),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {'error': f'no answer within {PROBE_TIMEOUT_S:.0f} s'}
    return _findings(done.stdout, done.returncode)


def _probe_command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, '-m', 'dipod_ros.cli._doctor_probes', name, *arguments]


def _findings(stdout: str, code: int) -> dict[str, Any]:
    try:
        return json.loads(stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        how = f'signal {-code}' if code < 0 else f'exit code {code}'
        return {'error': f'it crashed while loading ({how})'}


def _probed(
    name: str,
    advice: str,
    what: str | tuple[str, ...],
    describe: Callable[[dict[str, Any]], str],
    required: bool = True,
) -> Check:
    words = (what,) if isinstance(what, str) else what
    module = {'gl': 'mujoco', 'video': 'cv2'}.get(words[-1], words[-1])
    if importlib.util.find_spec(module) is None:
        return Check(name, ABSENT, 'not installed', advice, required)
    findings = probe(*words)
    if 'error' in findings:
        return Check(name, BROKEN, findings['error'], advice, required)
    return Check(name, OK, describe(findings), required=required)


def _python() -> Check:
    found = f'{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores'
    return Check('Python', OK, found)


def _data_files() -> Check:
    from dipod_ros.resources import share_dir

    try:
        share = share_dir()
    except UserError as error:
        return Check('data files', ABSENT, 'not installed', str(error))
    models = sorted(p.parent.name for p in share.glob('models/*/manifest.yaml'))
    return Check('data files', OK, f'{share}, {len(models)} models')


def _ros() -> Iterator[Check]:
    source = 'source /opt/ros/<distribution>/setup.bash, or without ROS: '
    if importlib.util.find_spec('rclpy') is None:
        yield Check('rclpy', ABSENT, 'not installed', source + ROS_FROM_PYPI)
        return
    findings = probe('rclpy')
    if 'error' in findings:
        yield Check('rclpy', BROKEN, findings['error'], source + ROS_FROM_PYPI)
        return
    distribution = os.environ.get('ROS_DISTRO') or 'from PyPI'
    yield Check('rclpy', OK, f'{distribution}, {findings["rmw"]}, {findings["path"]}')
    yield _loopback()


def _loopback() -> Check:
    """Let two processes talk: firewalls and VPNs break exactly this."""
    # A domain of its own, so that nobody else is disturbed, or mistaken for the talker.
    domain = str(os.getpid() % 100 + 1)
    environment = {
        **os.environ,
        'ROS_DOMAIN_ID': domain,
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
    }
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL, 'text': True}
    talker = subprocess.Popen(_probe_command('talk'), env=environment, **pipes)
    listener = subprocess.Popen(_probe_command('listen'), env=environment, **pipes)
    try:
        out, _ = listener.communicate(timeout=PROBE_TIMEOUT_S)
        findings = _findings(out, listener.returncode)
    except subprocess.TimeoutExpired:
        findings = {'error': 'the listener hung'}
    finally:
        for process in (talker, listener):
            process.kill()
            process.communicate()
    advice = (
        'allow UDP on the interface lo (firewall, VPN), and multicast: ip link set lo multicast on'
    )
    if 'error' in findings:
        return Check('two nodes talk', BROKEN, findings['error'], advice)
    if findings['seconds'] is None:
        return Check('two nodes talk', BROKEN, 'nothing was heard over loopback', advice)
    return Check('two nodes talk', OK, f'over loopback, after {findings["seconds"]} s')


def _environment() -> Check:
    names = ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_LOCALHOST_ONLY', 'ROS_DOMAIN_ID')
    found = ', '.join(f'{n}={os.environ[n]}' for n in names if n in os.environ)
    local = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE') == 'LOCALHOST'
    if local or os.environ.get('ROS_LOCALHOST_ONLY') == '1':
        return Check('discovery', OK, found, required=False)
    return Check(
        'discovery',
        OK,
        f'{found or "no ROS variables set"}: launch files and the demo stay on this machine, '
        'single nodes see the network',
        required=False,
    )


def _ros2_command() -> Check:
    ros2 = shutil.which('ros2')
    if ros2 is None:
        return Check(
            'ros2 command',
            ABSENT,
            'not on PATH',
            '`dipod up` runs the launch files without it; or apt install ros-jazzy-ros2launch',
            required=False,
        )
    from dipod_ros.ros.launch_runner.text import prefixes

    known = any(
        (p / 'share/ament_index/resource_index/packages/dipod_ros').is_file()
        for p in prefixes(os.environ)
    )
    if known:
        return Check('ros2 command', OK, f'{ros2}, and it knows dipod_ros', required=False)
    return Check(
        'ros2 command',
        BROKEN,
        f'{ros2}, but it does not know dipod_ros',
        'colcon build, then source install/setup.bash',
        required=False,
    )


def _cv2(findings: dict[str, Any]) -> str:
    return f'OpenCV {findings["version"]}'


def _torch(findings: dict[str, Any]) -> str:
    threads = os.environ.get('OMP_NUM_THREADS')
    note = f'OMP_NUM_THREADS={threads}' if threads else 'nodes use 1 unless told otherwise'
    gpu = f', CUDA on {findings["gpu"]}' if findings['gpu'] else ', CPU'
    return f'{findings["version"]}{gpu}, {findings["threads"]} threads ({note})'


def _gpu() -> Check:
    advice = 'not needed: the shipped policies are small enough for a CPU'
    command = shutil.which('nvidia-smi')
    if command is None:
        jetson = Path('/etc/nv_tegra_release')
        if jetson.is_file():
            return Check('NVIDIA GPU', OK, jetson.read_text().splitlines()[0], required=False)
        return Check('NVIDIA GPU', ABSENT, 'none found', advice, required=False)
    query = [command, '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check('NVIDIA GPU', BROKEN, f'nvidia-smi: {error}', advice, required=False)
    return Check('NVIDIA GPU', OK, '; '.join(done.stdout.strip().splitlines()), required=False)


def _writable() -> Check:
    folder = Path('runs').absolute()
    existing = folder if folder.is_dir() else folder.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = 'go to a folder that you can write to: results go to runs/ there'
        return Check('results', BROKEN, f'{existing}: {error.strerror}', advice)
    free = shutil.disk_usage(existing).free / 1e9
    return Check('results', OK, f'{folder}, {free:.0f} GB free')


def _print(check: Check) -> None:
    mark = check.status if check.status == OK or check.required else f'({check.status})'
    print(f'{mark:>9}  {check.name:<15} {check.found}', flush=True)
    if check.status != OK and check.advice:
        print(f'{"":>9}  {"":<15} -> {check.advice}', flush=True)
