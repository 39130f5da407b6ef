# SPDX-License-Identifier: Apache-2.0
"""Which JointTrajectory messages joint_trajectory_controller accepts with its default settings.

As ros2_controllers 4 checks them (joint_trajectory_controller.cpp, validate_trajectory_msg), with
allow_partial_joints_goal, allow_integration_in_goal_trajectories and
allow_nonzero_velocity_at_trajectory_end false. Creates no node.
"""

from __future__ import annotations

from collections.abc import Sequence

from trajectory_msgs.msg import JointTrajectory

from dipod_ros.ros.messages import NS_PER_S, stamp_ns

# rad/s; the controller compares the last velocity with the float32 epsilon.
AT_REST_RAD_S = 1.1920929e-7


def refusal(
    msg: JointTrajectory, joints: Sequence[str], now_ns: int, may_end_moving: bool = False
) -> str:
    """Return why the controller of `joints` refuses a trajectory at `now_ns`, '' if it does not.

    Points whose time has passed are no reason as long as the last one is to come.
    """
    names = msg.joint_names
    missing, unknown = set(joints) - set(names), set(names) - set(joints)
    if missing or unknown or len(names) != len(joints):
        return (
            f'its joints must be those of the controller: {sorted(missing)} are not among them, '
            f'{sorted(unknown)} are not known'
        )
    if not msg.points:
        return 'it has no points'
    last = msg.points[-1]
    if not may_end_moving and any(abs(v) > AT_REST_RAD_S for v in last.velocities):
        return (
            'the last point of the trajectory moves; end at rest, or set '
            'allow_nonzero_velocity_at_trajectory_end'
        )
    start_ns, times_ns = stamp_ns(msg.header.stamp), [_ns(p.time_from_start) for p in msg.points]
    # A stamp of 0 is "from now on".
    if start_ns and start_ns + times_ns[-1] < now_ns:
        ends_s = (start_ns + times_ns[-1]) / NS_PER_S
        return (
            f'the trajectory ends in the past: at {ends_s:.3f} s, it is {now_ns / NS_PER_S:.3f} s'
        )
    for k, point in enumerate(msg.points):
        if k and times_ns[k] <= times_ns[k - 1]:
            return f'time_from_start of trajectory points must increase; that of point {k} does not'
        if len(point.positions) != len(names):
            return f'point {k} has {len(point.positions)} positions for {len(names)} joints'
        for what in ('velocities', 'accelerations'):
            if len(getattr(point, what)) not in (0, len(names)):
                return f'point {k} has {len(getattr(point, what))} {what} for {len(names)} joints'
        if len(point.effort):
            return f'point {k} has efforts, which a position controller does not take'
    return ''


def _ns(duration: object) -> int:
    return duration.sec * NS_PER_S + duration.nanosec
