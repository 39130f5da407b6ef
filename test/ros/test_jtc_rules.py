# SPDX-License-Identifier: Apache-2.0
"""What joint_trajectory_controller refuses by default is refused, and nothing else."""

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Duration  # noqa: E402

from dipod_ros.ros.jtc_rules import refusal  # noqa: E402
from dipod_ros.ros.messages import TrajectoryWriter, time_msg  # noqa: E402

JOINTS = ('a', 'b')
NOW = 10_000_000_000
SAME = Duration(nanosec=80_000_000)


def message(ns=NOW, count=4, offset_ns=0):
    velocities = np.full((count, 2), 0.1)
    velocities[-1] = 0
    return TrajectoryWriter(JOINTS, 0.04).message(ns, np.zeros((count, 2)), velocities, offset_ns)


@pytest.mark.parametrize('ns', [NOW, NOW - 159_000_000, NOW + 5_000_000_000, 0])
def test_good_ones_pass(ns):
    assert refusal(message(ns), JOINTS, NOW) == ''
    assert refusal(message(ns), ('b', 'a'), NOW) == ''  # any order


def test_the_first_point_may_be_now_and_points_may_be_past():
    assert refusal(message(offset_ns=-40_000_000), JOINTS, NOW + 100_000_000) == ''


def edit(change):
    msg = message()
    change(msg)
    return refusal(msg, JOINTS, NOW)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda m: setattr(m, 'joint_names', ['a']), "['b'] are not among"),
        (lambda m: setattr(m, 'joint_names', ['a', 'c']), "['c'] are not known"),
        (lambda m: setattr(m, 'joint_names', ['a', 'b', 'c']), "['c'] are not known"),
        (lambda m: setattr(m, 'joint_names', ['a', 'b', 'a']), 'must be those'),
        (lambda m: setattr(m, 'points', []), 'no points'),
        (lambda m: setattr(m.points[-1], 'velocities', [0.0, 2e-7]), 'moves'),
        (lambda m: setattr(m.header, 'stamp', time_msg(NOW - 161_000_000)), 'in the past'),
        (
            lambda m: setattr(m.points[2], 'time_from_start', Duration(nanosec=80_000_000)),
            'point 2',
        ),
        (lambda m: setattr(m.points[1], 'positions', [0.0]), '1 positions'),
        (lambda m: setattr(m.points[1], 'positions', []), '0 positions'),
        (lambda m: setattr(m.points[1], 'velocities', [0.0]), '1 velocities'),
        (lambda m: setattr(m.points[1], 'accelerations', [0.0]), '1 accelerations'),
        (lambda m: setattr(m.points[1], 'effort', [0.0, 0.0]), 'efforts'),
    ],
)
def test_bad_ones_are_refused_with_the_reason(change, says):
    assert says in edit(change)


def test_a_moving_end_can_be_allowed():
    msg = message()
    msg.points[-1].velocities = [0.1, 0.0]
    assert refusal(msg, JOINTS, NOW) and not refusal(msg, JOINTS, NOW, may_end_moving=True)
