# SPDX-License-Identifier: Apache-2.0
"""Pictures, and the one line that says how to get them where there is no GL."""

import numpy as np
import pytest

from dipod_ros.errors import UserError
from dipod_ros.sim import gl
from dipod_ros.sim.render import NoGL, SceneRenderer, focal_length
from dipod_ros.sim.tasks.registry import make_task


@pytest.fixture(scope='module')
def task():
    return make_task('pillar_reach')


@pytest.fixture
def renderer(task):
    try:
        renderer = SceneRenderer(task.world, 160, 120)
    except NoGL as error:
        pytest.skip(str(error))
    yield renderer
    renderer.close()


def test_pictures_show_the_state(task, renderer):
    state, goal = task.start(np.random.default_rng(0))
    picture = renderer.render(state)
    assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8
    assert picture.std() > 10
    red = (picture[..., 0].astype(int) - picture[..., 1]) > 60
    assert red.sum() > 20  # the pillar
    assert np.array_equal(picture, renderer.render(state))
    moved = state.copy()
    moved[1 + task.world.qpos_index[0]] += 0.5
    assert not np.array_equal(picture, renderer.render(moved))


def test_sky_is_above_the_floor(task, renderer):
    """OpenGL's rows come bottom first; a picture must not be upside down."""
    state, _ = task.start(np.random.default_rng(0))
    picture = renderer.render(state).astype(int)
    blueness = picture[..., 2] - picture[..., 0]
    assert blueness[:5].mean() > blueness[-5:].mean() + 10


def test_the_goal_is_drawn_where_it_is(task, renderer):
    state, goal = task.start(np.random.default_rng(0))
    one = renderer.render(state, goal=goal).astype(int)
    two = renderer.render(state, goal=goal + [0, 0, 0.1]).astype(int)
    rows = [np.flatnonzero((p[..., 1] - p[..., 0] > 50).any(axis=1)).mean() for p in (one, two)]
    assert rows[1] < rows[0] - 3


def test_unknown_cameras_are_named(task, renderer):
    state, _ = task.start(np.random.default_rng(0))
    assert np.array_equal(renderer.render(state, 'front'), renderer.render(state))
    with pytest.raises(UserError, match=r"no camera 'side'; this world has \['front'\]"):
        renderer.render(state, 'side')


def test_focal_length_of_the_pinhole(task):
    assert focal_length(task.world, 'front', 120) == pytest.approx(60 / np.tan(np.radians(25)))


def test_without_gl_there_is_one_line_that_says_what_to_install(task, monkeypatch):
    monkeypatch.setattr(gl, 'LIBRARIES', ('no_such_library',))
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    with pytest.raises(NoGL, match='apt-get install') as caught:
        SceneRenderer(task.world)
    assert '\n' not in str(caught.value)
