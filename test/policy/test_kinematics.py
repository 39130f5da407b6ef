# SPDX-License-Identifier: Apache-2.0
"""Where a tip is, and which numbers of a robot file are refused."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.policy.kinematics import TipKinematics

JOINTS = ('a', 'b')
AXES, ORIGINS, TIP = [0, 0, 2, 0, 1, 0], [0, 0, 0.5, 1, 0, 0.5], [1.5, 0, 0.5]


def test_the_last_joint_turns_first():
    arm = TipKinematics.from_params(JOINTS, AXES, ORIGINS, TIP, 'tip')
    np.testing.assert_allclose(np.linalg.norm(arm.axes, axis=1), 1.0)  # any length will do
    np.testing.assert_allclose(arm.forward(np.zeros(2)), TIP)
    np.testing.assert_allclose(arm.forward(np.array([0, np.pi / 2])), [1, 0, 0], atol=1e-12)
    quarter = np.array([np.pi / 2, np.pi / 2])
    np.testing.assert_allclose(arm.forward(quarter), [0, 1, 0], atol=1e-12)


def test_a_robot_without_numbers_has_no_kinematics():
    assert TipKinematics.from_params(JOINTS, (), (), (), 'tip') is None


@pytest.mark.parametrize(
    ('axes', 'origins', 'tip', 'what'),
    [
        (AXES[:3], ORIGINS, TIP, 'axes needs 6'),
        (AXES, (), TIP, 'origins needs 6'),
        (AXES, ORIGINS, (), 'tip needs 3'),
        (AXES, ORIGINS, [0, 0, np.nan], 'tip needs 3 finite'),
        ([0, 0, 0, 0, 1, 0], ORIGINS, TIP, 'no direction'),
    ],
)
def test_numbers_that_cannot_be_are_refused(axes, origins, tip, what):
    with pytest.raises(UserError, match=what):
        TipKinematics.from_params(JOINTS, axes, origins, tip, 'tip')
