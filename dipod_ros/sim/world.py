# SPDX-License-Identifier: Apache-2.0
"""Owns the compiled MuJoCo model of one robot in one scene, and where its joints live in it.

A scene is an MJCF fragment with the things around the robot; it joins the robot under the prefix
`task/`, so that no name in a scene can collide with one in somebody's robot. No ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from dipod_ros.sim.drives import set_drives
from dipod_ros.sim.robot import RobotConfig, RobotError

SCENE_PREFIX = 'task/'
STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
# Relative: 40 ms must be a whole number of 5 ms steps up to the rounding of decimal fractions.
_PERIOD_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class World:
    """A model and the indices that translate between the robot's joint order and MuJoCo's."""

    robot: RobotConfig
    model: mujoco.MjModel
    substeps: int  # physics steps per control period
    qpos_index: np.ndarray  # [A] into qpos
    qvel_index: np.ndarray  # [A] into qvel
    actuator_index: np.ndarray  # [A] into ctrl
    effort_index: np.ndarray  # [A] into sensordata: actuator torque at each joint
    tip_id: int  # site id, -1 when the robot has no tip

    def scene_id(self, kind: mujoco.mjtObj, name: str) -> int:
        """Return the id of a scene element; KeyError when the scene has none of that name."""
        found = mujoco.mj_name2id(self.model, kind, SCENE_PREFIX + name)
        if found < 0:
            raise KeyError(f'the scene has no {name!r}')
        return found

    def camera_id(self, name: str) -> int:
        """Return a camera's id by its name in the scene or in the robot's MJCF.

        Raises RobotError listing the cameras there are.
        """
        for candidate in (name, SCENE_PREFIX + name):
            found = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, candidate)
            if found >= 0:
                return found
        names = [
            self.model.camera(i).name.removeprefix(SCENE_PREFIX) for i in range(self.model.ncam)
        ]
        raise RobotError(f'no camera {name!r}; this world has {names or "none"}')

    def rest_state(self, position: np.ndarray | None = None) -> np.ndarray:
        """Return the full-physics state [S] at rest with the arm at `position` [A] or at home."""
        data = mujoco.MjData(self.model)
        if self.model.nkey:
            mujoco.mj_resetDataKeyframe(self.model, data, 0)
            data.qvel[:] = 0
        data.time = 0
        data.qpos[self.qpos_index] = self.robot.home if position is None else position
        state = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, data, state, STATE)
        return state


def compile_world(robot: RobotConfig, scene: Path | None = None) -> World:
    """Compile `robot`, in `scene` when one is given, and check that the robot file fits its MJCF.

    Raises RobotError naming what does not fit and what the MJCF offers.
    """
    where = f'robot {robot.name}'
    try:
        spec = mujoco.MjSpec.from_file(str(robot.mjcf))
        if scene is not None:
            fragment = mujoco.MjSpec.from_file(str(scene))
            spec.attach(fragment, prefix=SCENE_PREFIX, frame=spec.worldbody.add_frame())
    except ValueError as error:
        raise RobotError(f'{where}: MuJoCo cannot read {robot.mjcf}: {_one_line(error)}') from error
    _check_joints(spec, robot, where)
    _check_actuators(spec, robot, where)
    set_drives(spec, robot)
    for joint in robot.joints:
        spec.add_sensor(
            name=f'effort/{joint}',
            type=mujoco.mjtSensor.mjSENS_JOINTACTFRC,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            objname=joint,
        )
    if robot.effort is not None:
        for name, effort in zip(robot.actuators, robot.effort, strict=True):
            spec.actuator(name).forcerange = [-effort, effort]
            spec.actuator(name).forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
    try:
        model = spec.compile()
    except ValueError as error:
        raise RobotError(f'{where}: MuJoCo cannot compile it: {_one_line(error)}') from error
    substeps = round(robot.control_period_s / model.opt.timestep)
    drift = abs(substeps * model.opt.timestep / robot.control_period_s - 1)
    if substeps < 1 or drift > _PERIOD_TOLERANCE:
        raise RobotError(
            f'{where}: control_period_s {robot.control_period_s} is not a whole number of the '
            f'timestep {model.opt.timestep} of {robot.mjcf.name}; change one of them'
        )
    return _index(robot, model, substeps)


def _index(robot: RobotConfig, model: mujoco.MjModel, substeps: int) -> World:
    joints = [model.joint(name) for name in robot.joints]
    for joint, lower, upper in zip(joints, robot.limits.lower, robot.limits.upper, strict=True):
        low, high = joint.range if model.jnt_limited[joint.id] else (-np.inf, np.inf)
        if lower < low - 1e-6 or upper > high + 1e-6:
            raise RobotError(
                f'robot {robot.name}: position limits [{lower:g}, {upper:g}] of {joint.name} go '
                f'beyond its range [{low:g}, {high:g}] rad in {robot.mjcf.name}'
            )
    tip_id = -1
    if robot.tip_site:
        tip_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, robot.tip_site)
        if tip_id < 0:
            sites = [model.site(i).name for i in range(model.nsite)]
            raise RobotError(
                f'robot {robot.name}: no site {robot.tip_site!r} for tip_site; '
                f'{robot.mjcf.name} has {sites or "none"}'
            )
    return World(
        robot=robot,
        model=model,
        substeps=substeps,
        qpos_index=np.array([int(j.qposadr[0]) for j in joints]),
        qvel_index=np.array([int(j.dofadr[0]) for j in joints]),
        actuator_index=np.array([model.actuator(a).id for a in robot.actuators]),
        effort_index=np.array(
            [int(model.sensor(f'effort/{name}').adr[0]) for name in robot.joints]
        ),
        tip_id=tip_id,
    )


def _check_joints(spec: mujoco.MjSpec, robot: RobotConfig, where: str) -> None:
    single = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    there = [j.name for j in spec.joints if j.type in single]
    missing = [j for j in robot.joints if j not in there]
    if missing:
        raise RobotError(
            f'{where}: no hinge or slide joint {missing} in {robot.mjcf.name}; it has {there}'
        )


def _check_actuators(spec: mujoco.MjSpec, robot: RobotConfig, where: str) -> None:
    there = {a.name: a for a in spec.actuators}
    missing = [a for a in robot.actuators if a not in there]
    if missing:
        raise RobotError(
            f'{where}: no actuator {missing} in {robot.mjcf.name}; it has {list(there)}'
        )
    for joint, name in zip(robot.joints, robot.actuators, strict=True):
        actuator = there[name]
        if actuator.target != joint:
            raise RobotError(
                f'{where}: actuator {name} drives {actuator.target}, not {joint}; '
                'list `actuators` in the order of `joints`'
            )
        # A position servo pushes with kp * (ctrl - q) - kv * qvel: bias -kp q cancels gain kp.
        servo = actuator.biastype == mujoco.mjtBias.mjBIAS_AFFINE
        if not servo or not actuator.gainprm[0] > 0 or actuator.biasprm[1] != -actuator.gainprm[0]:
            raise RobotError(
                f'{where}: actuator {name} is not a <position> actuator; commands are positions'
            )


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
