# SPDX-License-Identifier: Apache-2.0
"""How the node's parameters become the settings of its loop, and what that needs to hear."""

from __future__ import annotations

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.nodes._policy_server_episodes import may_hold
from dipod_ros.nodes._policy_server_params import PolicyServerParams
from dipod_ros.policy.kinematics import TipKinematics
from dipod_ros.policy.spec import Stream
from dipod_ros.serving.drive_laws import per_joint
from dipod_ros.serving.following import FollowingConfig
from dipod_ros.serving.loop import LoopConfig

JOINT_TOPIC = 'joint_states'
# Joint states that differ by more within a tenth of a second are of an arm that moves.
STILL_END_RAD = 0.1


def loop_config(p: PolicyServerParams) -> LoopConfig:
    """Return the settings of the loop; raises UserError for those that cannot be."""
    k = p.kinematics
    return LoopConfig(
        interface='trajectory' if p.interface == 'trajectory' else 'position',
        replan_steps=p.replan_steps,
        resync_rad=p.resync_rad,
        still_rad=_still_rad(p),
        following=FollowingConfig(p.following_rad, p.following_lag_s),
        reset_teleports=p.reset_teleports,
        hold_between_episodes=may_hold(p.hold_between_episodes, p.lockstep),
        watchdog_s=p.watchdog_s,
        silent_beside_others=p.interface != 'effort',
        command_stays=p.interface in ('trajectory', 'position'),
        joint_topic=JOINT_TOPIC,
        joint_max_age_s=p.joint_max_age_s,
        stamp_tolerance_s=p.stamp_tolerance_s,
        forecast=p.forecast,
        tip=TipKinematics.from_params(p.joints, k.axes, k.origins, k.tip, k.topic),
        seam=p.seam,
        ensemble_decay=p.ensemble_decay,
    )


def _still_rad(p: PolicyServerParams) -> tuple[float, ...]:
    bounds = per_joint('still_rad', p.still_rad, len(p.joints))
    if not np.all((bounds > 0) & (bounds <= STILL_END_RAD)):
        raise UserError(
            f'still_rad must be above 0 and at most {STILL_END_RAD:g}, got {list(p.still_rad)}'
        )
    return tuple(bounds)


def own_streams(p: PolicyServerParams) -> list[Stream]:
    """Return what the loop itself has to hear, whatever the policy looks at.

    The joint positions are needed to know where to start.
    """
    count = len(p.joints)
    own = [Stream('joints', 'joint_position', count, JOINT_TOPIC)]
    if p.interface == 'effort':
        own.append(Stream('joint velocities', 'joint_velocity', count, JOINT_TOPIC))
    return own
