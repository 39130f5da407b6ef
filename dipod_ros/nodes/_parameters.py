# SPDX-License-Identifier: Apache-2.0
"""How the nodes of this package read their parameters: strictly, but in files that they share."""

from __future__ import annotations

from typing import TypeVar

from rclpy.node import Node

from dipod_ros.nodes._mujoco_sim_params import MujocoSimParams
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.nodes._recorder_params import RecorderParams
from dipod_ros.nodes._trainer_params import TrainerParams
from dipod_ros.ros.params import declare, entries
from dipod_ros.ros.unknown_parameters import refuse_unknown

T = TypeVar('T')

TABLES = (PolicyServerParams, MujocoSimParams, RecorderParams, TrainerParams)


def read_parameters(node: Node, table: type[T]) -> T:
    """Declare `table` on `node` and return it filled in; raises UserError, also on misspelt names.

    A robot file is for every node (`/**`), so what another node of ours knows is no mistake.
    """
    params = declare(node, table)
    refuse_unknown(node, known())
    return params


def known() -> set[str]:
    """Return the names of all parameters of all nodes."""
    return {e.name for table in TABLES for e in entries(table)}
