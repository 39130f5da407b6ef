# SPDX-License-Identifier: Apache-2.0
"""matplotlib that draws into files, imported when a picture is drawn."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:
    """Return matplotlib.pyplot with a backend that needs no display."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    return plt
