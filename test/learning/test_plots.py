# SPDX-License-Identifier: Apache-2.0
"""Pictures are drawn for every result that can occur."""

import numpy as np
import pytest

pytest.importorskip('matplotlib')

from matplotlib import image  # noqa: E402

from dipod_ros.learning.evaluate import SuccessRate, wilson_interval  # noqa: E402
from dipod_ros.learning.plots import _smooth, plot_evaluations, plot_learning_curve  # noqa: E402


def rate(successes, episodes):
    return SuccessRate(
        successes / episodes, *wilson_interval(successes, episodes), episodes, 0.0, 100
    )


def rows(count):
    return [
        {
            'control_steps': 1000 * (k + 1),
            'success_rate': k / max(count - 1, 1),
            'episodes': 64,
            'action_std_ratio': 1.0,
            'cfm_ratio': float('nan') if k == 1 else 1.0,
        }
        for k in range(count)
    ]


@pytest.mark.parametrize('count', [0, 1, 5])
@pytest.mark.parametrize('rates', [{}, {'before': rate(0, 7), 'after': rate(512, 512)}])
def test_a_learning_curve_is_a_picture(tmp_path, count, rates):
    path = plot_learning_curve(tmp_path / 'curve.png', rows(count), rates, 'reach')
    assert image.imread(path).std() > 0.01


def test_failure_and_perfection_are_drawn_alike(tmp_path):
    path = plot_evaluations(
        tmp_path / 'bars.png', {'K=1': rate(0, 7), 'K=10': rate(512, 512)}, 'success'
    )
    picture = image.imread(path)
    assert picture.shape[2] == 4 and picture.std() > 0.01


def test_smoothing_weighs_by_episodes_within_the_window():
    success, episodes = np.array([0.0, 1.0, 0.5]), np.array([64, 64, 128])
    # The window reaches back until it holds at least 128 episodes.
    np.testing.assert_allclose(_smooth(success, episodes, 128), [0, 0.5, 0.5])
    np.testing.assert_allclose(_smooth(success, episodes, 1000), [0, 0.5, 0.5])
    np.testing.assert_allclose(_smooth(success, episodes, 1), success)
    np.testing.assert_allclose(_smooth(np.array([0.0, 1.0]), np.array([10, 30]), 40), [0, 0.75])
