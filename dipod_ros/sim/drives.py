# SPDX-License-Identifier: Apache-2.0
"""Owns what a robot's drives take: positions as in its MJCF, or velocities, or torques. No ROS."""

from __future__ import annotations

import math

import mujoco

from dipod_ros.sim.robot import RobotConfig


def set_drives(spec: mujoco.MjSpec, robot: RobotConfig) -> None:
    """Turn the position servos of a checked spec into the drives that `robot` asks for.

    velocity: torque = kv * (command - velocity), kv being the damping of the position servo, or
    critical damping at unit inertia where it has none. effort: torque = command. Torque limits
    stay.
    """
    if robot.max_timestep_s is not None:
        # Whole physics steps per update of the controllers.
        steps = math.ceil(robot.max_timestep_s / spec.option.timestep - 1e-9)
        spec.option.timestep = robot.max_timestep_s / steps
    if robot.drive == 'position':
        return
    for name in robot.actuators:
        actuator = spec.actuator(name)
        kp, kv = actuator.gainprm[0], -actuator.biasprm[2]
        gain = kv if kv > 0 else 2 * math.sqrt(kp)
        actuator.inheritrange = 0
        actuator.ctrllimited = mujoco.mjtLimited.mjLIMITED_FALSE
        actuator.ctrlrange = [0, 0]
        if robot.drive == 'velocity':
            actuator.gainprm[0] = gain
            actuator.biasprm[:3] = [0, 0, -gain]
        else:
            actuator.gainprm[0] = 1
            actuator.biastype = mujoco.mjtBias.mjBIAS_NONE
            actuator.biasprm[:3] = 0
