# SPDX-License-Identifier: Apache-2.0
"""Makes the workspace of the safety filter from the robot's parameters."""

from __future__ import annotations

from dipod_ros.errors import UserError
from dipod_ros.nodes._policy_server_params import WorkspaceParams
from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.workspace import Box, Workspace


def make_workspace(params: WorkspaceParams, limits: JointLimits) -> Workspace | None:
    """Return the workspace, None when the robot file gives none.

    Raises UserError for half a workspace, a box that is none, or a model that does not fit.
    """
    given = {
        'model': params.model,
        'tool': params.tool,
        'lower': params.lower,
        'upper': params.upper,
    }
    missing = [f'workspace.{name}' for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise UserError(f'the robot file gives no {", ".join(missing)}: give all of it or nothing')
    box = Box(params.lower, params.upper, params.margin_m)
    try:
        from dipod_ros.sim.tool_position import ToolPosition
    except ImportError as error:
        raise UserError(f'a workspace needs mujoco: pip install mujoco ({error})') from error
    return Workspace(
        box, ToolPosition(params.model, params.tool, limits.joints), limits.acceleration
    )
