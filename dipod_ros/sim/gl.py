# SPDX-License-Identifier: Apache-2.0
"""Owns where an offscreen OpenGL context comes from: EGL, else OSMesa. Imported for pictures only.

mujoco.Renderer takes the library that was chosen when mujoco was imported, which without a screen
is one that cannot work; this tries what there is when the first picture is wanted.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

from dipod_ros.errors import UserError

LIBRARIES = ('egl', 'osmesa')
GL_HINT = (
    'no OpenGL for offscreen pictures (everything else works without): '
    'apt-get install libegl1 libgl1-mesa-dri, or libosmesa6'
)


class NoGL(UserError):
    """There is no offscreen OpenGL on this machine; everything but pictures works."""


def offscreen_context(width: int, height: int) -> Any:
    """Return a mujoco GLContext of that size (pixels), made current.

    MUJOCO_GL (egl or osmesa) restricts the choice. Raises NoGL, which says what to install.
    """
    # Mesa's CPU renderer starts a thread per core; for small pictures they only wait.
    os.environ.setdefault('LP_NUM_THREADS', '1')
    wanted = os.environ.get('MUJOCO_GL', '').lower().strip()
    if sys.platform != 'linux':
        names: tuple[str, ...] = ('gl_context',)  # mujoco's own choice for that system
    else:
        names = (wanted,) if wanted in LIBRARIES else LIBRARIES
    reasons = []
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                context = importlib.import_module(f'mujoco.{name}').GLContext(width, height)
            context.make_current()
            return context
        except Exception as error:  # the classes differ between GL libraries
            reasons.append(f'{name}: {str(error).splitlines()[0] if str(error) else error!r}')
            _forget_opengl()
    raise NoGL(f'{GL_HINT} [{"; ".join(reasons)}]')


def _forget_opengl() -> None:
    """PyOpenGL binds to one library at its first import: let the next attempt import it anew."""
    os.environ.pop('PYOPENGL_PLATFORM', None)
    for name in list(sys.modules):
        if name.split('.')[0] == 'OpenGL' or name.startswith(('mujoco.egl', 'mujoco.osmesa')):
            del sys.modules[name]
