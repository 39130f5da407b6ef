# SPDX-License-Identifier: Apache-2.0
"""What every test relies on: loopback, a private ROS domain, one thread per process, its turn."""

import contextlib
import importlib.util
import os
import sys

import exports
import pytest
import workers

# Before anything imports rclpy or torch. Child processes inherit these too.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
if os.environ.get('ROS_DISTRO') == 'humble':
    os.environ['ROS_LOCALHOST_ONLY'] = '1'  # the older name; later distributions warn about it
os.environ['ROS_DOMAIN_ID'] = str(workers.domain())
os.environ['OMP_NUM_THREADS'] = '1'
os.environ.setdefault('MPLBACKEND', 'Agg')

HAS_RCLPY = importlib.util.find_spec('rclpy') is not None
SHARED, TURNS = pytest.StashKey(), pytest.StashKey()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Let the workers of pytest-xdist know of each other."""
    workers.tell(node, node.config.stash, SHARED)


def pytest_configure(config):
    """Join the other workers, where there are any."""
    folder = workers.shared_folder(config)
    if folder is not None:
        config.stash[TURNS] = workers.Turns(folder)


def pytest_collection_modifyitems(config, items):
    """Skip tests marked `ros` where rclpy is absent; a broken rclpy still fails them."""
    if not HAS_RCLPY:
        skip = pytest.mark.skip(reason='rclpy is not installed')
        for item in items:
            if 'ros' in item.keywords:
                item.add_marker(skip)
    if TURNS in config.stash:
        # First, while the others have short tests to do: the shorter those, the shorter the wait.
        items.sort(key=lambda item: not is_alone(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Run a test in its turn; the wait counts for no timeout."""
    if TURNS not in item.config.stash:
        return (yield)
    with item.config.stash[TURNS].take(is_alone(item), nextitem is not None and is_alone(nextitem)):
        return (yield)


def is_alone(item):
    """Tell whether no other test may run beside this one."""
    return item.get_closest_marker('alone') is not None


@pytest.fixture(scope='session', autouse=True)
def _kept_graphs(pytestconfig, tmp_path_factory):
    """Let exported graphs outlive a test, but not the run: exporting one takes seconds."""
    folder = workers.shared_folder(pytestconfig) or tmp_path_factory.mktemp('graphs')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(folder))
        yield


@pytest.fixture(scope='session', autouse=True)
def _one_table_of_operators():
    """Spare every export after the first the half of its time, where anything exports."""
    with exports.one_table_of_operators() if 'torch' in sys.modules else contextlib.nullcontext():
        yield


@pytest.fixture
def ros():
    """Return a live rclpy context of this test's own, shut down afterwards."""
    rclpy = pytest.importorskip('rclpy')
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.try_shutdown(context=context)
