# SPDX-License-Identifier: Apache-2.0
"""Samples are lost and late exactly as configured."""

import pytest

from dipod_ros.sim.faults import FaultConfig, SampleFaults


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (FaultConfig(), [1, 2, 3, 4, 5, 6]),
        (FaultConfig(drop_every=3), [1, 2, None, 4, 5, None]),
        (FaultConfig(delay=2), [None, None, 1, 2, 3, 4]),
        (FaultConfig(drop_every=2, delay=1), [None, None, 1, None, 3, None]),
    ],
)
def test_samples_arrive_as_configured(config, expected):
    faults = SampleFaults(config)
    assert [faults.pass_on(i) for i in range(1, 7)] == expected
