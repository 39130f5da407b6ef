# SPDX-License-Identifier: Apache-2.0
"""The package installs by pip, editable and by colcon, and finds its files in all three.

Each runs in a virtual environment of its own that borrows the libraries of this one. Nothing is
downloaded.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = (
    'package.xml',
    'config/robots/arm7.yaml',
    'launch/sim.launch.yaml',
    'sim/arm7.xml',
    'models/reach_flow/policy.safetensors',
)
LOOK = f"""
from dipod_ros.resources import resource, share_dir
import dipod_ros
for name in {SHARED!r}:
    assert resource(name).is_file(), name
print(share_dir())
print(dipod_ros.__file__)
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of the source tree, so that no build folder ends up in the real one."""
    ignored = shutil.ignore_patterns(
        '.*', 'build', 'install', 'log', 'runs', '*.egg-info', '__pycache__', 'test'
    )
    return Path(shutil.copytree(ROOT, tmp_path / 'src', ignore=ignored))


@pytest.fixture
def environment(tmp_path):
    """Return the Python of a fresh environment that sees the libraries of this one."""
    folder = tmp_path / 'venv'
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob('lib/python*/site-packages')
    # Added as plain paths: their own .pth files, and so an editable dipod_ros, stay out.
    (packages / 'borrowed.pth').write_text('\n'.join(site.getsitepackages()) + '\n')
    return folder / 'bin/python'


@pytest.fixture
def elsewhere(tmp_path):
    """Return a folder to run in, from which the source is not importable."""
    folder = tmp_path / 'elsewhere'
    folder.mkdir()
    return {
        'cwd': folder,
        'env': {
            k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'AMENT_PREFIX_PATH')
        },
    }


def pip_install(python, *what, **options):
    run(
        *(sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet'),
        *('--no-deps', '--no-index', '--no-build-isolation', *map(str, what)),
        **options,
    )


def can_build():
    """Tell whether this environment builds wheels: setuptools can, or could with wheel."""
    if any(importlib.util.find_spec(m) is None for m in ('pip', 'setuptools')):
        return False
    major = int(importlib.metadata.version('setuptools').split('.')[0])
    return major > 70 or importlib.util.find_spec('wheel') is not None


needs_pip = pytest.mark.skipif(not can_build(), reason='needs pip and setuptools 71, or wheel')


@needs_pip
def test_pip_install_finds_its_files(checkout, environment, elsewhere):
    pip_install(environment, checkout, **elsewhere)
    shutil.rmtree(checkout)
    prefix = environment.parent.parent
    share, module = run(str(environment), '-c', LOOK, **elsewhere).split()
    assert share == str(prefix / 'share/dipod_ros')
    assert module.startswith(str(prefix))
    # What ros2 looks for.
    assert (prefix / 'share/ament_index/resource_index/packages/dipod_ros').is_file()
    out = run(str(environment.parent / 'dipod'), 'up', 'sim', '--dry-run', **elsewhere)
    assert f'{share}/config/robots/arm7.yaml' in out
    for name in ('policy_server', 'trainer', 'mujoco_sim'):
        assert os.access(environment.parent / name, os.X_OK)


@needs_pip
def test_editable_install_uses_the_checkout(checkout, environment, elsewhere):
    pip_install(environment, '--editable', checkout, **elsewhere)
    share, module = run(str(environment), '-c', LOOK, **elsewhere).split()
    assert share == str(checkout)
    assert module == str(checkout / 'dipod_ros/__init__.py')
    assert (environment.parent / 'dipod').is_file()


@pytest.mark.skipif(importlib.util.find_spec('colcon_core') is None, reason='needs colcon')
@pytest.mark.parametrize('options', [[], ['--symlink-install']], ids=['copy', 'symlink'])
def test_colcon_build_finds_its_files(checkout, tmp_path, elsewhere, options):
    workspace = tmp_path / 'workspace'
    workspace.mkdir()
    elsewhere['env']['COLCON_LOG_PATH'] = str(workspace / 'log')
    run(
        *(sys.executable, '-c', 'import colcon_core.command as c, sys; sys.exit(c.main())'),
        *('build', '--base-paths', str(checkout), *options),
        cwd=workspace,
        env=elsewhere['env'],
    )
    prefix = workspace / 'install/dipod_ros'
    for name in ('policy_server', 'trainer', 'mujoco_sim', 'dipod'):
        assert os.access(prefix / 'lib/dipod_ros' / name, os.X_OK), name
        # The README relies on it: who builds in an environment gets nodes that run in it.
        script = (prefix / 'lib/dipod_ros' / name).read_text()
        assert script.startswith(f'#!{sys.executable}\n')
    assert (prefix / 'share/ament_index/resource_index/packages/dipod_ros').is_file()
    for name in SHARED:
        assert (prefix / 'share/dipod_ros' / name).is_file(), name
    script = '. install/setup.sh; cd "$1"; "$2" -c "$3"; echo $AMENT_PREFIX_PATH'
    out = run(
        *('sh', '-c', script, 'sh', str(elsewhere['cwd']), sys.executable, LOOK),
        cwd=workspace,
        env=elsewhere['env'],
    )
    share, module, index = out.split()
    if options:  # links to the sources, where the data files are, too
        assert share == str(checkout)
        assert not module.startswith(str(ROOT))
    else:
        assert share == str(prefix / 'share/dipod_ros')
        assert module.startswith(str(prefix))
    assert str(prefix) in index.split(':')


def test_the_version_is_the_same_everywhere():
    setup = re.search(r"version='([\d.]+)'", (ROOT / 'setup.py').read_text()).group(1)
    manifest = re.search(r'<version>([\d.]+)<', (ROOT / 'package.xml').read_text()).group(1)
    assert setup == manifest
    assert f'\n{setup} (' in (ROOT / 'CHANGELOG.rst').read_text()
