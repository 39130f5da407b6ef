# SPDX-License-Identifier: Apache-2.0
"""What every test relies on: loopback, a private ROS domain, one thread per process."""

import importlib.util
import os

import pytest

# Before anything imports rclpy or torch. Child processes inherit these too.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
if os.environ.get('ROS_DISTRO') == 'humble':
    os.environ['ROS_LOCALHOST_ONLY'] = '1'  # the older name; later distributions warn about it
os.environ['ROS_DOMAIN_ID'] = str(os.getpid() % 100 + 1)  # 1..100: clear of ephemeral ports
os.environ['OMP_NUM_THREADS'] = '1'
os.environ.setdefault('MPLBACKEND', 'Agg')

HAS_RCLPY = importlib.util.find_spec('rclpy') is not None


def pytest_collection_modifyitems(items):
    """Skip tests marked `ros` where rclpy is absent; a broken rclpy still fails them."""
    if HAS_RCLPY:
        return
    skip = pytest.mark.skip(reason='rclpy is not installed')
    for item in items:
        if 'ros' in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope='session', autouse=True)
def _kept_graphs(tmp_path_factory):
    """Let exported graphs outlive a test, but not the run: exporting one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('graphs')))
        yield


@pytest.fixture
def ros():
    """Return a live rclpy context of this test's own, shut down afterwards."""
    rclpy = pytest.importorskip('rclpy')
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.try_shutdown(context=context)
